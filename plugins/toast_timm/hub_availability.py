"""A single check whether the Hugging Face hub is reachable, which avoids repeated attempts for every file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")

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


def is_cached(repository: str) -> bool:
    """Return whether the weights of a repository are in the local cache of the hub."""
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in WEIGHTS_FILES)


def _is_hub_reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # any failure means that the hub is not reachable
        return False
    return True
