"""The registered explanations, and their comparison by deletion and insertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toast_cli.attention.deletion_insertion import CURVE_STEPS, RANDOM_ORDER, DeletionInsertionCurves
from toast_cli.attention.explanations.attention_maps import ATTENTION, ROLLOUT
from toast_cli.attention.explanations.base import ExplainedBatch, Explanation
from toast_cli.attention.explanations.grad_cam import GRAD_CAM
from toast_cli.attention.explanations.integrated_gradients import INTEGRATED_GRADIENTS
from toast_cli.utils.errors import UsageError, did_you_mean

EXPLANATIONS: dict[str, Explanation] = {
    explanation.name: explanation for explanation in (ATTENTION, ROLLOUT, GRAD_CAM, INTEGRATED_GRADIENTS)
}
"""The explanations by their names on the command line. To add one, write its module and name it here."""
ALL = "all"
"""Name on the command line that stands for every explanation."""
KINDS = ("deletion", "insertion")


def find_explanations(names: str) -> list[Explanation]:
    """Return the explanations of a list of names with commas, in its order; `all` stands for every one.

    Raises:
        UsageError: a name is unknown.
    """
    wanted = list(EXPLANATIONS) if names.strip() == ALL else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in EXPLANATIONS:
            raise UsageError(
                f"Invalid value for --explain: '{name}'.",
                what_to_do=did_you_mean(name, (*EXPLANATIONS, ALL)),
                code="cli.invalid-value",
            )
    return [EXPLANATIONS[name] for name in dict.fromkeys(wanted)]


@dataclass(frozen=True)
class ExplainedImage:
    """The explanations of one image.

    Attributes:
        maps: the map `[rows, columns]` of each explanation and pass.
        scores: the areas under the deletion and the insertion curve, by explanation and pass.
        random: the same for a random order of cells.
    """

    maps: dict[tuple[str, str], Tensor]
    scores: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    random: dict[str, float] = field(default_factory=dict)


def explain_batch(
    explanations: Sequence[Explanation], batch: ExplainedBatch, steps: int = CURVE_STEPS
) -> list[ExplainedImage]:
    """Return every explanation of each image, with the areas under their deletion and insertion curves.

    All maps have the cells of the backbone's grid and are scored by the last pass, also those of pass one: the question
    is on which pixels the model's answer depends. The curves of all maps, and of a random order, have the same `steps`.

    Raises:
        UsageError: a library is missing, or the model does not fit an explanation.
        ToastError: an explanation does not reproduce the model.
    """
    maps: dict[tuple[str, str], Tensor] = {}
    for explanation in explanations:
        for name, found in explanation.compute(batch).items():
            maps[explanation.name, name] = found.detach().float()
    curves = DeletionInsertionCurves(batch.model, steps, compute_scores=batch.model.objective.compute_scores)
    ordered = {" ".join(key): map for key, map in maps.items()}
    ordered[RANDOM_ORDER] = torch.rand(next(iter(maps.values())).shape, generator=curves.generator).to(
        batch.images.device
    )
    curves.add_maps(ordered, batch.outputs, batch.images)
    areas = {name: {kind: curves.compute_areas(name, kind).tolist() for kind in KINDS} for name in ordered}
    return [
        ExplainedImage(
            {key: map[number].cpu() for key, map in maps.items()},
            {key: {kind: areas[" ".join(key)][kind][number] for kind in KINDS} for key in maps},
            {kind: areas[RANDOM_ORDER][kind][number] for kind in KINDS},
        )
        for number in range(len(batch.images))
    ]
