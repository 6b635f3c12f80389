"""The figure of a learning-rate range test."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure


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
