"""Figures of images in one style each: one module each, registered in `registered`."""
