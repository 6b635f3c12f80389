"""The worst mistakes among a model's answers to a split: which they are, and what they are called."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from toast_cli.training.evaluate import SplitAnswers

NO_LABELS = "none"
"""What stands for no labels at all."""


class MistakeTexts(NamedTuple):
    """What a mistake is called: the sample's name and label, the choice, and its probability (NaN if it has none)."""

    name: str
    label: str
    choice: str
    probability: float


def rate_answers(answers: SplitAnswers) -> np.ndarray:
    """Return how bad the answer to each sample is, 0 for a right one, `[n]`.

    Of a class, it is its probability. Of several labels, it is the largest distance of a wrong label's probability from
    its threshold. Of numbers, it is the largest error, each in standard deviations of its number in the split.
    """
    columns = answers.columns
    if answers.target == "number":
        label = columns["label"].astype(np.float64)
        spread = np.nanstd(label, axis=0)
        error = np.abs(columns["predicted"] - label) / np.where(spread > 0, spread, 1.0)
        return np.nan_to_num(error, nan=np.finfo(np.float64).max).max(axis=1)
    wrong = columns["label"] != columns["chosen"]
    if answers.target == "labels":
        distance = np.abs(columns["probability"] - np.array(answers.thresholds)) + np.finfo(np.float64).tiny
        return np.where(wrong, distance, 0.0).max(axis=1)
    probability = np.nan_to_num(columns["probability"].astype(np.float64))
    return np.where(wrong, probability + np.finfo(np.float64).tiny, 0.0)


def count_mistakes(answers: SplitAnswers) -> int:
    """Return the number of samples whose answer is not right."""
    return int((rate_answers(answers) > 0).sum()) if answers.columns else 0


def find_worst_mistakes(answers: SplitAnswers, most: int) -> list[int]:
    """Return the rows of up to `most` wrong answers, the worst first; none of a class per pixel."""
    if not answers.columns:
        return []
    badness = rate_answers(answers)
    order = np.argsort(-badness, kind="stable")[:most]
    return order[badness[order] > 0].tolist()


def describe_mistake(answers: SplitAnswers, row: int) -> MistakeTexts:
    """Return the texts of the answer in a row."""
    columns, names = answers.columns, answers.classes
    file = answers.get_sample_name(int(columns["index"][row]))
    if answers.target == "number":
        label, predicted = (
            ", ".join(f"{name} {value:.5g}" for name, value in zip(names, columns[key][row].tolist(), strict=True))
            for key in ("label", "predicted")
        )
        return MistakeTexts(file, label, predicted, float("nan"))
    label, chosen, probability = (columns[key][row] for key in ("label", "chosen", "probability"))
    if answers.target == "labels":
        held = ", ".join(name for name, holds in zip(names, label, strict=True) if holds) or NO_LABELS
        wrong = [
            f"{'missed' if holds else 'given'} {name} {share:.1%}"
            for name, holds, given, share in zip(names, label, chosen, probability.tolist(), strict=True)
            if holds != given
        ]
        return MistakeTexts(file, held, ", ".join(wrong) or held, float("nan"))
    return MistakeTexts(file, names[int(label)], names[int(chosen)], float(probability))
