"""The confusion matrix of few and of many classes."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from toast_cli.visualize.answer_figures import choose_confused_classes, draw_confusion, format_count


def texts(counts: np.ndarray) -> tuple[list[str], list[str], list[str], str]:
    """Return the labels of rows and columns, the numbers in the cells and the title of a matrix."""
    names = [f"class {number}" for number in range(len(counts))]
    figure = draw_confusion(csr_array(counts), names, "9 images")
    (axes,) = figure.axes
    rows, columns = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis))
    return rows, columns, [text.get_text() for text in axes.texts], figure.get_suptitle()


def test_few_classes_are_all_shown_with_their_counts() -> None:
    rows, columns, cells, title = texts(np.array([[5, 0, 1], [0, 2, 0], [0, 0, 0]]))
    assert rows == ["class 0 (6)", "class 1 (2)", "class 2 (0)"] and columns == ["class 0", "class 1", "class 2"]
    assert cells == ["5", "1", "2"] and "Shown" not in title


def test_of_many_classes_the_most_confused_are_shown_and_said() -> None:
    counts = np.diag(np.full(200, 8))
    counts[7, 150], counts[150, 7], counts[3, 90] = 6, 5, 4
    counts[range(100, 160), range(101, 161)] += 1
    assert choose_confused_classes(csr_array(counts))[:4] == [7, 150, 3, 90]
    rows, columns, cells, title = texts(counts)
    assert len(rows) == 32 and columns[-1] == "any other class" and rows[0] == "class 7 (14)"
    assert cells[:4] == ["8", "6", "5", "8"]
    assert "the 32 of 200 classes" in title and "of the 75 errors" in title
    shown = [int(name.split()[1]) for name in columns[:-1]]
    assert sum(map(int, cells)) == counts[shown].sum(), "a row adds up to its samples"


def test_without_errors_the_largest_classes_are_shown() -> None:
    counts = np.diag(np.arange(50))
    assert choose_confused_classes(csr_array(counts)) == list(range(49, 17, -1))


def test_counts_are_short() -> None:
    assert [format_count(count) for count in (0, 9999, 12_345, 3_400_000, 5_000_000_000)] == [
        "0", "9999", "12.3k", "3.4M", "5G",
    ]  # fmt: skip
