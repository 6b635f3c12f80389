"""Pre-tuned artifacts: selection and feedback path with their lineage, the starting point of tuning.

A folder holds `feedback.safetensors` (`xi`, `P`, and `A.l`, `B.l` by the levels of the backbone, counted from 0),
`artifact.json` (backbone, fingerprint, recipe and results) and `README.md`. An exported file holds the same tensors,
with the content of `artifact.json` in its metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from toast_cli.model.model import Model
from toast_cli.recipe.lookup import resolve_recorded_name
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.feedback import get_base_weight
from toast_cli.steering.steering import Steering
from toast_cli.storage.adapter import ARTIFACT_FOLDER as FOLDER
from toast_cli.storage.adapter import ARTIFACT_METADATA_KEY as ENTRY
from toast_cli.storage.adapter import build_adapter_config, build_files_metadata, read_backbone_files
from toast_cli.storage.checksums import (
    add_checksum,
    dump_checksummed_json,
    parse_record,
    read_checksummed_tensors,
    read_metadata,
    write_checksummed_tensors,
)
from toast_cli.storage.load_model import LoadedModel, check_quantization, rebuild_model
from toast_cli.storage.model_card import format_artifact_card
from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_json, write_tensors, write_text
from toast_cli.utils.hub import resolve_place
from toast_cli.utils.tensor_fingerprints import compute_fingerprint, copy_tensors, gather_full_tensors
from toast_cli.utils.version import __version__

FORMAT = 1
FEEDBACK_FILE = "feedback.safetensors"
ARTIFACT_CONFIG_FILE = "artifact.json"
SHIPPED_ARTIFACT = "shipped"
"""Used instead of a path for the artifact that comes with the recipe's backbone."""


@dataclass(frozen=True)
class Lineage:
    """The origin of an artifact: backbone, recipe and results."""

    backbone: str
    backbone_fingerprint: str
    recipe: dict[str, Any]
    results: dict[str, Any]
    format: int = FORMAT
    toast_version: str = __version__


def save_artifact(run: RunFolder, model: Model, recipe: Recipe, results: dict[str, Any]) -> None:
    """Write selection and feedback path to a run's folder. All processes must call it.

    The lineage is written last, so an artifact that has one is complete.
    """
    assert isinstance(model.adapted.steering, Steering)
    lineage = Lineage(recipe.backbone.name, model.backbone_fingerprint, recipe.model_dump(mode="json"), results)
    folder, tensors = run.path / FOLDER, gather_full_tensors(get_feedback_tensors(model.adapted.steering))
    if not run.writes:
        return
    write_tensors(folder / FEEDBACK_FILE, tensors)
    write_text(
        folder / "README.md", format_artifact_card(lineage.backbone, lineage.backbone_fingerprint, lineage.recipe)
    )
    write_json(folder / ARTIFACT_CONFIG_FILE, add_checksum(asdict(lineage), [folder / FEEDBACK_FILE]))


