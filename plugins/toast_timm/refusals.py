"""Why models of timm that no plugin steers cannot be steered, or are not steered yet."""

from __future__ import annotations

from typing import Any

NO_FORM = {
    "MlpMixer": "Its tokens are mixed by layers over positions: there is no attention whose values could carry a "
    "signal, and no stage that changes the resolution, which a deconvolution could undo.",
    "CrossVit": "It runs two sequences of tokens with different patch sizes that exchange their class tokens: a level "
    "has no single input that one signal could be added to.",
    "MobileNetV5Encoder": "It is the encoder of a language model, and has no pooled features of an image to classify.",
    "MobileNetV5": "It ends with a fusion of the maps of two stages: there is no single last map to select features "
    "of.",
    "TNT": "Its blocks run a sequence of pixels inside of every patch and a sequence of patches: a level has no single "
    "input that one signal could be added to.",
    "CoaT": "Its last blocks run several resolutions side by side that exchange features: a level has no single input "
    "that one signal could be added to.",
}
"""Reasons by class for models that have no natural form of the paper's construction."""

NO_PLUGIN = {
    "VisionTransformerSAM": "Most of its blocks attend inside of windows, and all add position biases that are "
    "computed from the queries. toast has no plugin for this attention yet.",
    "ConVit": "Its first blocks mix attention by content with attention by position through a gate. toast has no "
    "plugin for this attention yet.",
    "PoolingVisionTransformer": "It carries class tokens beside a map that becomes smaller from stage to stage, so "
    "that a level is neither a sequence of tokens nor a map. toast has no plugin for it yet.",
    "Twins": "Its blocks attend inside of windows or to a reduced map, with position encodings by a convolution "
    "between them. toast has no plugin for them yet.",
}
"""Reasons by class for models that could be steered by a plugin that does not exist."""


def explain_refusal(module: Any) -> str:
    """Return why no plugin steers a model of timm; empty if no reason is recorded."""
    name = type(module).__name__
    if name == "CoaT" and not getattr(module, "parallel_blocks", None):
        return (
            "Its attention is factorized: keys and values are multiplied first, and a convolution of the values is "
            "added as a position encoding. toast has no plugin for this attention yet."
        )
    return NO_FORM.get(name) or NO_PLUGIN.get(name, "")
