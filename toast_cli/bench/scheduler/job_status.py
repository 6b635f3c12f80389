"""Status of a run, derived from all attempts at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

JobState = Literal["wanted", "waiting", "running", "done", "pruned", "failed"]

RESULTS_FILE = "results.json"
MAX_WORKER_DEATHS = 3
"""Number of workers that may die on a run before it counts as failed: the run may be the cause."""

JOB_STATE_BY_TRIAL_STATE: dict[TrialState, JobState] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
"""States of attempts that count, in order of precedence. All other attempts ended without a result."""


@dataclass(frozen=True)
class JobStatus:
    """Status of a run. `trial` is the attempt that counts, `reason` why the last attempt failed."""

    state: JobState
    trial: FrozenTrial | None = None
    reason: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Record of a finished run: results, versions, folder."""

    def with_run_path_from(self, out: Path) -> JobStatus:
        """Return the status with the path of the run's folder as seen from `out`.

        A run in `out` gets a path relative to it, also if `out` was moved. A run in another folder that shares the
        ledger gets its absolute path.
        """
        if "out" not in self.record or Path(self.record["out"]) == out.resolve():
            return self
        folder = Path(self.record["out"]) / self.record["run"]
        moved = (out / self.record["run"] / RESULTS_FILE).is_file() and not (folder / RESULTS_FILE).is_file()
        return self if moved else replace(self, record={**self.record, "run": folder.as_posix()})


def compute_job_status(trials: Iterable[FrozenTrial]) -> JobStatus:
    """Return the status of a run from its attempts: a finished attempt takes precedence, then a running one."""
    tried = [trial for trial in trials if trial.user_attrs.get("fate") != "duplicate"]
    for trial_state, state in JOB_STATE_BY_TRIAL_STATE.items():
        for trial in tried:
            if trial.state == trial_state:
                return JobStatus(state, trial)
    if not tried:
        return JobStatus("wanted")
    last = tried[-1]
    reason = last.user_attrs.get("reason", f"the worker died ({last.user_attrs.get('worker', 'unknown')})")
    since = max((n for n, trial in enumerate(tried) if trial.user_attrs.get("retry")), default=0)
    deaths = sum(trial.user_attrs.get("fate", "lost") == "lost" for trial in tried[since:])
    if last.user_attrs.get("fate") == "failed":
        return JobStatus("failed", last, reason)
    if deaths >= MAX_WORKER_DEATHS:
        return JobStatus("failed", last, f"{deaths} workers died on it, possibly out of memory; last attempt: {reason}")
    return JobStatus("wanted", last, reason)
