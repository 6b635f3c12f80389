"""Commands of `toast`, one file each."""
