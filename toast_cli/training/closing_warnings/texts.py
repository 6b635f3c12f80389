"""Notes and warnings of runs on texts: few validation texts, and answers that will not stop by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEW_TEXTS = 30
"""Number of validation texts below which the choice of an epoch is mostly chance."""
MIN_END_ACCURACY = 0.5
"""Share of the answers, at whose end the model predicts the end, below which generation is expected to run on."""


def describe_few_validation_texts(texts: int, epochs: int) -> list[str]:
    """Return a note before training if few validation texts select one of several epochs."""
    if epochs < 2 or texts >= FEW_TEXTS:
        return []
    held = "1 validation text selects" if texts == 1 else f"{texts:,} validation texts select"
    return [
        f"Warning: {held} which of {epochs} epochs is kept; with fewer than {FEW_TEXTS}, this is mostly chance. Set "
        "dataset.val_fraction higher, or give more texts with dataset.val_path."
    ]


def describe_endless_answers(split: str, metrics: Mapping[str, Any] | None) -> list[str]:
    """Return a warning if the model predicts the end of few answers at its place."""
    accuracy = (metrics or {}).get("end_accuracy")
    if metrics is None or accuracy is None or accuracy >= MIN_END_ACCURACY:
        return []
    return [
        f"{split}: answers will not stop by themselves: at the end of only {accuracy:.0%} of {metrics['answers']:,} "
        "answers is the end the most likely token. Start a new run with more epochs, with the output rows of the end "
        "tokens trained (task.end_tokens=trained), or with --method full."
    ]
