"""Import of checkpoints of the authors' released code, as a run or as a pre-tuned artifact."""

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
from toast_cli.recipe.safe_yaml import to_yaml
from toast_cli.recipe.unvalidated_recipe import PartialRecipe
from toast_cli.steering.feedback import Deconvolution, get_base_weight
from toast_cli.steering.steering import Steering
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.storage.model_card import format_import_card
from toast_cli.storage.pretuned import save_artifact
from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_tensors
from toast_cli.utils.names import to_file_name
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
    """Import a checkpoint of the authors' released code.

    Args:
        path: A file, or a folder of shards, with the full model or only the top-down parameters.
        backbone: The backbone of the checkpoint: a short name, or FAMILY:MODEL.
        weights: Weights of the backbone, if the checkpoint does not contain them.
        kind: "run" or "artifact". None imports a run if there is a head, otherwise an artifact.
        classes: Class names in the order of the head's rows. None uses the indices.
        dataset: Name of the training data, for the record.
        overrides: Dotted recipe fields. The authors' deviations from the paper are enabled unless overridden here.
        output_dir: Folder to create; None creates one in runs/.

    Returns:
        The run folder (for an artifact, it contains the artifact), and a record of what happened to the tensors.

    Raises:
        UsageError: The options contradict each other or the checkpoint.
        ToastError: The checkpoint is damaged or contains code, or its tensors do not match the model.
    """
    tensors, other_entries = read_checkpoint(path)
    card: Card = registry.load_backbone_card(backbone)
    bare = card.build(card.options(**{"name": backbone, "weights": "none"}))
    found = bare.authors(tensors)
    if not found.feedback:
        raise ToastError(
            f"{path} contains no top-down parameters.",
            f"No tensor is named prompt, top_down_transform or decoders; it has {', '.join(list(tensors)[:3])} ...",
            "To use it as backbone weights, pass it to --weights.",
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
            f"{path} was trained with the method {values['method']['name']} for the task {values['task']}.",
            what_to_do="Remove the overrides of method and task.",
            code="recipe.wrong-method",
        )
    name = f"import-{path.stem}-{''.join(c if c.isalnum() else '-' for c in backbone)}"
    folder = RunFolder.create(output_dir, to_file_name(name))
    try:
        if whole:
            own = folder.path.absolute() / BACKBONE_FILE
            write_tensors(own, found.network, {"format": "pt"})
            recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": str(own)})})
        model = build_model(recipe, names).eval()
        unused = _load_tensors(model, found, path, with_head=kind == "run")
        account = {
            "imported_from": path.name,
            "file_sha256": hash_checkpoint(path),
            "kind": kind,
            "tensors": len(tensors),
            "network": len(found.network),
            "feedback": len(found.feedback),
            "head": len(found.head),
            "left_out": {**found.left_out, **unused},
            "beside": other_entries,
            "departures": {name: getattr(recipe.backbone, name) for name in card.departures},
            "toast_version": __version__,
        }
        folder.write_recipe(to_yaml(recipe))
        if kind == "run":
            trained, frozen = model.get_trained_parameters(), model.get_frozen_additions()
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
    """Return whether the checkpoint contains the backbone's weights. Second names of tied weights are removed.

    Raises:
        UsageError: The checkpoint contains them, and `weights` is given.
        ToastError: Some are missing, unknown or of another shape, or tied weights differ.
    """
    if not found.network:
        return False
    if weights is not None:
        raise UsageError(
            f"{path} contains the backbone's weights.", what_to_do="Remove --weights.", code="cli.conflicting-options"
        )
    state = bare.module.state_dict()
    owned = {name for name, _ in (*bare.module.named_parameters(), *bare.module.named_buffers())} & state.keys()
    _require_matching_tensors(
        found.network,
        {name: state[name] for name in owned},
        f"{path} does not fit the backbone.",
        "Pass the --backbone that the checkpoint was trained with.",
        optional=state.keys(),
    )
    places = {state[name].data_ptr(): name for name in owned}
    for name in found.network.keys() - owned:  # a second name of a tied weight
        own = places.get(state[name].data_ptr())
        if own in found.network and not torch.equal(found.network[name], found.network[own]):
            raise ToastError(
                f"{name} and {own} in {path} differ, but they are tied in this model.",
                code="checkpoint.tied-weights-differ",
            )
        del found.network[name]
    return True


def _require_matching_tensors(
    given: Mapping[str, Tensor], places: Mapping[str, Tensor], what: str, to_do: str, optional: Any = ()
) -> None:
    """Check that the names, shapes and types of the tensors match those of the model.

    Raises:
        ToastError: Some do not match; the message names the first three of each kind.
    """
    mismatches = {
        "missing": sorted(places.keys() - given.keys()),
        "unknown": sorted(given.keys() - places.keys() - set(optional)),
        "wrong shape": sorted(
            f"{name} ({list(given[name].shape)}, not {list(places[name].shape)})"
            for name in given.keys() & places.keys()
            if given[name].shape != places[name].shape
        ),
        "wrong type": sorted(
            f"{name} ({given[name].dtype})"
            for name in given.keys() & places.keys()
            if given[name].is_floating_point() != places[name].is_floating_point()
        ),
    }
    reasons = [
        f"{word}: {', '.join(names[:3])}{' and more' if names[3:] else ''}"
        for word, names in mismatches.items()
        if names
    ]
    if reasons:
        raise ToastError(what, "; ".join(reasons), to_do, code="checkpoint.wrong-tensors")


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
                "The checkpoint contains no head.",
                what_to_do="Import it with --as artifact.",
                code="checkpoint.no-head",
            )
        return ("none",)
    if classes is not None and len(classes) != rows:
        raise UsageError(
            f"The head has {rows} rows, but {len(classes)} class names were given.",
            what_to_do="Pass one class name per row, in the order of training.",
            code="data.wrong-class-count",
        )
    if classes is not None and len(set(classes)) != rows:
        raise UsageError(
            f"The class name '{next(name for name in classes if classes.count(name) > 1)}' occurs twice.",
            code="data.duplicate-class",
        )
    return tuple(classes) if classes is not None else tuple(str(index) for index in range(rows))


def _infer_method(found: AuthorsCheckpoint) -> dict[str, Any]:
    """Infer the method: TOAST-Lite with its rank if there are low-rank factors, otherwise TOAST."""
    trains_P = {"train_P": "P" in found.feedback}
    factors = [tensor for name, tensor in found.feedback.items() if name.endswith("lora_A")]
    if factors:
        return {"name": "toast-lite", "rank": factors[0].shape[0], "start": "random", **trains_P}
    return {"name": "toast", "start": "random", **trains_P}


@torch.no_grad()
def _load_tensors(model: Model, found: AuthorsCheckpoint, path: Path, *, with_head: bool) -> dict[str, str]:
    """Load feature selection, feedback path and head into the model.

    Returns:
        The reason for every tensor that was not used.
    """
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
    unused = {}
    given = dict(found.feedback)
    if "P" not in given:
        given["P"] = torch.eye(len(places["P"]))
        unused["top_down_transform"] = "not in the file; the identity is used"
    _require_matching_tensors(
        given,
        places,
        f"The top-down parameters of {path} do not fit the backbone.",
        "Pass the --backbone that the checkpoint was trained with.",
    )
    for name, place in places.items():
        place.copy_(given[name])
    if not found.head:
        return unused
    if not with_head:
        return unused | {f"head.{name}": "an artifact has no head" for name in found.head}
    head = dict(model.head.state_dict())
    _require_matching_tensors(found.head, head, f"The head of {path} does not fit the model.", "")
    model.head.load_state_dict(found.head)
    return unused
