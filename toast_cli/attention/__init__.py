"""Attention maps: recording, validation and metrics."""
