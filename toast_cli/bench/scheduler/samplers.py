"""How a search draws its settings, and when it gives a run up: what a suite asks for, as Optuna has it."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import Trial

from toast_cli.bench.suite import SearchOptions, ValueRange


def suggest_params(trial: Trial, search: SearchOptions) -> dict[str, Any]:
    """A setting from a search's space, drawn by the sampler of the trial's study."""
    return {name: _suggest_value(trial, name, values) for name, values in search.space.items()}


def _suggest_value(trial: Trial, name: str, values: Any) -> Any:
    if not isinstance(values, ValueRange):
        return trial.suggest_categorical(name, list(values))
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def make_sampler(search: SearchOptions | None, seed: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of a search."""
    if search is None or search.sampler in ("grid", "random"):
        # A grid's points are put in as they are, so nothing is left to draw.
        return optuna.samplers.RandomSampler(seed)
    if search.sampler == "qmc":
        return optuna.samplers.QMCSampler(seed=search.seed)
    # Liar: what others are trying at this moment counts as tried.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def make_pruner(search: SearchOptions | None) -> optuna.pruners.BasePruner:
    """The pruner of a search."""
    if search is None or search.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner() if search.pruner == "median" else optuna.pruners.HyperbandPruner()
