"""Accuracy by class of the rows of an experiment, from the files of its runs."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from toast_cli.bench.results import ExperimentResults
from toast_cli.utils.formatting import remove_formula_quote

CLASSES_FILE = "per_class.csv"
"""File of a run folder with a line per class of the test split."""


def iterate_class_tables(results: ExperimentResults) -> Iterator[dict[str, Any]]:
    """Yield a table for each data set: the share of the test images of a class that each row predicts correctly.

    Numbers are means over seeds, in percent. Rows without files of classes, such as those of texts, are left out.
    """
    found: dict[str, dict[str, list[Mapping[str, tuple[float, int]]]]] = defaultdict(lambda: defaultdict(list))
    for run in results.iterate_runs():
        if classes := _read_classes(results, run["run"]):
            found[run["dataset"]][run["row"]].append(classes)
    for dataset, rows in found.items():
        names = list(dict.fromkeys(name for runs in rows.values() for classes in runs for name in classes))
        lines = []
        for name in names:
            known = {row: [each[name] for each in runs if name in each] for row, runs in rows.items()}
            images = max(count for values in known.values() for _, count in values)
            cells = [{"value": images, "text": f"{images:,}", "details": ""}]
            cells += [_build_cell([100 * recall for recall, _ in values]) for values in known.values()]
            lines.append({"name": name, "cells": cells})
        title = f"{dataset}: accuracy by class, %"
        yield {"title": title, "headings": ["images", *rows], "lines": lines}


def _read_classes(results: ExperimentResults, run: str) -> dict[str, tuple[float, int]]:
    """Return recall and number of images of each class of a run; empty if it has no such file."""
    path = results.out / run / CLASSES_FILE
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        remove_formula_quote(row["class"]): (float(row["recall"]), int(row["support"])) for row in rows if row["recall"]
    }


def _build_cell(values: list[float]) -> dict[str, Any]:
    """Return the mean of the seeds, and each seed as the details."""
    if not values:
        return {"value": "", "text": "–", "details": ""}
    mean = statistics.fmean(values)
    details = f"By seed: {', '.join(f'{value:.1f}' for value in values)}" if len(values) > 1 else ""
    return {"value": f"{mean:.6g}", "text": f"{mean:.1f}", "details": details}
