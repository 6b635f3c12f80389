"""How far a wanted run has come, by all attempts at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

State = Literal["wanted", "waiting", "running", "done", "pruned", "failed"]

RESULTS = "results.json"
MOST_DEATHS = 3
"""Workers that may die on a run before it counts as failed: it may be what kills them."""

COUNTING: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
"""Attempts that count, the most telling first; all others came to nothing."""


@dataclass(frozen=True)
class Standing:
    """How far a wanted run has come. `trial` is the attempt that counts, `reason` why the last one failed."""

    state: State
    trial: FrozenTrial | None = None
    reason: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What a finished run left: results, versions, where it lies."""

    def seen_from(self, out: Path) -> Standing:
        """The same, with the run's folder named as it is found from `out`, whose ledger other folders may share.

        Within `out`, or where it was moved with `out`, by its path there; else by its whole path where it was made.
        """
        if "out" not in self.record or Path(self.record["out"]) == out.resolve():
            return self
        there = Path(self.record["out"]) / self.record["run"]
        moved = (out / self.record["run"] / RESULTS).is_file() and not (there / RESULTS).is_file()
        return self if moved else replace(self, record={**self.record, "run": there.as_posix()})


def standing_of(trials: Iterable[FrozenTrial]) -> Standing:
    """How far a run has come that was tried so: a finished attempt counts most, then one that is under way."""
    tried = [trial for trial in trials if trial.user_attrs.get("fate") != "duplicate"]
    for wanted, state in COUNTING.items():
        for trial in tried:
            if trial.state == wanted:
                return Standing(state, trial)
    if not tried:
        return Standing("wanted")
    last = tried[-1]
    reason = last.user_attrs.get("reason", "its worker died")
    since = max((n for n, trial in enumerate(tried) if trial.user_attrs.get("retry")), default=0)
    deaths = sum(trial.user_attrs.get("fate", "lost") == "lost" for trial in tried[since:])
    if last.user_attrs.get("fate") == "failed":
        return Standing("failed", last, reason)
    if deaths >= MOST_DEATHS:
        return Standing("failed", last, f"{deaths} workers died on it, the last time: {reason}; out of memory?")
    return Standing("wanted", last, reason)
