"""Streamed image data sets and their loader."""
