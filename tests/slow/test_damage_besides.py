"""What toast writes along the way and reads again, damaged: a suite's ledger, a run's log, and resized images kept."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.slow.suites import small_suite
from tests.slow.test_damage import TIMES, damaged
from toast_cli.bench.experiment_folder import EXPERIMENT_FILE, SUITE_FILE, load_experiment, save_experiment
from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.bench.suite import parse_suite
from toast_cli.storage.checksums import append_checksummed_line, drop_damaged_lines, read_checksummed_lines
from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError

JOBS = Experiment("small", parse_suite(small_suite(seeds=4), "small.yaml")).make_final_jobs("Markings", "linear", {})


def record(job: Job) -> dict[str, Any]:
    return {"run": f"runs/{job.name}", "params": {}, "test": {"accuracy": 0.6789 + job.seed / 100, "loss": 1.25}}


def filled(url: str, locks: Path) -> None:
    """A ledger in which every run is done."""
    ledger = Ledger(url, locks)
    study = ledger.open_study("Markings/linear/final")
    ledger.enqueue_jobs(study, JOBS)
    while (claim := ledger.take_waiting_run(study, JOBS)) is not None:
        with claim.keep_alive():
            claim.record_result(record(claim.job)["test"]["accuracy"], record(claim.job))


def done(url: str, locks: Path) -> dict[Job, Any]:
    """What a table would show of it."""
    ledger = Ledger(url, locks)
    standings = ledger.compute_job_statuses(ledger.open_study("Markings/linear/final"), JOBS)
    return {job: standing.record for job, standing in standings.items() if standing.state == "done"}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_a_damaged_ledger_is_named_and_tells_no_wrong_number(tmp_path: Path, kind: str, times: int) -> None:
    file, rng = tmp_path / "ledger", random.Random(kind)
    filled(f"{kind}{file}", tmp_path / "locks")
    whole = file.read_bytes()
    assert done(f"{kind}{file}", tmp_path / "locks") == {job: record(job) for job in JOBS}
    for _ in range(times):
        file.write_bytes(damaged(whole, rng))
        try:
            found = done(f"{kind}{file}", tmp_path / "locks")
        except ToastError as error:
            assert str(file) in error.what
            continue
        # What is gone is made again; what is told is what was.
        assert all(told == record(job) for job, told in found.items())


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_a_number_that_changed_in_a_ledger_is_refused(tmp_path: Path, kind: str) -> None:
    """As a flipped bit would leave it that hits a digit: all else is sound."""
    file = tmp_path / "ledger"
    filled(f"{kind}{file}", tmp_path / "locks")
    content = file.read_bytes()
    assert b"0.6789" in content
    file.write_bytes(content.replace(b"0.6789", b"0.9789"))
    with pytest.raises(ToastError, match="damaged") as raised:
        done(f"{kind}{file}", tmp_path / "locks")
    assert "SHA-256" in raised.value.why and "Move it away" in raised.value.what_to_do


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", [EXPERIMENT_FILE, SUITE_FILE])
def test_a_damaged_record_of_what_a_suite_was_asked_for_is_named(tmp_path: Path, name: str, times: int) -> None:
    experiment = Experiment("small", parse_suite(small_suite(seeds=4), "small.yaml"), seeds=(1, 2), known={})
    save_experiment(tmp_path, experiment, small_suite(seeds=4), "sqlite:///a")
    file, rng = tmp_path / name, random.Random(name)
    whole = file.read_bytes()
    assert load_experiment(tmp_path) == (experiment, "sqlite:///a")
    for _ in range(times):
        file.write_bytes(damaged(whole, rng))
        try:
            found = load_experiment(tmp_path)
        except ToastError as error:
            assert str(file) in error.what and "toast bench SUITE" in error.what_to_do
            continue
        assert found == (experiment, "sqlite:///a")


@pytest.mark.parametrize("times", TIMES)
def test_a_damaged_judgement_is_named_and_never_read_as_another(tmp_path: Path, times: int) -> None:
    file, rng = tmp_path / "judgements.jsonl", random.Random(0)
    lines = [{"question_id": number, "score": 4.5, "judge": "j"} for number in range(8)]
    for line in lines:
        append_checksummed_line(file, line)
    whole = file.read_bytes()
    for _ in range(times):
        file.write_bytes(damaged(whole, rng))
        try:
            found = list(read_checksummed_lines(file, ""))
        except ToastError as error:
            assert str(file) in error.what
            assert 0 < drop_damaged_lines(file) < 3
            found = list(read_checksummed_lines(file, ""))
        assert all(line in lines for line in found)


@pytest.mark.parametrize("times", TIMES)
def test_a_damaged_log_does_not_hinder_a_run_from_going_on(tmp_path: Path, times: int) -> None:
    lines = [{"kind": "step", "step": step, "loss": 1 / step} for step in range(1, 9)]
    whole = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    for number in range(times):
        folder = RunFolder(tmp_path / str(number))
        folder.path.mkdir()
        folder.metrics.write_bytes(damaged(whole, random.Random(number)))
        folder.truncate_metrics_after(5, 0)
        folder.append_metrics({"kind": "step", "step": 6, "loss": 0.5})
        kept = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
        assert kept[-1] == {"kind": "step", "step": 6, "loss": 0.5} and len(kept) <= 6


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"step": "a", "kind": 1}', b"\xff\xfe", b"[" * 5000, b"{}"])
def test_a_line_of_another_kind_is_dropped(tmp_path: Path, line: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(line + b'\n{"kind": "step", "step": 1}\n')
    folder.truncate_metrics_after(5, 0)
    assert folder.metrics.read_text() == '{"kind": "step", "step": 1}\n'
