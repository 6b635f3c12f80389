"""The HTML report of an evaluation: numbers, metrics per class, pictures, and the worst mistakes as images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toast_cli.data.base import get_split_kind
from toast_cli.evaluation.answer_files import CONFUSION_FIGURE, RELIABILITY_FIGURE
from toast_cli.evaluation.class_metrics import compute_class_metrics, compute_pixel_class_metrics
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.utils.errors import ToastError
from toast_cli.utils.formatting import render_template, to_data_uri

MAX_MISTAKES = 36
"""Largest number of images on a page."""
MAX_CLASSES = 1000
"""Largest number of classes in the table of a page."""
THUMBNAIL_SIDE = 240
"""Longest side of an image on a page, in pixels."""
HEADINGS = {
    "support": "images with this label",
    "predicted": "choices of it",
    "f1": "F1",
    "mean_probability": "mean probability",
    "iou": "IoU",
}
"""Headings of the columns whose names are not words."""


def render_answer_report(answers: SplitAnswers, folder: Path, title: str, numbers: Sequence[tuple[str, str]]) -> str:
    """Return the report of an evaluation as a self-contained page.

    Args:
        answers: the answers to the split.
        folder: the folder with the pictures of the answers.
        title: the title of the page.
        numbers: the headline numbers with their names.
    """
    pictures = {
        "Confusions": CONFUSION_FIGURE,
        "Reliability": RELIABILITY_FIGURE,
    }
    mistakes = find_worst_mistakes(answers)
    streamed = get_split_kind(answers.samples) == "stream"
    return render_template(
        "visualize/templates/answers.html",
        title=title,
        split=answers.split,
        numbers=numbers,
        pictures=[
            {"name": name, "file": file, "source": to_data_uri((folder / file).read_bytes())}
            for name, file in pictures.items()
            if (folder / file).is_file()
        ],
        **_build_class_table(answers),
        wrong=None if answers.confusion is not None else _count_mistakes(answers),
        streamed=streamed,
        mistakes=[] if streamed else [build_mistake(answers, row) for row in mistakes],
    )


def find_worst_mistakes(answers: SplitAnswers, most: int = MAX_MISTAKES) -> list[int]:
    """Return the rows of the wrong answers with the highest probabilities, the highest first."""
    if not answers.columns:
        return []
    wrong = np.flatnonzero(answers.columns["label"] != answers.columns["chosen"])
    order = np.argsort(-np.nan_to_num(answers.columns["probability"][wrong]), kind="stable")
    return wrong[order[:most]].tolist()


def build_mistake(answers: SplitAnswers, row: int) -> dict[str, str]:
    """Return the image of an answer and its texts, for a page. An image that cannot be read has a note instead."""
    index, label, chosen, probability = (
        answers.columns[name][row].item() for name in ("index", "label", "chosen", "probability")
    )
    try:
        source, note = make_thumbnail(answers.samples.load(index).image), ""
    except ToastError as error:
        source, note = "", error.why or error.what
    return {
        "file": answers.get_sample_name(index),
        "label": answers.classes[label],
        "choice": answers.classes[chosen],
        "probability": "" if probability != probability else f"{probability:.1%}",
        "source": source,
        "note": note,
    }


def make_thumbnail(image: Any) -> str:
    """Return a small copy of an image as a data URI."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small.save(file, "JPEG", quality=80)
    return to_data_uri(file.getvalue(), "jpeg")


def _count_mistakes(answers: SplitAnswers) -> int:
    return int((answers.columns["label"] != answers.columns["chosen"]).sum())


def _build_class_table(answers: SplitAnswers) -> dict[str, Any]:
    """Return the headings and the rows of the metrics per class, the worst classes first."""
    pixels = answers.confusion is not None
    metrics = compute_pixel_class_metrics(answers) if pixels else compute_class_metrics(answers)
    decisive = "iou" if pixels else "f1"
    metrics.sort(key=lambda row: (row[decisive] is None, row[decisive]))
    names = [name for name in metrics[0] if name != "class"]
    rows = [{"name": row["class"], "cells": [_format_cell(row[name]) for name in names]} for row in metrics]
    return {
        "headings": [HEADINGS.get(name, name) for name in names],
        "rows": rows[:MAX_CLASSES],
        "classes": len(rows),
        "decisive": HEADINGS[decisive],
    }


def _format_cell(value: int | float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
