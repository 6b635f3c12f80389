"""Images with a class for every pixel, and their loader."""
