"""Commands of `toast`, one module each."""
