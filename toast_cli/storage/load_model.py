"""Models rebuilt from adapters on disk, including those whose backbone name meant other weights in earlier versions.

A plain backbone is loaded here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toast_cli.backbones.base import Backbone
from toast_cli.backbones.quantized_linear import get_quantization
from toast_cli.model.model import NETWORK_PREFIX, BuiltBackbone, Model, build_model, fold_model
from toast_cli.recipe.lookup import resolve_recorded_backbone
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import REEXPORT_HINT, AdapterConfig, find_model_file, read_adapter, read_backbone_files
from toast_cli.storage.merged_folder import read_merged_config
from toast_cli.storage.run_folder import read_working_folders
from toast_cli.utils.constants import UNNAMED_BACKBONE
from toast_cli.utils.errors import ToastError, UsageError

PASS_BACKBONE_HINT = "In Python, toast_cli.load(PATH, backbone=MODEL) takes a model that you have built."
"""What to do about a backbone that cannot be built from its name."""


@dataclass(frozen=True)
class LoadedModel:
    """A model rebuilt from an adapter, and the recipe that it was trained with."""

    model: Model
    recipe: Recipe
    classes: tuple[str, ...]
    config: AdapterConfig
    path: Path


def load_model(path: Path, weights: str | None = None, built: BuiltBackbone | None = None) -> LoadedModel:
    """Rebuild the model of a run folder, an adapter folder or an export, on the CPU and in evaluation mode.

    `weights` replaces the weights file of the recipe. By default, that file is searched at its recorded path and
    next to `path`. `built` is the backbone to use, on its device; its tensors are shared, but not changed: an adapter
    with weights for them gets a copy.

    Raises:
        UsageError: There is no model at `path`, or `weights` is given although it includes the backbone's weights.
        ToastError: The files are damaged or incomplete, or the backbone's weights are missing or not the trained ones.
    """
    path = find_model_file(path)
    if (merged := read_merged_config(path)) is not None:
        return _load_merged_folder(path, merged, given=weights is not None or built is not None)
    config, tensors = read_adapter(path)
    recipe, whole = build_recipe(config.recipe, {}, origin=str(path)), config.whole
    recipe = resolve_recorded_backbone(recipe, config.toast_version)
    if recipe.backbone.name != config.recipe["backbone"]["name"]:
        renamed = {**config.recipe["backbone"], "name": recipe.backbone.name}
        config = replace(config, recipe={**config.recipe, "backbone": renamed})
    if whole and weights is not None and path.is_file():
        raise UsageError(
            f"{path} includes the backbone's weights.", what_to_do="Leave --weights out.", code="weights.not-needed"
        )
    if built is not None:
        if not whole:
            check_quantization(path, config.recipe, built.backbone)
        if not whole and built.stock.fingerprint != config.backbone_fingerprint:
            raise ToastError(
                f"{path} was not trained on this backbone, but on '{recipe.backbone.name}', or on other weights of it.",
                "The fingerprint of the backbone differs from the one recorded with the adapter.",
                "Pass the model that it was trained on, or load it by itself: toast_cli.load(PATH).",
                code="weights.wrong-fingerprint",
            )
        built = built.copy() if _holds_weights_of(built, tensors) else built
    elif recipe.backbone.name.endswith(f":{UNNAMED_BACKBONE}"):
        raise UsageError(
            f"{path} was trained on a model that was built in Python and has no name to build it by.",
            what_to_do=f"Pass that model. {PASS_BACKBONE_HINT}",
            code="backbone.unnamed",
        )
    model, recipe = rebuild_model(path, recipe, config.classes, weights, read_backbone_files(path), whole, built)
    _restore_crop(model, config.preprocessing)
    if not whole and model.backbone_fingerprint != config.backbone_fingerprint:
        raise ToastError(
            f"{path} was trained on other weights of '{recipe.backbone.name}'.",
            "The fingerprint of the backbone differs from the one recorded with the adapter.",
            f"Give the file that the run was trained with: --weights FILE. {PASS_BACKBONE_HINT}",
            code="weights.wrong-fingerprint",
        )
    if whole:
        model.float()  # the weights have the data type of the export; computation is in float32
    if config.folded:
        model = fold_model(model)
    _load_tensors_into(model, tensors, whole, path)
    model.eval()
    return LoadedModel(model, recipe, config.classes, config, path)


def check_quantization(path: Path, recorded: Mapping[str, Any], backbone: Backbone) -> None:
    """Check that a backbone is quantized as the one of the recipe `recorded` at `path`.

    Raises:
        UsageError: It is not.
    """
    there, here = recorded["backbone"].get("quantize"), get_quantization(backbone.module)
    if there == here:
        return
    before, now = (f"in {kind}" if kind is not None else "without quantization" for kind in (there, here))
    raise UsageError(
        f"{path} was trained on a backbone {before}, and this one is {now}.",
        "What a method learned compensates for the rounding of the backbone that it was trained on.",
        f"Use backbone.quantize={there or 'null'}.",
        code="adapter.other-quantization",
    )


def _load_merged_folder(path: Path, config: AdapterConfig, given: bool) -> LoadedModel:
    """Return the model of a plain folder of transformers, in float32 as every export with its own weights.

    Its method is `full`, whatever the run's was: that one gives the backbone as it is.
    """
    if given:
        raise UsageError(
            f"{path} includes the backbone's weights.",
            what_to_do="Leave --weights and 'backbone' out.",
            code="weights.not-needed",
        )
    recipe = build_recipe({**config.recipe, "method": {"name": "full"}}, {}, origin=str(path))
    model = build_model(recipe, config.classes).float().eval()
    return LoadedModel(model, recipe, config.classes, replace(config, recipe=recipe.model_dump(mode="json")), path)


def rebuild_model(
    path: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    weights: str | None,
    files: Mapping[str, str] | None = None,
    empty: bool = False,
    built: BuiltBackbone | None = None,
) -> tuple[Model, Recipe]:
    """Build the model stored at `path` without its own tensors. Return it and the recipe with its weights found.

    Args:
        path: The run, adapter or export.
        recipe: The recipe recorded there.
        classes: Class names in the order of the logits.
        weights: Weights file that replaces the one of the recipe.
        files: Stored files that the backbone is built from.
        empty: Whether the backbone's tensors are stored at `path`, so that no weights are loaded.
        built: The backbone, if it is not to be built.

    Raises:
        ToastError: The backbone cannot be built, for example because its weights are missing.
    """
    given = recipe.backbone.weights
    recipe = _replace_weights(recipe, weights or find_weights(given, path))
    try:
        to_build = _replace_weights(recipe, weights or "none") if empty else recipe
        return build_model(to_build, classes, files, built), recipe
    except (RuntimeError, MemoryError) as error:  # sizes that no valid recipe has
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ToastError(
            f"The model of {path} cannot be built.", why, REEXPORT_HINT, code="adapter.cannot-rebuild"
        ) from error
    except ToastError as error:
        if given is None and weights is None and built is None and not empty:
            hint = f"{error.what_to_do} {PASS_BACKBONE_HINT}".strip()
            raise ToastError(error.what, error.reasons, hint, exit_code=error.exit_code, code=error.code) from error
        if empty or weights is not None or given in (None, "none") or Path(given).expanduser().exists():
            raise
        raise ToastError(
            f"The backbone of {path} cannot be built: its weights are no longer at {given}.",
            error.what,
            "Give their new path: --weights FILE.",
            code="weights.missing-file",
        ) from error


def _replace_weights(recipe: Recipe, weights: str | None) -> Recipe:
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": weights})})


def find_weights(recorded: str | None, path: Path) -> str | None:
    """Return the path of the backbone's weights: the recorded one if it exists, else next to or above `path`.

    A relative path is also looked up in the folder that the run was started in. This allows moving a run folder that
    holds the weights of its backbone. The fingerprint verifies them.
    """
    if recorded is None or recorded == "none" or Path(recorded).expanduser().exists():
        return recorded
    started = read_working_folders(path)
    near = [] if started is None else [started.folder / Path(recorded).expanduser()]
    near += [folder / Path(recorded).name for folder in (path.absolute(), *path.absolute().parents[:2])]
    return next((str(place) for place in near if place.exists()), recorded)


def _holds_weights_of(built: BuiltBackbone, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter's tensors include weights of the backbone itself, perhaps within a layer of PEFT."""
    names = {f"{NETWORK_PREFIX}{name}" for name in built.backbone.module.state_dict()}
    return any(name.replace(".base_layer.", ".") in names for name in tensors)


