"""Asking the Hugging Face hub once whether it is there, instead of trying every file of it again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

TIMEOUT_SECONDS = 10
"""Seconds."""


@contextmanager
def use_offline_if_unreachable() -> Iterator[None]:
    """Within the block, a hub that does not answer is not asked again: what is in the cache is found, or nothing is."""
    was = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was or not _is_hub_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


def _is_hub_reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # whatever keeps it from answering, it does not
        return False
    return True
