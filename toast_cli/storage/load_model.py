"""Models rebuilt from adapters on disk, also where an earlier version gave a backbone's name other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from toast_cli.model.model import Model, build_model, fold_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.resolve import resolve_recorded_backbone
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import FULL_MODEL_FILE, REEXPORT_HINT, AdapterConfig, read_adapter, read_backbone_files
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class LoadedModel:
    """A model rebuilt from an adapter, with the recipe it was trained by."""

    model: Model
    recipe: Recipe
    classes: tuple[str, ...]
    config: AdapterConfig
    path: Path


def load_model(path: Path, weights: str | None = None) -> LoadedModel:
    """Rebuild the model of a run or adapter folder, or of an exported file or folder, on the CPU, in evaluation mode.

    `weights` replaces the file that the recipe names for the backbone, which is otherwise looked for where it was and
    beside what is loaded.

    Raises:
        UsageError: nothing of that kind is at `path`, or it brings the weights that are given besides.
        ToastError: it is damaged or incomplete, or the backbone's weights are gone, or not those it was trained on.
    """
    if (path / FULL_MODEL_FILE).is_file() and (path / "config.json").is_file():
        path = path / FULL_MODEL_FILE
    config, tensors = read_adapter(path)
    recipe, whole = build_recipe(config.recipe, {}, origin=str(path)), config.whole
    recipe = resolve_recorded_backbone(recipe, config.toast_version)
    if recipe.backbone.name != config.recipe["backbone"]["name"]:
        renamed = {**config.recipe["backbone"], "name": recipe.backbone.name}
        config = replace(config, recipe={**config.recipe, "backbone": renamed})
    if whole and weights is not None and path.is_file():
        raise UsageError(
            f"{path} brings the backbone's weights.", what_to_do="Leave --weights out.", code="weights.not-needed"
        )
    model, recipe = rebuild_model(path, recipe, config.classes, weights, read_backbone_files(path), empty=whole)
    if not whole and model.backbone_fingerprint != config.backbone_fingerprint:
        raise ToastError(
            f"{path} was trained on other weights of '{recipe.backbone.name}'.",
            "The fingerprint of the backbone differs from the one recorded with the adapter.",
            "Give the file that the run was trained with: --weights FILE.",
            code="weights.wrong-fingerprint",
        )
    if whole:
        model.float()  # the weights come in the type that they were exported in, and are computed with in this one
    if config.folded:
        model = fold_model(model)
    _load_tensors_into(model, tensors, whole, path)
    model.eval()
    return LoadedModel(model, recipe, config.classes, config, path)


def rebuild_model(
    path: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    weights: str | None,
    files: Mapping[str, str] | None = None,
    *,
    empty: bool = False,
) -> tuple[Model, Recipe]:
    """The model of what lies at `path`, its own tensors not put in yet, and the recipe with its weights found.

    Args:
        path: what is being loaded.
        recipe: as recorded there.
        classes: in the order of the logits.
        weights: in place of those that the recipe names.
        files: what the backbone is built from, where that is stored.
        empty: whether the backbone's tensors are stored as well, so that it needs no others.

    Raises:
        ToastError: the backbone cannot be built, because its weights are gone or otherwise.
    """
    given = recipe.backbone.weights
    recipe = _replace_weights(recipe, weights or _find_weights(given, path))
    try:
        built = _replace_weights(recipe, weights or "none") if empty else recipe
        return build_model(built, classes, files), recipe
    except (RuntimeError, MemoryError) as error:  # sizes that no recipe of ours has
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ToastError(
            f"The model of {path} cannot be built.", why, REEXPORT_HINT, code="adapter.cannot-rebuild"
        ) from error
    except ToastError as error:
        if empty or weights is not None or given in (None, "none") or Path(given).expanduser().exists():
            raise
        raise ToastError(
            f"The backbone of {path} cannot be built: its weights are not at {given} any more.",
            error.what,
            "Say where they are now: --weights FILE.",
            code="weights.missing-file",
        ) from error


def _replace_weights(recipe: Recipe, weights: str | None) -> Recipe:
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": weights})})


def _find_weights(recorded: str | None, path: Path) -> str | None:
    """Where the backbone's weights are: as recorded or, if they are not there, beside what is loaded or above it.

    A run folder that holds its backbone's weights can so be moved; that they are the right ones, the fingerprint shows.
    """
    if recorded is None or recorded == "none" or Path(recorded).expanduser().exists():
        return recorded
    near = [folder / Path(recorded).name for folder in (path.absolute(), *path.absolute().parents[:2])]
    return next((str(place) for place in near if place.exists()), recorded)


def _is_compatible(tensor: Tensor, place: Tensor) -> bool:
    """Whether it is of the place's shape and, whatever its precision, holds the same kind of numbers."""
    kinds = ((of.is_floating_point(), of.is_complex(), of.dtype == torch.bool) for of in (tensor, place))
    return tensor.shape == place.shape and len(set(kinds)) == 1


def _load_tensors_into(model: Model, tensors: Mapping[str, Tensor], whole: bool, path: Path) -> None:
    """Copy the tensors in, every one of them into its place and no place left empty."""
    state = model.state_dict()
    expected = {*model.trained(), *model.get_frozen_additions()}
    if whole:
        expected |= model.network_tensors().keys()
    missing, unexpected = expected - set(tensors), set(tensors) - expected
    misshapen = {name for name in expected & set(tensors) if not _is_compatible(tensors[name], state[name])}
    if missing or unexpected or misshapen:
        found = "; ".join(
            f"{word}: {', '.join(sorted(which)[:3])}{' and more' if len(which) > 3 else ''}"
            for word, which in (("missing", missing), ("unknown", unexpected), ("of another shape or type", misshapen))
            if which
        )
        raise ToastError(f"{path} does not fit its own recipe.", found, REEXPORT_HINT, code="adapter.wrong-shape")
    model.load_state_dict(dict(tensors), strict=False)
