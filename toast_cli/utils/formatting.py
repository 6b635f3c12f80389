"""Sizes as people read them. No torch at import."""

from __future__ import annotations


def format_bytes(size: int) -> str:
    """Bytes in the largest decimal unit that leaves at least one."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
