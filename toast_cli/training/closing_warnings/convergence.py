"""Warnings of a loss that rose, or that had not settled at the end: the rate is too high or too low, or epochs are few.

The latter need the validation loss before the first step and after every epoch, which `metrics.jsonl` has for texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.automatic.recommended_rates import MEASURED, RecommendedRate
from toast_cli.training.optimization import sum_learning_rates

DIVERGENCE_FACTOR, DIVERGENCE_LOSS = 2.0, 0.5
"""The training loss counts as risen above this multiple of the lowest one, if it is above this value too."""
STEADY_FALL = 0.1
"""Largest lead of the loss over a fall that is proportional to the sum of the rates, as a share of the whole fall. A
loss with less of a lead fell as fast at the end as at the beginning. Calibrated by benchmarks/language_rates.py."""
SETTLED_FALL = 0.005
"""Fall of the loss in the last epoch, as a share of the loss, up to which it counts as settled."""


def describe_divergence(losses: Sequence[float], lr: float) -> list[str]:
    """Return a warning if the training loss of the last epoch is far above the lowest one: the rate is too high."""
    if not losses or losses[-1] <= max(DIVERGENCE_FACTOR * min(losses), DIVERGENCE_LOSS):
        return []
    epoch = losses.index(min(losses)) + 1
    return [
        f"train: the loss rose from {min(losses):.3g} in epoch {epoch} to {losses[-1]:.3g} in the last one: the "
        f"learning rate ({lr:g}) is probably too high. Start a new run with --lr {lr / 3:.1g}, or with --lr auto."
    ]


def read_validation_losses(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return the step and the validation loss before training and after every validated epoch, from metrics.jsonl."""
    return [(line["step"], line["validation"]["loss"]) for line in lines if line.get("validation") is not None]


def find_start_metrics(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the validation metrics before the first step, or None if there are none."""
    return next((line["validation"] for line in lines if line["kind"] == "start"), None)


def describe_unsettled_loss(
    losses: Sequence[tuple[int, float]],
    training: TrainingOptions,
    batches: int,
    recommended: RecommendedRate,
) -> list[str]:
    """Return a warning if the validation loss was still falling at the end of training, or fell steadily until then.

    Args:
        losses: Step and validation loss, the first of them before training.
        training: The settings of the run.
        batches: The number of batches in an epoch.
        recommended: The recommended rate. A loss that falls steadily at a rate above it may be due to too high a rate,
            and at a measured rate to too few steps; a published rate may be too low for the run.
    """
    if len(losses) < 2 or losses[0][0] > 0:
        return []
    steps, values = [step for step, _ in losses], np.array([loss for _, loss in losses])
    if values[-1] > values[:-1].min() or not np.isfinite(values).all():
        return []  # it does not fall any more, or it rose
    fall, last = values[0] - values[-1], (values[-2] - values[-1]) / values[-2]
    sums = np.array(sum_learning_rates(training, -(-batches // training.accumulate), steps))
    lead = (values[0] - values[1:-1]) / fall - sums[1:-1] / sums[-1] if fall > 0 else np.zeros(0)
    may_be_low = training.lr < recommended.lr or (training.lr == recommended.lr and recommended.source != MEASURED)
    if len(lead) and lead.max() <= STEADY_FALL and may_be_low:
        return [
            f"val: the loss fell steadily from {values[0]:.3f} to {values[-1]:.3f} and had not begun to settle: the "
            f"learning rate ({training.lr:g}) looks too low. "
            f"Start a new run with --lr {max(float(f'{3 * training.lr:.1g}'), recommended.lr):g}, or with --lr auto."
        ]
    if last > SETTLED_FALL:
        other = "" if training.lr == recommended.lr else f", or with the recommended rate, --lr {recommended.lr:g}"
        epochs = 2 * training.epochs
        return [
            f"val: the loss was still falling at the end, by {last:.1%} in the last epoch, to {values[-1]:.3f}. "
            f"Start a new run with --epochs {epochs}{other}; or train this one for longer: 'toast tune --resume "
            f"RUN training.epochs={epochs}'."
        ]
    return []
