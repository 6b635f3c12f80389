"""Explanations of a prediction as maps: one module each, registered in `registered`."""
