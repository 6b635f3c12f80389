"""The ledger: every run once, whoever works on it, dies on it, or asks for it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.unit.bench.conftest import record
from toast_cli.bench.scheduler import trials as module
from toast_cli.bench.scheduler.job_status import MAX_WORKER_DEATHS
from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.scheduler.lease import JobLease
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.bench.suite import SearchOptions, ValueRange
from toast_cli.utils.errors import ToastError

Open = Callable[..., Ledger]


def taken(ledger: Ledger, jobs: list[Job]) -> JobLease | None:
    study = ledger.open_study("small/search")
    ledger.fail_dead_trials(study)
    ledger.enqueue_jobs(study, jobs)
    return ledger.take_waiting_run(study, jobs)


def states(ledger: Ledger, jobs: list[Job]) -> list[str]:
    return [
        standing.state for standing in ledger.compute_job_statuses(ledger.open_study("small/search"), jobs).values()
    ]


def dies(claim: JobLease) -> None:
    """What the system does for a process that is no more: it lets go of its locks."""
    claim._lock.release()


def test_two_workers_share_the_runs_and_none_is_made_twice(open_again: Open, jobs: list[Job]) -> None:
    one, other = open_again(), open_again()
    first, second = taken(one, jobs), taken(other, jobs)
    assert first is not None and second is not None
    assert {first.job, second.job} == set(jobs)
    assert taken(one, jobs) is None and taken(other, jobs) is None
    first.record_result(0.5, record(0, 0.5))
    second.record_result(0.6, record(0, 0.6))
    assert states(open_again(), jobs) == ["done", "done"]
    assert taken(open_again(), jobs) is None


def test_a_run_that_two_workers_put_in_at_the_same_moment_is_made_once(open_again: Open, jobs: list[Job]) -> None:
    ledger, elsewhere = open_again("one"), open_again("of another machine")
    study = ledger.open_study("small/search")
    for _ in range(2):
        study.enqueue_trial(dict(jobs[0].params or {}), user_attrs={"key": jobs[0].key, "seed": 0})
    first = ledger.take_waiting_run(study, jobs[:1])
    assert first is not None and elsewhere.take_waiting_run(elsewhere.open_study("small/search"), jobs[:1]) is None
    first.record_result(0.5, record(0, 0.5))
    assert states(ledger, jobs[:1]) == ["done"]
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL"]


def test_the_run_of_a_worker_that_died_here_is_taken_at_once_and_of_one_that_lives_never(
    open_again: Open, jobs: list[Job]
) -> None:
    dead, living = taken(open_again(), jobs), taken(open_again(), jobs)
    assert dead is not None and living is not None
    dies(dead)
    next_one = taken(open_again(), jobs)
    assert next_one is not None and next_one.job == dead.job
    assert taken(open_again(), jobs) is None


def test_a_worker_that_keeps_its_runs_in_another_folder_is_seen_to_live_and_to_die(
    open_again: Open, jobs: list[Job]
) -> None:
    here, there = open_again("one"), open_again("two")
    living = taken(there, jobs[:1])
    assert living is not None
    assert taken(here, jobs[:1]) is None and states(here, jobs[:1]) == ["running"]
    dies(living)
    heir = taken(here, jobs[:1])
    assert heir is not None and heir.job == jobs[0]


def test_what_a_worker_says_that_was_taken_for_dead_counts_no_more(open_again: Open, jobs: list[Job]) -> None:
    ledger = open_again()
    stalled = taken(ledger, jobs[:1])
    assert stalled is not None
    dies(stalled)
    heir = taken(open_again(), jobs[:1])
    stalled.record_result(0.9, record(0, 0.9))
    assert states(ledger, jobs[:1]) == ["running"]
    assert heir is not None
    heir.record_result(0.4, record(0, 0.4))
    assert (
        ledger.compute_job_statuses(ledger.open_study("small/search"), jobs)[jobs[0]].record["test"]["accuracy"] == 0.4
    )


def test_a_worker_elsewhere_is_dead_once_it_gave_no_sign_for_long_enough(
    open_again: Open, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near, now = open_again(), open_again(grace=60), [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    far.machine = "another/machine"
    claim = taken(far, jobs[:1])
    assert claim is not None
    study = near.open_study("small/search")
    assert near.fail_dead_trials(study) == 1
    now[0], beat = 50.0, 2
    claim.trial.set_user_attr("beat", beat)
    assert near.fail_dead_trials(study) == 1
    now[0] = 105.0
    assert near.fail_dead_trials(study) == 1, "its last sign was seen 55 seconds ago"
    now[0] = 111.0
    assert near.fail_dead_trials(study) == 0
    assert states(near, jobs[:1]) == ["wanted"]


def test_a_failed_run_keeps_its_reason_and_waits_to_be_asked_for(open_again: Open, jobs: list[Job]) -> None:
    ledger = open_again()
    claim = taken(ledger, jobs[:1])
    assert claim is not None
    claim.mark_failed("the disk is full")
    dies(claim)
    assert taken(ledger, jobs[:1]) is None
    study = ledger.open_study("small/search")
    (standing,) = ledger.compute_job_statuses(study, jobs[:1]).values()
    assert (standing.state, standing.reason) == ("failed", "the disk is full")
    ledger.enqueue_jobs(study, jobs[:1], retry=True)
    again = ledger.take_waiting_run(study, jobs[:1])
    assert again is not None
    again.record_result(0.5, record(0, 0.5))
    assert states(ledger, jobs[:1]) == ["done"]


def test_a_run_that_kills_every_worker_is_given_up_but_not_one_that_is_only_stopped(
    open_again: Open, jobs: list[Job]
) -> None:
    for _ in range(MAX_WORKER_DEATHS):
        claim = taken(open_again(), jobs[:1])
        assert claim is not None
        dies(claim)
    ledger = open_again()
    ledger.fail_dead_trials(ledger.open_study("small/search"))
    (standing,) = ledger.compute_job_statuses(ledger.open_study("small/search"), jobs[:1]).values()
    assert standing.state == "failed" and "3 workers died" in standing.reason
    for _ in range(MAX_WORKER_DEATHS):
        claim = taken(ledger, jobs[1:])
        assert claim is not None
        claim.mark_interrupted()
        dies(claim)
    assert states(ledger, jobs[1:]) == ["wanted"]


def test_drawn_hyper_parameters_differ_by_run_and_outlive_the_worker_that_drew_them(
    open_again: Open, experiment: Experiment
) -> None:
    search = SearchOptions(space={"training.lr": ValueRange(low=1e-4, high=1e-1, log=True)}, sampler="random", trials=2)
    drawing = Experiment("small", experiment.suite.model_copy(update={"search": search}))
    jobs = drawing.make_search_jobs("Markings", "linear")
    one, other = taken(open_again(), jobs), taken(open_again(), jobs)
    assert one is not None and other is not None
    drawn = one.choose_params(search)
    assert drawn != other.choose_params(search)
    dies(one)
    heir = taken(open_again(), jobs)
    assert heir is not None and heir.choose_params(search) == drawn


def test_a_ledger_that_cannot_be_opened_is_refused_with_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ToastError) as refused:
        Ledger("nodatabase://x", tmp_path)
    assert refused.value.code == "bench.ledger-not-opened" and "journal:FILE" in refused.value.what_to_do


def test_a_password_is_not_shown_where_its_ledger_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ToastError) as refused:
        Ledger("nodatabase://me:secret:p@ss@host/db", tmp_path)
    assert "nodatabase://me@host/db" in str(refused.value) and "secret" not in str(refused.value)


def test_a_worker_that_finds_tables_half_made_by_another_opens_them_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Racing(optuna.storages.RDBStorage):
        tries = 0

        def __init__(self, *given: Any, **more: Any) -> None:
            Racing.tries += 1
            if Racing.tries == 1:
                raise RuntimeError("UNIQUE constraint failed: alembic_version.version_num")
            super().__init__(*given, **more)

    monkeypatch.setattr("optuna.storages.RDBStorage", Racing)
    Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)
    assert Racing.tries == 2
