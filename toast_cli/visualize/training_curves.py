"""Curves of a run over its epochs: loss, main metrics and learning rate; and of its learning-rate range test."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toast_cli.utils.names import shorten_name

MAX_METRICS = 2
"""Largest number of metrics that are drawn beside the loss."""
SIDE_NUMBERS = {"loss", "seconds", "images", "tokens"}
"""Numbers of an epoch that are no metrics, or have a place of their own."""
MAX_STEPS = 2000
"""Largest number of steps whose loss and learning rate are drawn; of more, every n-th."""
MAX_MARKED_EPOCHS = 40
"""Largest number of epochs whose points are marked."""
PANEL_SIZE = (3.5, 3.1)
"""Width and height of a panel, in inches."""
SPLITS = {"train": "C0", "validation": "C1"}
"""The colour of each split."""


def draw_training_curves(lines: Sequence[Mapping[str, Any]], title: str) -> Figure | None:
    """Draw the loss, the main metrics and the learning rate of a run; None before its first epoch has ended.

    The metrics are the first ones of the validation, or of the training without a validation. Those of several parts,
    such as the losses of levels, are drawn as their mean. The loss of single steps is a pale line behind the curves.

    Args:
        lines: The lines of the metrics file.
        title: The title of the figure.
    """
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        return None
    steps = [line for line in lines if line["kind"] == "step"]
    steps = steps[:: -(-len(steps) // MAX_STEPS) or 1]
    per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
    selected = max((line["epoch"] for line in epochs if line.get("best")), default=None)
    metrics = list_metrics(epochs)
    rates = sorted(
        [(line["step"] / per_epoch, line["lr"]) for line in steps]
        + [(line["epoch"], line["lr"]) for line in epochs if "lr" in line]
    )
    count = 1 + len(metrics) + bool(rates)
    figure = Figure(figsize=(PANEL_SIZE[0] * count, PANEL_SIZE[1]), layout="constrained")
    loss, *others = figure.subplots(1, count, squeeze=False)[0]
    if steps:
        places, losses = zip(*((line["step"] / per_epoch, line["loss"]) for line in steps), strict=True)
        loss.plot(places, losses, color="#cfe0ee", label="train, single steps")
    for axes, name in zip((loss, *others), ("loss", *metrics), strict=False):
        _draw_metric(axes, name, epochs, selected)
    if rates:
        others[-1].plot(*zip(*rates, strict=True), color="C2", marker="." if len(rates) == 1 else None)
        others[-1].set_title("learning rate", fontsize=9)
        others[-1].set_ylim(bottom=0)
        others[-1].ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
        others[-1].yaxis.get_offset_text().set_fontsize(7)
    for axes in (loss, *others):
        axes.set_xlim(0, max(epochs[-1]["epoch"], *(line["step"] / per_epoch for line in steps), 1) * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="#eee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(shorten_name(title, 40 * count), fontsize=9, x=0.01, ha="left")
    return figure


def list_metrics(epochs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the main metrics: those of the validation first, then those of the training alone."""
    names = {
        name: None
        for split in reversed(SPLITS)
        for line in epochs
        for name, value in (line.get(split) or {}).items()
        if name not in SIDE_NUMBERS and _to_number(value) is not None
    }
    return list(names)[:MAX_METRICS]


def _draw_metric(axes: Axes, name: str, epochs: Sequence[Mapping[str, Any]], selected: int | None) -> None:
    """Draw a metric of both splits, and mark the selected epoch."""
    for split, colour in SPLITS.items():
        points = [
            (line["epoch"], number)
            for line in epochs
            if (number := _to_number((line.get(split) or {}).get(name))) is not None
        ]
        if points:
            marker = "." if len(points) <= MAX_MARKED_EPOCHS else None
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=split)
        marked = [number for epoch, number in points if epoch == selected]
        if selected is not None and marked:
            axes.plot(selected, marked[0], "o", color=colour, markeredgecolor="black", markersize=6, zorder=3)
    if selected is not None:
        axes.axvline(selected, color="grey", linestyle="--", linewidth=1, label=f"selected: epoch {selected}", zorder=0)
    axes.set_title(name.replace("_", " "), fontsize=9)


def _to_number(value: Any) -> float | None:
    """Return a metric as a number, one of several parts as their mean; None if it has no finite number."""
    if isinstance(value, Mapping):
        parts = [part for part in map(_to_number, value.values()) if part is not None]
        return float(np.mean(parts)) if parts else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def draw_lr_range(table: Path, chosen: float) -> Figure:
    """Draw the loss of a range test, which `table` holds as CSV, against the rate, and mark the chosen rate."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    rates, losses, smoothed = ([row[name] for row in rows] for name in ("lr", "loss", "smoothed_loss"))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss of each step")
    axis.plot(rates, smoothed, color="tab:blue", label="smoothed")
    axis.axvline(chosen, color="tab:red", linestyle="--", linewidth=1, label=f"chosen: {chosen:g}")
    axis.set_xscale("log")
    axis.set_ylim(0.9 * min(losses), 1.5 * max(smoothed[: len(smoothed) // 2 + 1]))
    axis.set_title("learning-rate range test", fontsize=10)
    axis.set_xlabel("learning rate", fontsize=9)
    axis.set_ylabel("training loss", fontsize=9)
    axis.legend(fontsize=8, loc="upper left")
    return figure
