"""How far a wanted run has come, by all attempts at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

JobState = Literal["wanted", "waiting", "running", "done", "pruned", "failed"]

RESULTS_FILE = "results.json"
MAX_WORKER_DEATHS = 3
"""Workers that may die on a run before it counts as failed: it may be what kills them."""

JOB_STATE_BY_TRIAL_STATE: dict[TrialState, JobState] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
"""Attempts that count, the most telling first; all others came to nothing."""


@dataclass(frozen=True)
class JobStatus:
    """How far a wanted run has come. `trial` is the attempt that counts, `reason` why the last one failed."""

    state: JobState
    trial: FrozenTrial | None = None
    reason: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What a finished run left: results, versions, where it lies."""

    def with_run_path_from(self, out: Path) -> JobStatus:
        """The same, with the run's folder named as it is found from `out`, whose ledger other folders may share.

        Within `out`, or where it was moved with `out`, by its path there; else by its whole path where it was made.
        """
        if "out" not in self.record or Path(self.record["out"]) == out.resolve():
            return self
        there = Path(self.record["out"]) / self.record["run"]
        moved = (out / self.record["run"] / RESULTS_FILE).is_file() and not (there / RESULTS_FILE).is_file()
        return self if moved else replace(self, record={**self.record, "run": there.as_posix()})


def compute_job_status(trials: Iterable[FrozenTrial]) -> JobStatus:
    """How far a run has come that was tried so: a finished attempt counts most, then one that is under way."""
    tried = [trial for trial in trials if trial.user_attrs.get("fate") != "duplicate"]
    for wanted, state in JOB_STATE_BY_TRIAL_STATE.items():
        for trial in tried:
            if trial.state == wanted:
                return JobStatus(state, trial)
    if not tried:
        return JobStatus("wanted")
    last = tried[-1]
    reason = last.user_attrs.get("reason", f"its worker died ({last.user_attrs.get('worker', 'unknown')})")
    since = max((n for n, trial in enumerate(tried) if trial.user_attrs.get("retry")), default=0)
    deaths = sum(trial.user_attrs.get("fate", "lost") == "lost" for trial in tried[since:])
    if last.user_attrs.get("fate") == "failed":
        return JobStatus("failed", last, reason)
    if deaths >= MAX_WORKER_DEATHS:
        return JobStatus("failed", last, f"{deaths} workers died on it, the last time: {reason}; out of memory?")
    return JobStatus("wanted", last, reason)
