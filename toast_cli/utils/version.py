"""Version of toast."""

__version__ = "0.2.0"
