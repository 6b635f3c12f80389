"""toast: transfer learning via attention steering."""

__version__ = "0.1.0"
