"""The way in: a checkpoint of the authors' released code as a run, or as a pre-tuned artifact."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli import registry
from toast_cli.backbones.base import AuthorsCheckpoint, Backbone, Card
from toast_cli.export.read_checkpoint import hash_checkpoint, read_checkpoint
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.parse import validate_partial_recipe
from toast_cli.recipe.partial_recipe import PartialRecipe
from toast_cli.recipe.safe_yaml import to_yaml
from toast_cli.steering.feedback import Deconvolution, get_base_weight
from toast_cli.steering.steering import Steering
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.storage.model_card import format_import_card
from toast_cli.storage.pretuned import save_artifact
from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_tensors
from toast_cli.utils.version import __version__

BACKBONE_FILE = "backbone.safetensors"


def import_checkpoint(
    path: Path,
    backbone: str,
    *,
    weights: str | None = None,
    kind: str | None = None,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Make a run (or, with `kind` "artifact", a pre-tuned artifact in a run folder) of a checkpoint.

    Args:
        path: full model or top-down parts, as the authors' code saves them: a file, or a folder with its parts.
        backbone: the short name, or FAMILY:MODEL, that it was made for.
        weights: the backbone's, where the checkpoint does not bring them.
        kind: "run" or "artifact"; left out, a run where there is a head to use, else an artifact.
        classes: names in the order of the head's rows; left out, their numbers.
        dataset: what it was trained on, to be recorded.
        overrides: dotted fields of the recipe; the family's departures from the paper are on unless named here.
        output_dir: the run folder.

    Returns:
        The folder, and an account of every tensor.

    Raises:
        UsageError: the options do not go together.
        ToastError: the file is damaged or hostile, or a tensor has no place or a place no tensor.
    """
    tensors, beside = read_checkpoint(path)
    card: Card = registry.load_backbone_card(backbone)
    bare = card.build(card.options(**{"name": backbone, "weights": "none"}))
    found = bare.authors(tensors)
    if not found.feedback:
        raise ToastError(
            f"{path} holds no top-down parts.",
            f"Nothing is called prompt, top_down_transform or decoders; it begins with {', '.join(list(tensors)[:3])}.",
            "Plain weights of a backbone go to --weights.",
            code="checkpoint.no-feedback",
        )
    whole = _has_backbone_weights(found, bare, path, weights)
    kind = kind or ("run" if found.head or bare.output() is not None else "artifact")
    names = _resolve_class_names(found, bare, classes, kind)
    values: dict[str, Any] = {
        "backbone": {"name": backbone, "weights": weights, **card.departures},
        "dataset": dataset or "unknown",
        "method": _infer_method(found),
        "task": "language" if bare.output() is not None else "classification",
    }
    del bare
    draft = PartialRecipe(values, {}, "options")
    apply_overrides(draft, overrides)
    recipe = validate_partial_recipe(draft)
    if recipe.method.name != values["method"]["name"] or recipe.task.name != values["task"]:
        raise UsageError(
            f"What is in {path} is {values['method']['name']} for {values['task']}.",
            what_to_do="Leave method and task as they are.",
            code="recipe.wrong-method",
        )
    folder = RunFolder.create(output_dir, f"import-{path.stem}-{''.join(c if c.isalnum() else '-' for c in backbone)}")
    try:
        if whole:
            own = folder.path.absolute() / BACKBONE_FILE
            write_tensors(own, found.network, {"format": "pt"})
            recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": str(own)})})
        model = build_model(recipe, names).eval()
        left = _load_tensors(model, found, path, with_head=kind == "run")
        account = {
            "imported_from": path.name,
            "file_sha256": hash_checkpoint(path),
            "kind": kind,
            "tensors": len(tensors),
            "network": len(found.network),
            "feedback": len(found.feedback),
            "head": len(found.head),
            "left_out": {**found.left_out, **left},
            "beside": beside,
            "departures": {name: getattr(recipe.backbone, name) for name in card.departures},
            "toast_version": __version__,
        }
        folder.write_recipe(to_yaml(recipe))
        if kind == "run":
            trained, frozen = model.trained(), model.get_frozen_additions()
            save_adapter_folder(
                folder.adapter,
                trained,
                frozen,
                build_adapter_config(model, recipe, names),
                format_import_card(recipe.method.name, recipe.backbone.name, account),
            )
        else:
            save_artifact(folder, model, recipe, account)
        folder.write_results(account)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return folder, account


