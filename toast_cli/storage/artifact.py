"""Pre-tuned artifacts: selection and feedback path with where they come from, to start tuning from.

A folder holds `feedback.safetensors` (`xi`, `P`, and `A.l`, `B.l` by the backbone's own levels, counted from 0),
`artifact.json` (backbone and its fingerprint, the whole recipe, results) and `README.md`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toast_cli import __version__, registry
from toast_cli.divided import put, whole
from toast_cli.errors import ToastError, UsageError
from toast_cli.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.feedback import base_weight
from toast_cli.steering.steering import Steering
from toast_cli.storage.atomic import write_json, write_tensors, write_text
from toast_cli.storage.run_folder import RunFolder

FORMAT = 1
TENSORS = "feedback.safetensors"
CONFIG = "artifact.json"
FOLDER = "artifact"
SHIPPED = "shipped"
"""In place of a path: the artifact that comes with the recipe's backbone."""


@dataclass(frozen=True)
class Lineage:
    """Where an artifact comes from."""

    backbone: str
    backbone_fingerprint: str
    recipe: dict[str, Any]
    results: dict[str, Any]
    format: int = FORMAT
    toast_version: str = __version__


def save_artifact(run: RunFolder, model: Model, recipe: Recipe, results: dict[str, Any]) -> None:
    """Write selection and feedback path into a run's folder; all processes must ask for it.

    The lineage comes last, so an artifact that has one is complete.
    """
    assert isinstance(model.adapted.steering, Steering)
    lineage = Lineage(recipe.backbone.name, model.backbone_fingerprint, recipe.model_dump(mode="json"), results)
    folder, tensors = run.path / FOLDER, whole(_tensors(model.adapted.steering))
    if not run.writes:
        return
    write_tensors(folder / TENSORS, tensors)
    write_text(folder / "README.md", _card(lineage))
    write_json(folder / CONFIG, asdict(lineage))


def artifact_path(recipe: Recipe) -> Path:
    """The folder that the recipe's `init_from` means.

    Raises:
        UsageError: no artifact comes with this backbone.
    """
    assert recipe.init_from is not None
    if recipe.init_from != SHIPPED:
        return Path(recipe.init_from).expanduser()
    shipped = registry.backbone_card(recipe.backbone.name).artifact
    if shipped is None:
        raise UsageError(
            f"No pre-tuned feedback path comes with '{recipe.backbone.name}'.",
            what_to_do="Make one with 'toast pretune', or leave init_from out (init_from=null).",
        )
    return shipped


@torch.no_grad()
def start_from(path: Path, model: Model) -> Lineage:
    """Copy an artifact's tensors into a model that steers some or all of the artifact's levels.

    Raises:
        UsageError: nothing of that kind is at `path`, or the model has no feedback path.
        ToastError: it is damaged, or was made for another backbone or other levels.
    """
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"{path} holds no pre-tuned artifact.",
            what_to_do="Name what 'toast pretune' wrote: its run folder, or the folder 'artifact' in it.",
        )
    steering = model.adapted.steering
    if not isinstance(steering, Steering):
        raise UsageError(
            "This method has no feedback path to start.",
            what_to_do="Leave --init-from out, or use toast or toast-lite.",
        )
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        lineage, tensors = Lineage(**raw), load_file(folder / TENSORS)
    except (ValueError, TypeError, OSError, SafetensorError) as error:
        raise ToastError(f"{folder} is damaged.", f"{type(error).__name__}: {error}", "Pre-tune again.") from error
    if lineage.format > FORMAT:
        raise ToastError(
            f"{folder} was written by a newer toast ({lineage.toast_version}).", what_to_do="Update toast."
        )
    if lineage.backbone_fingerprint != model.backbone_fingerprint:
        raise ToastError(
            f"{folder} was pre-tuned on other weights: those of '{lineage.backbone}'.",
            "A feedback path undoes the levels of one backbone and fits no other.",
            "Use that backbone and its weights, pre-tune on this one, or start without (init_from=null).",
        )
    wanted = _tensors(steering)
    unlike = [name for name, place in wanted.items() if name not in tensors or tensors[name].shape != place.shape]
    if unlike:
        raise ToastError(
            f"{folder} does not cover what is to be steered.",
            f"Missing or of another shape: {', '.join(sorted(unlike)[:5])}.",
            "Pre-tune with the same feedback and feedback_level, or with full feedback.",
        )
    put({name: tensors[name] for name in wanted}, wanted)
    return lineage


def _tensors(steering: Steering) -> dict[str, Tensor]:
    """The tensors of a feedback path by name; those of Lite are the frozen ones under its factors."""
    named: dict[str, Tensor] = {"xi": steering.selection.xi.data, "P": steering.selection.P.data}
    for level, A_l, B_l in zip(steering.levels, steering.feedback.A, steering.feedback.B, strict=True):
        named[f"A.{level}"], named[f"B.{level}"] = base_weight(A_l).data, base_weight(B_l).data
    return named


def _card(lineage: Lineage) -> str:
    recipe = lineage.recipe
    return "\n".join(
        [
            f"# Feedback path for {lineage.backbone}, pre-tuned on {recipe['dataset']['name']}",
            "",
            f"- Backbone fingerprint: `{lineage.backbone_fingerprint[:16]}…`",
            f"- Seed: {recipe['seed']}",
            "",
            "```",
            f"toast tune --backbone {lineage.backbone} --dataset DATA --init-from PATH_OF_THIS_FOLDER",
            "```",
            "",
        ]
    )
