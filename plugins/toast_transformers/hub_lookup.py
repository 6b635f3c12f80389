"""One short request whether the Hugging Face hub has a model, before transformers retries for half a minute."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from toast_transformers.folders import build_unavailable_error

LOOKUP_SECONDS = 5.0
"""Time limit of the request."""


def require_model_source(family: str, place: str) -> None:
    """Check that a place is a folder, or a repository that the cache or the hub has.

    Offline, nothing is requested, and transformers reports at once what the cache lacks.

    Raises:
        UsageError: It can only be a folder, and does not exist.
        ToastError: The hub has no such model, or cannot be reached, and the cache does not have it.
    """
    if Path(place).expanduser().exists():
        return
    if looks_like_folder(place):
        raise build_unavailable_error(family, place, FileNotFoundError(place))
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(place, "config.json"), str):
        return
    try:
        HfApi().repo_info(place, timeout=LOOKUP_SECONDS)
    except Exception as error:  # the hub's client raises the errors of its libraries too
        raise build_unavailable_error(family, place, error) from error


def looks_like_folder(place: str) -> bool:
    """Return whether a name can only be that of a folder: ids of the hub are `NAME` or `OWNER/NAME`."""
    return place.startswith(("/", ".", "~")) or "\\" in place or place.count("/") > 1
