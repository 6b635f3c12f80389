"""Formats of conversations: one file and one registration per format."""
