"""The time left of an experiment: by the runs most like those that are left, and by the workers that run."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.unit.bench.made_up import Filled
from toast_cli.bench.scheduler.cost_estimate import estimate_remaining_time
from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.suite import parse_suite

SUITE = """
backbone: vit_demo_3
datasets: {Small: demo, Large: demo}
rows: {linear: {method: linear}, toast: {method: toast}}
seeds: [0, 1, 2]
"""


class Told(Filled):
    """A board with the states that it is given: seconds of a done run, `None` wanted, an `int` at it for so long."""

    def __init__(self, states: dict[tuple[str, str], list[Any]]) -> None:
        experiment = Experiment("left", parse_suite(SUITE, "left.yaml"))
        super().__init__(experiment, lambda *_: None)
        self.states = states

    def get_stage_status(self, dataset: str, row: str, stage: Any) -> dict[Job, JobStatus]:
        given = self.states.get((dataset, row), [1.0] * 3)
        return {Job(dataset, row, stage, seed, f"{seed}"): _standing(state) for seed, state in enumerate(given)}


def _standing(state: Any) -> JobStatus:
    if state is None:
        return JobStatus("wanted")
    if isinstance(state, int):
        trial = optuna.trial.create_trial(value=0.0)
        trial.datetime_start = datetime.now() - timedelta(seconds=state)
        return JobStatus("running", trial)
    return JobStatus("done", record={"seconds": state})


def test_a_run_is_expected_to_take_as_long_as_those_of_its_own_cell(tmp_path: Path) -> None:
    board = Told({("Small", "linear"): [1.0, 1.0, 1.0], ("Large", "toast"): [1000.0, None, None]})
    left = estimate_remaining_time(board)
    assert left is not None and left.seconds == pytest.approx(2000) and (left.runs, left.alike) == (2, 2)


def test_where_its_cell_has_none_those_of_its_row_are_taken(tmp_path: Path) -> None:
    board = Told({("Small", "toast"): [500.0] * 3, ("Large", "toast"): [None] * 3})
    left = estimate_remaining_time(board)
    assert left is not None and left.seconds == pytest.approx(1500) and (left.runs, left.alike) == (3, 0)


def test_workers_share_it_and_what_they_have_done_of_a_run_is_taken_off(tmp_path: Path) -> None:
    left = estimate_remaining_time(Told({("Large", "toast"): [100.0, 40, 70]}))
    assert left is not None and left.workers == 2
    assert left.seconds == pytest.approx(60, abs=1), "the longer of the two, not the mean of 60 and 30"


def test_nothing_is_guessed_before_a_run_is_done_and_nothing_is_left_at_the_end() -> None:
    every = {(dataset, row): [None] * 3 for dataset in ("Small", "Large") for row in ("linear", "toast")}
    assert estimate_remaining_time(Told(every)) is None
    assert estimate_remaining_time(Told({})) is None
