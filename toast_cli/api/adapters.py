"""Adapters of one backbone: several in memory at once, and the folder that one is saved in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toast_cli.backbones.image_options import ImageOptions
from toast_cli.model.generation import choose_template
from toast_cli.model.model import BuiltBackbone, Model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.steering import Steering
from toast_cli.storage.adapter import (
    ADAPTER_CONFIG_FILE,
    FROZEN_TENSORS_FILE,
    TRAINED_TENSORS_FILE,
    build_adapter_config,
    save_adapter_folder,
)
from toast_cli.storage.load_model import LoadedModel, load_model
from toast_cli.storage.model_card import format_saved_card
from toast_cli.utils.errors import UsageError
from toast_cli.utils.files import make_write_error

ADAPTER_FILES = frozenset((TRAINED_TENSORS_FILE, FROZEN_TENSORS_FILE, ADAPTER_CONFIG_FILE, "README.md"))
DESCRIBING_OPTIONS = {"name", "weights", "dtype", "image_size", "drop_path"}
"""Options of a backbone that do not change what it computes, or that its fingerprint and image size tell."""


@dataclass(frozen=True)
class Adapter:
    """What a `Steered` switches when another adapter becomes active.

    Attributes:
        model: Backbone, method and head.
        classes: Class names in the order of the logits; empty for a language model.
        images: Image options of the run, in addition to the preprocessing of the backbone.
        template: Prompt template of a language model; None uses prompts as they are.
        values: The recipe as plain values; None if there is none.
        whole: Whether the backbone's weights come from an export, and not from its name.
    """

    model: Model
    classes: tuple[str, ...]
    images: ImageOptions
    template: str | None
    values: Mapping[str, Any] | None
    whole: bool = False

    def build_recipe(self) -> Recipe:
        """Return the recipe.

        Raises:
            UsageError: There is none.
        """
        if self.values is None:
            raise UsageError(
                "This model has no recipe.",
                "It was built by hand.",
                "Build it with toast_cli.load, steer or tune.",
                code="adapter.no-recipe",
            )
        return build_recipe(self.values, {}, origin="the model")


def load_adapter(beside: Adapter, run: str | Path) -> Adapter:
    """Load an adapter for the backbone of another one, whose tensors it shares.

    Raises:
        UsageError: One of the two changes the backbone's own weights, or the backbone has other options.
        ToastError: The adapter belongs to another backbone, or cannot be read.
    """
    if beside.whole or beside.model.trains_backbone:
        raise _make_own_backbone_error("this model")
    built = BuiltBackbone(beside.model.backbone, beside.model.stock).share()
    loaded: LoadedModel = load_model(Path(run), built=built)
    if loaded.config.whole or loaded.model.trains_backbone:
        raise _make_own_backbone_error(str(run))
    recipe, model = loaded.recipe, loaded.model
    own, other = (
        options.model_dump(exclude=DESCRIBING_OPTIONS) for options in (beside.build_recipe().backbone, recipe.backbone)
    )
    if model.backbone.preprocessing is not None and loaded.config.preprocessing is not None:
        own["image_size"] = tuple(model.backbone.preprocessing.image_size)
        other["image_size"] = tuple(loaded.config.preprocessing["image_size"])
    differing = [name for name in own.keys() | other.keys() if own.get(name) != other.get(name)]
    if differing:
        name = min(differing)
        raise UsageError(
            f"{run} needs another backbone.{name}: {other.get(name)} instead of {own.get(name)}.",
            "All adapters of a model share one backbone.",
            f"Load it by itself: toast_cli.load({str(run)!r}).",
            code="adapter.other-backbone",
        )
    template = choose_template(recipe, model.backbone.tokenizer)
    return Adapter(model, loaded.classes, recipe.images, template, recipe.model_dump(mode="json"))


def _make_own_backbone_error(which: str) -> UsageError:
    return UsageError(
        f"Cannot share the backbone: {which} has backbone weights of its own.",
        "Full fine-tuning, and an export of a whole model, replace the weights that adapters share.",
        "Load it by itself, or use a run of toast, toast-lite, linear, vpt or lora.",
        code="adapter.own-backbone",
    )


def save_adapter(adapter: Adapter, folder: Path, overwrite: bool) -> None:
    """Write an adapter folder, whole or not at all.

    Raises:
        UsageError: The folder holds files already, or the model cannot be saved.
        ToastError: The folder cannot be written.
    """
    recipe, model = adapter.build_recipe(), adapter.model
    if model.adapted.steering is not None and not isinstance(model.adapted.steering, Steering):
        raise UsageError(
            "A folded model cannot be saved: it is for inference only.",
            what_to_do="Save the model of the run that it was exported from, or copy the exported file.",
            code="adapter.folded",
        )
    _check_folder(folder, overwrite)
    config = build_adapter_config(model, recipe, adapter.classes)
    trained = dict(model.get_trained_parameters())
    if adapter.whole:
        config = replace(config, whole=True)
        trained = {**model.get_network_tensors(), **trained}  # type: ignore[dict-item]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name[:20]}.", dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            save_adapter_folder(made, trained, model.get_frozen_additions(), config, format_saved_card(config))
            if folder.exists():
                folder.rename(Path(temporary) / "before")
            made.rename(folder)
    except OSError as error:
        raise make_write_error(folder, error) from error


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Check that a folder does not exist, is empty, or holds an adapter that may be overwritten.

    Raises:
        UsageError: It holds other files, or `overwrite` is False.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    others = [path.name for path in folder.iterdir() if path.name not in ADAPTER_FILES] if folder.is_dir() else ["it"]
    if overwrite and not others:
        return
    raise UsageError(
        f"{folder} already exists.",
        f"It is not only an adapter: it holds {min(others)}." if overwrite else "",
        "Choose another folder." if overwrite else "Choose another folder, or pass overwrite=True.",
        code="disk.already-exists",
    )
