"""Workers of one machine: each with a log and a device of its own, started again where something killed them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from toast_cli.bench.scheduler.worker_pool import MAX_RESTARTS, get_device_environment, run_worker_pool


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Python that does what the file `act` beside it says."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/bash\necho "$*"\necho start >> {tmp_path}/starts\nsource {tmp_path}/act\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return tmp_path


@pytest.mark.nightly
def test_every_worker_is_the_same_command_and_its_words_are_kept(python: Path) -> None:
    (python / "act").write_text("exit 0")
    assert run_worker_pool(2, ["bench", "demo"], python / "logs", lambda: None) == [0, 0]
    assert [(python / "logs" / f"{n}.log").read_text() for n in (0, 1)] == ["-m toast_cli bench demo\n"] * 2


@pytest.mark.nightly
def test_a_worker_that_was_killed_is_started_again_a_few_times_and_one_that_failed_is_not(python: Path) -> None:
    (python / "act").write_text(f"[ $(wc -l < {python}/starts) -gt 1 ] && exit 0 || kill -9 $$")
    assert run_worker_pool(1, [], python / "logs", lambda: None) == [0]
    assert (python / "starts").read_text() == "start\n" * 2
    (python / "starts").unlink()
    (python / "act").write_text("kill -9 $$")
    assert run_worker_pool(1, [], python / "logs", lambda: None) == [-9]
    assert (python / "starts").read_text() == "start\n" * (1 + MAX_RESTARTS)
    (python / "starts").unlink()
    (python / "act").write_text("exit 1")
    assert run_worker_pool(1, [], python / "logs", lambda: None) == [1]
    assert (python / "starts").read_text() == "start\n"


def test_gpus_are_given_out_in_turns_among_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [get_device_environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["4", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [get_device_environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "1", "0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert get_device_environment(0) == {}
