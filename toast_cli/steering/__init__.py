"""The method in pure torch: selection, feedback path, two passes, Lite, least squares."""
