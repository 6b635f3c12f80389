"""Figure of predicted numbers against the numbers of the data, with a histogram of the errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from toast_cli.utils.names import shorten_name
from toast_cli.visualize.answer_figures import MAX_LABEL_LENGTH

MAX_NUMBERS = 8
"""Largest number of numbers that are drawn."""
BINS = 30
"""Number of bins of the histogram."""


def draw_numbers(label: np.ndarray, predicted: np.ndarray, names: Sequence[str], what: str) -> Figure:
    """Draw each number of the data against the predicted one, and the errors: the prediction minus the number.

    Of more than `MAX_NUMBERS` numbers, the first are drawn. The title says so.

    Args:
        label: The numbers of the data, `[n, numbers]`.
        predicted: The predicted numbers, `[n, numbers]`.
        names: The names of the numbers.
        what: What was predicted, such as `371 images of the test split`.
    """
    shown = names[:MAX_NUMBERS]
    figure = Figure(figsize=(7.5, 3.6 * len(shown) + 0.5), layout="constrained")
    for place, (row, name) in enumerate(zip(figure.subplots(len(shown), 2, squeeze=False), shown, strict=True)):
        truth, answer = label[:, place], predicted[:, place]
        known = np.isfinite(truth) & np.isfinite(answer)
        truth, answer = truth[known], answer[known]
        scatter, histogram = row
        scatter.plot(truth, answer, ".", markersize=4, alpha=0.6)
        if len(truth):
            ends = [min(truth.min(), answer.min()), max(truth.max(), answer.max())]
            scatter.plot(ends, ends, color="grey", linestyle="--", linewidth=1, label="exact")
            scatter.legend(fontsize=7, frameon=False)
            histogram.hist(answer - truth, bins=BINS)
        histogram.axvline(0, color="grey", linestyle="--", linewidth=1)
        short = shorten_name(name, MAX_LABEL_LENGTH)
        scatter.set_xlabel(f"{short} in the data", fontsize=8)
        scatter.set_ylabel("predicted", fontsize=8)
        histogram.set_xlabel(f"error of {short}", fontsize=8)
        histogram.set_ylabel("samples", fontsize=8)
        for axes in row:
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    few = f" The first {len(shown)} of {len(names):,} numbers are shown." * (len(shown) < len(names))
    figure.suptitle(f"{what}. An error is the prediction minus the number.{few}", fontsize=8, x=0.01, ha="left")
    return figure
