"""Licences of published weights: which are permissive, and where the others can be read."""

from __future__ import annotations

import logging
from functools import cache

LOGGER = logging.getLogger(__name__)

PERMISSIVE_LICENCES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"}
"""Licences that allow any use, with a notice at most."""

LICENCE_ADDRESSES = {
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "cc-by-nc-sa-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "gemma": "https://ai.google.dev/gemma/terms",
    "llama3.1": "https://www.llama.com/llama3_1/license/",
    "llama3.2": "https://www.llama.com/llama3_2/license/",
    "nvidia-open-model-license": (
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
    ),
}
"""Addresses of other licences. All others can be read where the weights are published."""


def format_licence_notice(weights: str, licence: str | None, page: str) -> str | None:
    """Return a sentence that names the licence of weights and its address, or None for a permissive licence.

    Args:
        weights: Name of the weights.
        licence: Identifier of their licence; None or "unknown" if it is not recorded.
        page: Address at which the weights are published.
    """
    if licence in PERMISSIVE_LICENCES:
        return None
    if licence in (None, "unknown"):
        return f"No licence is recorded for the weights of {weights}. Look for it at {page} before you use them."
    address = LICENCE_ADDRESSES.get(licence or "", page)
    name = "a licence of their own" if licence == "other" else licence
    return f"The weights of {weights} are not under a general open-source licence, but under {name}: {address}"


@cache
def announce_licence(weights: str, licence: str | None, page: str) -> None:
    """Log a line on the licence of weights that are about to be downloaded, once, unless it is permissive.

    The command line prints it on stderr.
    """
    notice = format_licence_notice(weights, licence, page)
    if notice is not None:
        LOGGER.warning("%s", notice)
