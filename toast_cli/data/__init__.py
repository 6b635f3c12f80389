"""Data sources, their splits, and the loaders that turn samples into batches."""
