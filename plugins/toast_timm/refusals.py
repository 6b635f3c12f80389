"""Why models of timm that no plugin steers cannot be steered, or are not steered yet."""

from __future__ import annotations

from typing import Any

NO_FORM = {
    "MlpMixer": "Its tokens are mixed by layers over positions: there is no attention whose values could carry a "
    "signal, and no stage that changes the resolution, which a deconvolution could undo.",
    "ConvMixer": "All of its blocks keep one resolution: there is no attention whose values could carry a signal, and "
    "no stage that changes the resolution, which a deconvolution could undo.",
    "CrossVit": "It runs two sequences of tokens with different patch sizes that exchange their class tokens: a level "
    "has no single input that one signal could be added to.",
    "TNT": "Its blocks run a sequence of pixels inside of every patch and a sequence of patches: a level has no single "
    "input that one signal could be added to.",
    "CoaT": "Its last blocks run several resolutions side by side that exchange features: a level has no single input "
    "that one signal could be added to.",
}
"""Reasons by class for models that have no natural form of the paper's construction."""

NO_PLUGIN = {
    "VisionTransformerSAM": "Its attention is inside of windows, with positions that depend on the queries, and no "
    "plugin for its values exists yet.",
    "ConVit": "Its blocks have values of their own, but no plugin for its gated attention exists yet.",
}
"""Reasons by class for models that could be steered by a plugin that does not exist."""


def explain_refusal(module: Any) -> str:
    """Return why no plugin steers a model of timm; empty if no reason is recorded."""
    name = type(module).__name__
    if name == "CoaT" and not getattr(module, "parallel_blocks", None):
        return "Its serial blocks have values of their own, but no plugin for its factorized attention exists yet."
    return NO_FORM.get(name) or NO_PLUGIN.get(name, "")