def save_artifact_file(
    path: Path,
    model: Model,
    lineage: Lineage,
    *,
    with_files: bool = False,
    cast: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write selection, feedback path and their lineage to one file, each tensor converted by `cast`.

    `with_files` includes the files that the backbone is built from.
    """
    assert isinstance(model.adapted.steering, Steering)
    tensors = {name: cast(tensor) for name, tensor in get_feedback_tensors(model.adapted.steering).items()}
    files = build_files_metadata(model.backbone) if with_files else {}
    write_checksummed_tensors(path, tensors, {ENTRY: dump_checksummed_json(asdict(lineage)), **files})


def is_artifact(path: Path) -> bool:
    """Return whether `path` is a pre-tuned artifact: a run folder with one, an artifact folder or an exported file."""
    if path.is_dir():
        return any((folder / ARTIFACT_CONFIG_FILE).is_file() for folder in (path / FOLDER, path))
    try:
        return ENTRY in read_metadata(path)
    except (SafetensorError, OSError):  # the function that opens the file as something else reports the error
        return False


def find_tensors_file(path: Path) -> Path:
    """Return the file with the tensors of an artifact.

    Raises:
        UsageError: There is no artifact at `path`.
    """
    if not (is_artifact(path) or path.is_file()):
        raise _make_no_artifact_error(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    return folder / FEEDBACK_FILE if folder.is_dir() else folder


def read_artifact(path: Path) -> tuple[Lineage, dict[str, Tensor]]:
    """Return lineage and tensors of an artifact.

    Raises:
        UsageError: There is no artifact at `path`.
        ToastError: The artifact is damaged or has a newer format.
    """
    tensors_in = find_tensors_file(path)
    folder = tensors_in.parent if path.is_dir() else path
    try:
        metadata, tensors = read_checksummed_tensors(tensors_in)
        if folder.is_file() and ENTRY not in metadata:
            raise _make_no_artifact_error(path)
        text = (folder / ARTIFACT_CONFIG_FILE).read_bytes() if folder.is_dir() else metadata[ENTRY]
        return _resolve_backbone_name(parse_record(Lineage, text, FORMAT, folder)), tensors
    except (ValueError, TypeError, OSError, RecursionError, SafetensorError) as error:
        raise ToastError(
            f"{folder} is damaged.", f"{type(error).__name__}: {error}", "Pre-tune again.", code="artifact.damaged"
        ) from error


def _resolve_backbone_name(lineage: Lineage) -> Lineage:
    """Return the lineage with the current name of its backbone, which may have been renamed since."""
    name = resolve_recorded_name(lineage.backbone, lineage.toast_version)
    if name == lineage.backbone:
        return lineage
    recipe = {**lineage.recipe, "backbone": {**lineage.recipe["backbone"], "name": name}}
    return replace(lineage, backbone=name, recipe=recipe)


def _make_no_artifact_error(path: Path) -> UsageError:
    return UsageError(
        f"There is no pre-tuned artifact or tuned model at {path}.",
        what_to_do="Name the folder of a finished run of 'toast tune' or 'toast pretune', the adapter or artifact in "
        "it, or its export as safetensors or hf.",
        code="artifact.missing",
    )


def load_artifact(path: Path, weights: str | None = None) -> LoadedModel:
    """Return the backbone of an artifact, steered by it. Its head has a single, untrained class.

    `weights` replaces the weights file of the recipe.

    Raises:
        UsageError: There is no artifact at `path`.
        ToastError: The artifact is damaged, or the backbone's weights are missing or not those it was made for.
    """
    lineage, _ = read_artifact(path)
    values, classes = lineage.recipe, tuple[str, ...]()
    if values["task"]["name"] != "language":
        values, classes = {**values, "task": "classification"}, ("none",)
    recipe = build_recipe(values, {}, origin=str(path))
    model, recipe = rebuild_model(path, recipe, classes, weights, read_backbone_files(path))
    initialize_from_artifact(path, model, recipe)
    return LoadedModel(model.eval(), recipe, classes, build_adapter_config(model, recipe, classes), path)


def resolve_artifact_path(recipe: Recipe) -> Path:
    """Return the path of the recipe's `init_from`.

    Raises:
        UsageError: No artifact comes with this backbone.
    """
    assert recipe.init_from is not None
    if recipe.init_from != SHIPPED_ARTIFACT:
        return resolve_place(recipe.init_from)
    shipped = recipe.plugins.backbone.artifact
    if shipped is None:
        raise UsageError(
            f"No pre-tuned feedback path comes with '{recipe.backbone.name}'.",
            what_to_do="Make one with 'toast pretune', or leave init_from out (init_from=null).",
            code="artifact.none-shipped",
        )
    return shipped


@torch.no_grad()
def initialize_from_artifact(path: Path, model: Model, recipe: Recipe) -> Lineage:
    """Copy an artifact's tensors to a model that steers some or all of the artifact's levels.

    A feedback path is independent of the image size: one that was pre-tuned at 224 pixels can start a model at 512.

    Raises:
        UsageError: There is no artifact at `path`, or the model has no feedback path.
        ToastError: The artifact is damaged, or was made for another backbone or other levels.
    """
    lineage, tensors = read_artifact(path)
    steering = model.adapted.steering
    if not isinstance(steering, Steering):
        raise UsageError(
            "This method has no feedback path to initialize.",
            what_to_do="Leave --init-from out, or use toast or toast-lite.",
            code="artifact.no-feedback-path",
        )
    check_quantization(path, lineage.recipe, model.backbone)
    if lineage.backbone_fingerprint not in (
        model.backbone_fingerprint,
        compute_fingerprint_at_size(lineage.recipe["backbone"], recipe),
    ):
        raise ToastError(
            f"{path} was pre-tuned on other weights, those of '{lineage.backbone}'.",
            "A feedback path only fits the backbone that it was trained for.",
            "Use that backbone and its weights, pre-tune on this backbone, or start without (init_from=null).",
            code="artifact.wrong-backbone",
        )
    places = get_feedback_tensors(steering)
    unlike = [name for name, place in places.items() if name not in tensors or tensors[name].shape != place.shape]
    if unlike:
        both = set(unlike) & tensors.keys()
        raise ToastError(
            f"{path} does not fit the levels that are steered.",
            f"Missing or with another shape: {', '.join(sorted(unlike)[:5])}.",
            "Pre-tune with the same feedback and feedback_level"
            + (
                ": if the widths of levels differ, the selection only fits the level that it was pre-tuned at."
                if both
                else ", or with full feedback."
            ),
            code="artifact.wrong-shape",
        )
    copy_tensors({name: tensors[name] for name in places}, places)
    return lineage


def describe_feedback_mismatch(lineage: Lineage, method: NamedOptions) -> str | None:
    """Return a message if an artifact was pre-tuned with another `feedback` than the method's, else None.

    With early feedback, the selection reads the tokens of another level than the one xi and P were pre-tuned on.
    """
    theirs = lineage.recipe["method"].get("feedback")
    ours = getattr(method, "feedback", None)
    if theirs is None or theirs == ours:
        return None
    selects = " and selects at an earlier level than xi and P were pre-tuned for" if ours == "early" else ""
    return (
        f"It was pre-tuned with {theirs} feedback. "
        f"This run has {ours} feedback: it uses the levels that it steers{selects}."
    )


def compute_fingerprint_at_size(theirs: Mapping[str, Any], recipe: Recipe) -> str | None:
    """Return the fingerprint of the recipe's backbone at the image size of another one, or None if they are equal."""
    own = recipe.backbone.model_dump(mode="json")
    card = recipe.plugins.backbone
    if "image_size" not in card.options.model_fields or own["image_size"] == theirs.get("image_size"):
        return None
    options = card.options(**{**own, "image_size": theirs.get("image_size")})
    with torch.random.fork_rng(devices=[]):
        return compute_fingerprint(card.build(options).module)


def get_feedback_tensors(steering: Steering) -> dict[str, Tensor]:
    """Return the tensors of a feedback path by name. For Lite, they are the frozen ones under its factors."""
    named: dict[str, Tensor] = {"xi": steering.selection.xi.data, "P": steering.selection.P.data}
    for level, A_l, B_l in zip(steering.levels, steering.feedback.A, steering.feedback.B, strict=True):
        named[f"A.{level}"], named[f"B.{level}"] = get_base_weight(A_l).data, get_base_weight(B_l).data
    return named
