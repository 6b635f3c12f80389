"""Segmentation data sets (images with a class for every pixel) and their loader."""
