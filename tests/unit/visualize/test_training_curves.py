"""The curves of a run: which metrics, where they are, and which epoch is marked."""

from __future__ import annotations

from typing import Any

import pytest

from toast_cli.visualize.training_curves import MAX_STEPS, draw_training_curves, list_metrics


def epoch_line(epoch: int, best: bool = False, **validation: Any) -> dict[str, Any]:
    train = {"accuracy": epoch / 10, "loss": 2 / epoch, "images": 50, "seconds": 1.0}
    line = {"kind": "epoch", "step": 5 * epoch, "epoch": epoch, "lr": 0.1 / epoch, "train": train, "best": best}
    return {**line, "validation": validation} if validation else line


def step_line(step: int) -> dict[str, Any]:
    return {"kind": "step", "step": step, "epoch": 1 + step // 5, "loss": 3.0, "lr": 0.1}


def test_before_the_first_epoch_has_ended_there_is_no_figure() -> None:
    assert draw_training_curves([step_line(1)], "run") is None


def test_the_metrics_of_the_validation_come_first_and_parts_are_drawn_as_their_mean() -> None:
    lines = [
        epoch_line(1, loss=1.0, images=9, iou={"a": 0.2, "b": None, "c": 0.4}, mean_iou=0.3),
        epoch_line(2, loss=1.0, images=9),
    ]
    assert list_metrics(lines) == ["iou", "mean_iou"]
    assert list_metrics(lines[1:]) == ["accuracy"]
    figure = draw_training_curves(lines, "run")
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["loss", "iou", "mean iou", "learning rate"]
    (line,) = [line for line in figure.axes[1].lines if line.get_label() == "validation"]
    assert line.get_xydata().tolist() == [[1, pytest.approx(0.3)]]


def test_the_last_epoch_that_was_the_best_is_marked() -> None:
    lines = [
        epoch_line(1, best=True, loss=3.0, accuracy=0.1),
        step_line(6),
        epoch_line(2, best=True, loss=1.0, accuracy=0.5),
        epoch_line(3, loss=2.0, accuracy=0.4),
    ]
    figure = draw_training_curves(lines, "run")
    assert figure is not None
    loss, accuracy, rate = figure.axes
    (marked,) = [line for line in loss.lines if line.get_label() == "selected: epoch 2"]
    assert marked.get_xdata() == [2, 2]
    curves = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert curves["train"] == [[1, 0.1], [2, 0.2], [3, 0.3]] and curves["validation"] == [[1, 0.1], [2, 0.5], [3, 0.4]]
    assert rate.lines[0].get_xydata().tolist() == [[1, 0.1], [1.2, 0.1], [2, 0.05], [3, pytest.approx(0.1 / 3)]]


@pytest.mark.parametrize("epochs", [1, 300])
def test_few_and_many_epochs_are_readable(epochs: int) -> None:
    lines = [step_line(step) for step in range(1, 100 * epochs)]
    lines += [epoch_line(epoch, loss=1.0, accuracy=0.5) for epoch in range(1, epochs + 1)]
    figure = draw_training_curves(lines, "run")
    assert figure is not None
    loss = figure.axes[0]
    assert len(loss.lines[0].get_xdata()) <= MAX_STEPS
    assert len(loss.get_xticks()) < 9 and all(tick == int(tick) for tick in loss.get_xticks())
    (train,) = [line for line in loss.lines if line.get_label() == "train"]
    assert (train.get_marker() == ".") == (epochs == 1)
