"""Progress where there is no terminal to draw a bar in: lines, few of them, with the time left."""

from __future__ import annotations

import pytest

from toast_cli.cli.output import progress
from toast_cli.cli.output.progress import TerminalReporter


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that were written; an end of all bars is an empty one."""
    return [line for line in capsys.readouterr().err.split("\n") if line]


def test_a_log_reads_once_a_minute_how_far_it_is_and_how_long_it_takes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with TerminalReporter() as reporter:
        for _ in reporter.track_progress(range(10), 10, "test"):
            clock.now += 25
    assert told(capsys) == [
        "test, 3 of 10, about 0:02:55 left",
        "test, 6 of 10, about 0:01:40 left",
        "test, 9 of 10, about 0:00:25 left",
    ]


def test_what_is_done_within_a_minute_is_not_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter() as reporter:
        for _ in reporter.track_progress(range(10), 10, "test"):
            clock.now += 5
    assert told(capsys) == []


def test_a_log_of_training_reads_its_loss_between_epochs(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter() as reporter:
        for step in (1, 2, 3):
            clock.now += 40
            reporter.report_step(step, 100, {"loss": 0.25 * step, "accuracy": 0.5})
    assert told(capsys) == ["training: loss 0.500  accuracy 50.00%, 2 of 100"]
