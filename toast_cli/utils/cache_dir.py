"""Where toast keeps things outside a run. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path


def get_cache_folder() -> Path:
    """Where things are kept that can be computed again: TOAST_CACHE_DIR, else `toast` in the user's cache."""
    own = os.environ.get("TOAST_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toast"
