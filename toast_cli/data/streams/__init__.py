"""Image data sets that are read from front to end, and their loader."""