def _has_backbone_weights(found: AuthorsCheckpoint, bare: Backbone, path: Path, weights: str | None) -> bool:
    """Whether the checkpoint brings the backbone's weights, all of them or none; those of two names are left one.

    Raises:
        UsageError: it brings them, and others are given.
        ToastError: some are missing, unknown or of another shape.
    """
    if not found.network:
        return False
    if weights is not None:
        raise UsageError(
            f"{path} brings the backbone's weights.", what_to_do="Leave --weights out.", code="cli.conflicting-options"
        )
    state = bare.module.state_dict()
    owned = {name for name, _ in (*bare.module.named_parameters(), *bare.module.named_buffers())} & state.keys()
    _require_matching_tensors(
        found.network,
        {name: state[name] for name in owned},
        f"{path} does not fit the backbone.",
        "Give the --backbone that it was made for.",
        optional=state.keys(),
    )
    places = {state[name].data_ptr(): name for name in owned}
    for name in found.network.keys() - owned:  # a second name of a tensor that the model has once
        own = places.get(state[name].data_ptr())
        if own in found.network and not torch.equal(found.network[name], found.network[own]):
            raise ToastError(
                f"{path} holds other numbers under {name} than under {own}, which are one in this model.",
                code="checkpoint.tied-weights-differ",
            )
        del found.network[name]
    return True


def _require_matching_tensors(
    given: Mapping[str, Tensor], places: Mapping[str, Tensor], what: str, to_do: str, optional: Any = ()
) -> None:
    """Refuse unless every tensor has a place of its shape and every place a tensor.

    Raises:
        ToastError: naming the first few of each kind.
    """
    wrong = {
        "missing": sorted(places.keys() - given.keys()),
        "unknown": sorted(given.keys() - places.keys() - set(optional)),
        "of another shape": sorted(
            f"{name} ({list(given[name].shape)}, not {list(places[name].shape)})"
            for name in given.keys() & places.keys()
            if given[name].shape != places[name].shape
        ),
        "not of the right type": sorted(
            f"{name} ({given[name].dtype})"
            for name in given.keys() & places.keys()
            if given[name].is_floating_point() != places[name].is_floating_point()
        ),
    }
    told = [
        f"{word}: {', '.join(names[:3])}{' and more' if names[3:] else ''}" for word, names in wrong.items() if names
    ]
    if told:
        raise ToastError(what, "; ".join(told), to_do, code="checkpoint.wrong-tensors")


def _resolve_class_names(
    found: AuthorsCheckpoint, bare: Backbone, classes: Sequence[str] | None, kind: str
) -> tuple[str, ...]:
    if bare.output() is not None:
        return ()
    weight = found.head.get("weight")
    rows = 0 if weight is None or not weight.dim() else len(weight)
    if not rows:
        if kind == "run":
            raise ToastError(
                "There is no head in the checkpoint.",
                what_to_do="Import it with --as artifact.",
                code="checkpoint.no-head",
            )
        return ("none",)
    if classes is not None and len(classes) != rows:
        raise UsageError(
            f"The head has {rows} rows, and {len(classes)} classes are named.",
            what_to_do="Name one class a row, in the order of training.",
            code="data.wrong-class-count",
        )
    if classes is not None and len(set(classes)) != rows:
        raise UsageError("A class is named twice.", code="data.duplicate-class")
    return tuple(classes) if classes is not None else tuple(str(index) for index in range(rows))


def _infer_method(found: AuthorsCheckpoint) -> dict[str, Any]:
    """The method that the tensors are of: Lite where there are factors, whose rank they show."""
    trains_P = {"train_P": "P" in found.feedback}
    factors = [tensor for name, tensor in found.feedback.items() if name.endswith("lora_A")]
    if factors:
        return {"name": "toast-lite", "rank": factors[0].shape[0], "start": "random", **trains_P}
    return {"name": "toast", "start": "random", **trains_P}


@torch.no_grad()
def _load_tensors(model: Model, found: AuthorsCheckpoint, path: Path, *, with_head: bool) -> dict[str, str]:
    """Put selection, feedback path and head into their places; returns what was left out, and why."""
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    places: dict[str, Tensor] = {"xi": steering.selection.xi.data, "P": steering.selection.P.data}
    for name, layers in (("A", steering.feedback.A), ("B", steering.feedback.B)):
        for level, layer in zip(steering.levels, layers, strict=True):
            places[f"{name}.{level}"] = get_base_weight(layer).data
            inner = layer.patch if isinstance(layer, Deconvolution) else layer
            for factor in ("lora_A", "lora_B"):
                if hasattr(inner, factor):
                    parts = getattr(inner, factor)
                    assert isinstance(parts, nn.ModuleDict)
                    weight = parts["default"].weight
                    assert isinstance(weight, Tensor)
                    places[f"{name}.{level}.{factor}"] = weight.data
    left = {}
    given = dict(found.feedback)
    if "P" not in given:
        given["P"] = torch.eye(len(places["P"]))
        left["top_down_transform"] = "not in the file: the identity stands for it"
    _require_matching_tensors(
        given, places, f"The top-down parts of {path} do not fit the backbone.", "Give the --backbone it is of."
    )
    for name, place in places.items():
        place.copy_(given[name])
    if not found.head:
        return left
    if not with_head:
        return left | {f"head.{name}": "an artifact has no head" for name in found.head}
    head = dict(model.head.state_dict())
    _require_matching_tensors(found.head, head, f"The head of {path} does not fit.", "")
    model.head.load_state_dict(found.head)
    return left
