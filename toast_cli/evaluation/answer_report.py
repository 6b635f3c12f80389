"""The HTML report of an evaluation: numbers, metrics per class, pictures, and the worst mistakes as images."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toast_cli.data.base import get_split_kind
from toast_cli.evaluation.answer_files import (
    CLASSES_FILE,
    CONFUSION_FIGURE,
    NUMBERS_FIGURE,
    NUMBERS_FILE,
    RELIABILITY_FIGURE,
)
from toast_cli.evaluation.class_metrics import (
    compute_class_metrics,
    compute_label_metrics,
    compute_number_metrics,
    compute_pixel_class_metrics,
)
from toast_cli.evaluation.mistakes import count_mistakes, describe_mistake, find_worst_mistakes
from toast_cli.tasks.base import Target
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
    "average_precision": "average precision",
    "iou": "IoU",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "largest_error": "largest error",
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
        "Predictions": NUMBERS_FIGURE,
    }
    mistakes = find_worst_mistakes(answers, MAX_MISTAKES)
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
        target=answers.target,
        wrong=None if answers.confusion is not None else count_mistakes(answers),
        streamed=streamed,
        mistakes=[] if streamed else [build_mistake(answers, row) for row in mistakes],
    )


def build_mistake(answers: SplitAnswers, row: int) -> dict[str, str]:
    """Return the image of an answer and its texts, for a page. An image that cannot be read has a note instead."""
    texts = describe_mistake(answers, row)
    try:
        source, note = make_thumbnail(answers.samples.load(int(answers.columns["index"][row])).image), ""
    except ToastError as error:
        source, note = "", error.why or error.what
    return {
        "file": texts.name,
        "label": texts.label,
        "choice": texts.choice,
        "probability": "" if math.isnan(texts.probability) else f"{texts.probability:.1%}",
        "source": source,
        "note": note,
    }


def make_thumbnail(image: Any) -> str:
    """Return a small copy of an image as a data URI."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small.save(file, "JPEG", quality=80)
    return to_data_uri(file.getvalue(), "jpeg")


METRICS: Mapping[Target, tuple[Callable[[SplitAnswers], list[dict[str, Any]]], str]] = {
    "class": (compute_class_metrics, "f1"),
    "pixels": (compute_pixel_class_metrics, "iou"),
    "labels": (compute_label_metrics, "f1"),
    "number": (compute_number_metrics, "r2"),
}
"""By target, the function that computes the rows of a page's table, and the metric that orders them."""


def _build_class_table(answers: SplitAnswers) -> dict[str, Any]:
    """Return the headings and the rows of the metrics per class, label or number, the worst first."""
    compute, decisive = METRICS[answers.target]
    metrics = compute(answers)
    metrics.sort(key=lambda row: (row[decisive] is None, row[decisive]))
    first, *names = metrics[0]
    shown = _format_number if answers.target == "number" else _format_cell
    rows = [{"name": row[first], "cells": [shown(row[name]) for name in names]} for row in metrics]
    return {
        "noun": first,
        "table_file": NUMBERS_FILE if answers.target == "number" else CLASSES_FILE,
        "headings": [HEADINGS.get(name, name) for name in names],
        "rows": rows[:MAX_CLASSES],
        "classes": len(rows),
        "decisive": HEADINGS[decisive],
    }


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _format_cell(value: int | float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
