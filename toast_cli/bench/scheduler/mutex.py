"""One recipe is made once: an attempt at one that another makes waits for that one, and takes over what it left.

Any two runs of a ledger may turn out to be the same recipe: a sampler draws a setting again, two rows differ in
nothing, two suites share a cell. A storage has no lock for that. So every attempt says what it is about to make, then
looks around, and makes it only if it is alone; of two that meet, the later one steps back (Lamport's one-bit algorithm,
"The Mutual Exclusion Problem: Part II", 1986).
"""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState

from toast_cli.bench.scheduler.integrity import convert_read_errors, read_trial_record
from toast_cli.bench.scheduler.lease import JobLease, LeaseLostError
from toast_cli.bench.scheduler.trials import Ledger

POLL = 2.0
"""Seconds between two looks at what others do."""
MAKING = "recipe"
"""What an attempt says of itself: the key of the recipe that it makes or has made."""


def made_elsewhere(ledger: Ledger, claim: JobLease, recipe: str) -> tuple[float, dict[str, Any]] | None:
    """Value and record of a finished run of this recipe, waiting for one that is under way; None: it is ours to make.

    Raises:
        LostClaim: another worker took this one for dead meanwhile.
    """
    said = False
    while True:
        finished, others = _look(ledger, claim.trial._trial_id, recipe)
        if finished is not None:
            return finished
        if said and not others:
            return None
        first = all(claim.trial._trial_id < other for other in others)
        if first != said:
            said = first
            claim.trial.set_user_attr(MAKING, recipe if said else "")
            if said:
                continue
        if claim.lost.wait(POLL):
            raise LeaseLostError


def _look(ledger: Ledger, own: int, recipe: str) -> tuple[tuple[float, dict[str, Any]] | None, list[int]]:
    """A finished attempt at the recipe, if there is one, and the numbers of other living ones."""
    others = []
    with convert_read_errors(ledger.url):
        for study in ledger.storage.get_all_studies():
            wanted = (TrialState.COMPLETE, TrialState.RUNNING)
            for trial in ledger.storage.get_all_trials(study._study_id, deepcopy=False, states=wanted):
                done = trial.state == TrialState.COMPLETE
                if trial.user_attrs.get(MAKING, trial.user_attrs.get("key") if done else "") != recipe:
                    continue
                if done:
                    record = {
                        **read_trial_record(trial, ledger.url),
                        "same_as": f"{study.study_name}, attempt {trial.number}",
                    }
                    return (trial.values[0], record), []
                if trial._trial_id != own and not ledger.is_dead(trial):
                    others.append(trial._trial_id)
    return None, others
