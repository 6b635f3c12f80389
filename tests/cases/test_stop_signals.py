"""A run that is asked to stop keeps what it has done, whichever signal a terminal, a scheduler or a launcher sends.

Reports of the same kind elsewhere: schedulers announce the end of a job with SIGUSR1, a lost connection with SIGHUP.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TINY_DEMO, toast
from toast_cli.training import interrupts
from toast_cli.training.interrupts import InterruptHandler, raise_on_stop_signals
from toast_cli.training.loop import TrainingLoop

SENT_TWICE = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *SENT_TWICE)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def heard() -> Iterator[InterruptHandler]:
    handler = InterruptHandler()
    with handler.defer_signal():
        yield handler


@pytest.mark.parametrize("number", SENT_TWICE)
def test_the_signal_of_a_scheduler_is_deferred_however_often_it_comes(number: signal.Signals) -> None:
    with heard() as handler:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert handler.asked
    assert signal.getsignal(number) != handler._handle_signal


def test_a_second_ctrl_c_stops_at_once_but_not_a_copy_that_a_launcher_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    with heard():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        monkeypatch.setattr(interrupts, "REPEAT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SENT_TWICE)
def test_outside_of_training_every_signal_interrupts(number: signal.Signals) -> None:
    raise_on_stop_signals()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_nohup_ignores_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise_on_stop_signals()
    with heard() as handler:
        os.kill(os.getpid(), number)
        assert not handler.asked
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_run_keeps_its_step_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    train_step = TrainingLoop.train_step

    def send(loop: TrainingLoop, group: Any) -> bool:
        if loop.at.steps == 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return train_step(loop, group)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "train_step", send)
        words = ["tune", "--backbone", "vit_demo", "--method", "linear", "--device", "cpu", *TINY_DEMO]
        said = toast(*words, "training.epochs=1", "--output-dir", tmp_path / "run")
    assert said.code == 130 and "--resume" in said.err and "Traceback" not in said.err
    resumed = toast("tune", "--resume", tmp_path / "run")
    assert resumed.code == 0 and "Resuming after epoch" in resumed.err, resumed.err