def _restore_crop(model: Model, recorded: dict[str, Any] | None) -> None:
    """Crop images as in training: versions that record no crop mode cropped the centre, for every backbone."""
    current = model.backbone.preprocessing
    if current is not None and recorded is not None:
        crop_mode = "center" if "crop_mode" not in recorded else current.crop_mode
        model.backbone.preprocessing = replace(current, crop_mode=crop_mode)


def _is_compatible(tensor: Tensor, place: Tensor) -> bool:
    """Return whether a tensor has the shape of `place` and the same kind of numbers, whatever the precision."""
    kinds = ((of.is_floating_point(), of.is_complex(), of.dtype == torch.bool) for of in (tensor, place))
    return tensor.shape == place.shape and len(set(kinds)) == 1


def _load_tensors_into(model: Model, tensors: Mapping[str, Tensor], whole: bool, path: Path) -> None:
    """Load the tensors. Every expected tensor must be present, and no other one."""
    state = model.state_dict()
    expected = {*model.get_trained_parameters(), *model.get_frozen_additions()}
    if whole:
        expected |= model.get_network_tensors().keys()
    missing, unexpected = expected - set(tensors), set(tensors) - expected
    misshapen = {name for name in expected & set(tensors) if not _is_compatible(tensors[name], state[name])}
    if missing or unexpected or misshapen:
        found = "; ".join(
            f"{word}: {', '.join(sorted(which)[:3])}{' and more' if len(which) > 3 else ''}"
            for word, which in (("missing", missing), ("unknown", unexpected), ("of another shape or type", misshapen))
            if which
        )
        raise ToastError(f"{path} does not match its own recipe.", found, REEXPORT_HINT, code="adapter.wrong-shape")
    model.load_state_dict(dict(tensors), strict=False)


def build_plain_model(backbone: str, weights: str | None, device: str | None) -> tuple[Model, Recipe]:
    """Build a backbone without a method, with an untrained head of one class, and a recipe that describes it."""
    raw = {
        "backbone": {"name": backbone, "weights": weights},
        "dataset": "demo",
        "method": "linear",
        "device": device or "auto",
    }
    recipe = build_recipe(raw, {}, origin="options")
    return build_model(recipe, ("none",)).eval(), recipe
