"""A single check whether the Hugging Face hub is reachable, which avoids repeated attempts for every file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

TIMEOUT_SECONDS = 10
"""Timeout of the check in seconds."""


@contextmanager
def use_offline_if_unreachable() -> Iterator[None]:
    """Use only the local cache inside the block if the hub does not answer."""
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
    except Exception:  # any failure means that the hub is not reachable
        return False
    return True
