"""Data: sources that name labelled images, and the way from a file to a batch."""
