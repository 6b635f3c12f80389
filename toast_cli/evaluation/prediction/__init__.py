"""Answers of a finished run to new files: `toast predict`."""
