"""Procedurally drawn scenes and mosaics."""
