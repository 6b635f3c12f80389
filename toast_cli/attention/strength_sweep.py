"""The second pass of one batch at several strengths of the feedback, with a single first pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toast_cli.attention.feature_energy import EnergyRecorder
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.backbones.base import Trace
from toast_cli.steering.steering import run_first_pass
from toast_cli.utils.errors import UsageError


@dataclass(frozen=True)
class StrengthFrame:
    """The logits `[B, outputs]` and the map `[B, rows, columns]` of the second pass at one strength."""

    strength: float
    logits: Tensor
    map: Tensor


@torch.no_grad()
def sweep_strength(
    recorder: AttentionRecorder | EnergyRecorder, images: Tensor, strengths: Sequence[float]
) -> Iterator[StrengthFrame]:
    """Yield the second pass on images `[B, 3, H, W]` at each strength; the first pass runs once.

    The strength of the model is restored afterwards.

    Raises:
        UsageError: the model has no feedback path.
    """
    model = recorder.model
    backbone, steering = model.backbone, model.adapted.steering
    if steering is None:
        raise UsageError(
            "--animate varies the strength of the feedback, and this model has no feedback path.",
            what_to_do="Leave --animate out.",
            code="method.no-feedback-path",
        )
    attention_of = recorder.levels if isinstance(recorder, AttentionRecorder) else frozenset[int]()
    common = Trace(levels=True, attention_of=attention_of)
    shared, first, _ = run_first_pass(backbone, steering.levels, images, (None, common))
    signals = steering.compute_signals(first)[-1]
    before = steering.strength
    try:
        for strength in strengths:
            steering.strength = strength
            trace = Trace(levels=True, attention_of=attention_of)
            trace.extend_from(common)
            sent = steering.expand_to_levels(signals, len(backbone.levels))
            state = backbone.run(backbone.again(shared, images), sent, first=steering.levels.start, trace=trace)
            logits = model.compute_outputs(backbone.leave(state).pooled)
            yield StrengthFrame(strength, logits, _compute_map(recorder, trace, images))
    finally:
        steering.strength = before


def _compute_map(recorder: AttentionRecorder | EnergyRecorder, trace: Trace, images: Tensor) -> Tensor:
    if isinstance(recorder, AttentionRecorder):
        return recorder.compute_level_map(trace, recorder.model.backbone.grid(images))
    return recorder.compute_energy_map(trace, images)
