"""The prefix `hf:` of transformers' vision models. Torch-free."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Card, Family
from toast_hf_vision.options import HfVisionOptions
from toast_transformers.folders import list_model_classes

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone

VISION_MODEL_SUFFIXES = ("ForImageClassification", "VisionModel", "ViTModel")
"""Ends of the names of classes that only take images."""


def _build(source: str, options: HfVisionOptions) -> Backbone:
    from toast_hf_vision.loading import build_hf_vision

    return build_hf_vision(source, options)


def _rebuild(options: HfVisionOptions, folder: Path) -> Backbone:
    from toast_hf_vision.loading import build_hf_vision

    return build_hf_vision(str(folder), options.model_copy(update={"weights": "none"}))


def _make_card(source: str) -> Card:
    return Card(
        f"hf:{source}",
        "hf",
        None,
        f"transformers, {source}",
        partial(_build, source),
        HfVisionOptions,
        rebuild=_rebuild,
    )


def _wrap(module: Any) -> Backbone | None:
    from toast_hf_vision.loading import wrap_hf_vision

    return wrap_hf_vision(module)


def _recognize_folder(folder: Path) -> bool:
    """Return whether a folder holds a model of images alone."""
    has_images = (folder / "preprocessor_config.json").is_file()
    return has_images and any(name.endswith(VISION_MODEL_SUFFIXES) for name in list_model_classes(folder))


FAMILY = Family("hf", "transformers", _make_card, _wrap, generic=True, recognize=_recognize_folder)
