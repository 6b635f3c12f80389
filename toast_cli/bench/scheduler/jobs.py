"""Runs of a suite. Each has a recipe and a key; two runs are the same if and only if their keys are equal."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from toast_cli import registry
from toast_cli.bench.scheduler.input_digests import hash_input, list_input_files, replace_paths_by_hashes
from toast_cli.bench.suite import Suite, ValueRange, merge_overrides
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.recipe.unvalidated_recipe import expand_shorthand
from toast_cli.utils.config import is_automatic
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_text
from toast_cli.utils.names import to_file_name

Stage = Literal["search", "final"]

LOCATION_FIELDS = {"device", "data_dir"}
"""Recipe fields that determine where a run takes place, not its results."""
RESULT_NEUTRAL_SETTINGS = {"workers", "log_every", "trackers", "tensorboard", "eval_batch_size"}
"""Training fields that do not affect results."""

CHOSEN_SETTINGS = ("batch_size", "lr")
"""Training fields that affect results and may be `auto` in a single run."""


@dataclass(frozen=True)
class Job:
    """A run of a suite.

    `params` are its hyper-parameters by dotted field. If None, the sampler draws them, and `slot` numbers the draws.
    """

    dataset: str
    row: str
    stage: Stage
    seed: int
    key: str
    params: Mapping[str, Any] | None = field(default=None, compare=False)
    slot: int | None = None

    @property
    def name(self) -> str:
        """Name of the run's folder: data set, row, stage or seed, and the first digits of the key."""
        words = [
            self.dataset,
            self.row,
            *(["search"] if self.stage == "search" else [f"seed{self.seed}"]),
            self.key[:8],
        ]
        return to_file_name(re.sub(r"[^\w.=]+", "-", "-".join(words)))


@dataclass(frozen=True)
class Experiment:
    """A suite with the options of the command line.

    Args:
        name: name of the suite.
        suite: the suite.
        changes: `KEY=VALUE` for every run.
        data_dir, device, precision: as for `toast tune`.
        starts: pre-tuned artifacts by backbone; the key "" applies to any backbone.
        datasets, rows: names to restrict the suite to; if empty, all are run.
        seeds: seeds of the final runs; if empty, the suite's.
        known: digests of the input files by path, from the start of the experiment; if None, the files are read.
    """

    name: str
    suite: Suite
    changes: tuple[str, ...] = ()
    data_dir: str | None = None
    device: str | None = None
    precision: str | None = None
    starts: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    known: Mapping[str, str] | None = None

    @cached_property
    def missing(self) -> dict[str, str]:
        """Data sets whose source is not registered, with the error message. Their cells are not run."""
        found = {}
        for name in self.suite.datasets:
            try:
                registry.load_entry(
                    registry.SOURCES, expand_shorthand("dataset", self.suite.get_dataset_options(name).source)["name"]
                )
            except UsageError as error:
                found[name] = error.what
        return found

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Every (data set, row) whose data source is registered."""
        cells = self.suite.iterate_cells(self.datasets, self.rows)
        return [(dataset, row) for dataset, row in cells if dataset not in self.missing]

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """Seeds of the final runs of every cell."""
        return self.seeds or self.suite.seeds

    @property
    def search_cells(self) -> list[tuple[str, str]]:
        """Every (data set, row) whose search selects the settings of some cell."""
        if self.suite.search is None:
            return []
        return list(dict.fromkeys(self.suite.get_search_cell(*cell) for cell in self.cells))

    def validate(self) -> None:
        """Build the recipe of every cell and read its input files.

        Raises:
            UsageError: a recipe is not valid, a file is missing, or there is no cell to run.
            ToastError: a file cannot be read.
        """
        if not self.cells:
            raise UsageError(
                "Nothing to run.", " ".join(dict.fromkeys(self.missing.values())), code="bench.nothing-to-run"
            )
        _ = self.contents

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """Digests of the input files of all runs, by path as given.

        Raises:
            UsageError, ToastError: as `check`.
        """
        if self.known is not None:
            return self.known
        recipes = [self.build_recipe(*cell, "final", self.suite.seeds[0]) for cell in self.cells]
        if self.suite.search is not None:
            recipes += [self.build_recipe(*cell, "search", self.suite.search.seed) for cell in self.search_cells]
        return {
            path: hash_input(name, path) for recipe in recipes for name, path in list_input_files(recipe, {}).items()
        }

    def compute_key(self, recipe: Recipe, more: Mapping[str, Any] | None = None) -> str:
        """Return the key of a run of this experiment."""
        return compute_run_key(recipe, more, self.contents)

    def check_unchanged(self, recipe: Recipe) -> None:
        """Check that the input files of a run are unchanged since its key was computed.

        Raises:
            ToastError: a file has changed.
        """
        for name, path in list_input_files(recipe, self.contents).items():
            now = hash_input(name, path)
            if now != self.contents.get(path, now):
                raise ToastError(
                    f"{path} ({name}) has changed since the suite was started.",
                    what_to_do="Run the same command again: it makes new runs from the new content.",
                    code="bench.input-changed",
                )

    def get_study_name(self, dataset: str, row: str, stage: Stage) -> str:
        """Return the name of the study that contains a cell's runs."""
        return f"{self.name}/{dataset}/{row}/{stage}"

    def build_recipe(
        self, dataset: str, row: str, stage: Stage, seed: int, params: Mapping[str, Any] | None = None
    ) -> Recipe:
        """Return the recipe of a run. Runs of a search have `test: false`.

        Raises:
            UsageError: a name is not registered, a field is not valid, or toast would choose it for each run.
        """
        suite, options, source = self.suite, self.suite.rows[row], self.suite.get_dataset_options(dataset)
        backbone = options.backbone or suite.backbone
        searching = suite.search is not None and stage == "search"
        own = suite.search.set if suite.search is not None and searching else suite.final
        recipe = resolve_recipe(
            recipe=options.recipe or suite.recipe,
            backbone=backbone,
            dataset=source.source,
            method=options.method,
            data_dir=self.data_dir,
            seed=seed,
            device=self.device,
            precision=self.precision,
            init_from=self.starts.get(backbone, self.starts.get("")) if options.pretuned else None,
            overrides=[
                *merge_overrides(suite.set, options.set, source.set, own),
                *self.changes,
                *merge_overrides(params or {}, {"test": not searching}),
            ],
        ).recipe
        if chosen := [name for name in CHOSEN_SETTINGS if is_automatic(getattr(recipe.training, name))]:
            raise UsageError(
                f"A suite cannot have training.{chosen[0]}=auto ({row} on {dataset}).",
                "Its runs would differ in a setting that the tables do not show.",
                f"Write a number, or let the suite search over training.{chosen[0]}.",
                code="bench.automatic-setting",
            )
        return recipe

    def make_search_jobs(self, dataset: str, row: str) -> list[Job]:
        """Return the runs of a cell's search, an empty list if the suite has no search."""
        search = self.suite.search
        if search is None:
            return []
        if search.sampler == "grid":
            lists = [values for values in search.space.values() if not isinstance(values, ValueRange)]
            points = [dict(zip(search.space, point, strict=True)) for point in itertools.product(*lists)]
            return [self._make_job(dataset, row, "search", search.seed, params) for params in points]
        base = self.build_recipe(dataset, row, "search", search.seed)
        drawn = {"space": search.model_dump(mode="json")["space"], "sampler": search.sampler, "pruner": search.pruner}
        return [
            Job(dataset, row, "search", search.seed, self.compute_key(base, {**drawn, "slot": slot}), slot=slot)
            for slot in range(search.trials or 0)
        ]

    def make_final_jobs(self, dataset: str, row: str, params: Mapping[str, Any]) -> list[Job]:
        """Return a cell's final runs with the selected hyper-parameters, one per seed."""
        return [self._make_job(dataset, row, "final", seed, params) for seed in self.final_seeds]

    def _make_job(self, dataset: str, row: str, stage: Stage, seed: int, params: Mapping[str, Any]) -> Job:
        recipe = self.build_recipe(dataset, row, stage, seed, params)
        return Job(dataset, row, stage, seed, self.compute_key(recipe), dict(params))


def compute_run_key(
    recipe: Recipe, more: Mapping[str, Any] | None = None, known: Mapping[str, str] | None = None
) -> str:
    """Return 16 hexadecimal digits that identify everything that affects a run's results.

    Input files count by their content, for which `known` may give digests by path.

    Raises:
        UsageError: a file is missing.
        ToastError: a file cannot be read.
    """
    values = recipe.model_dump(mode="json", exclude=LOCATION_FIELDS | {"training"})
    values["training"] = recipe.training.model_dump(mode="json", exclude=RESULT_NEUTRAL_SETTINGS)
    replace_paths_by_hashes(values, recipe, known or {})
    if superseded := recipe.plugins.backbone.superseded:
        values["superseded"] = dict(superseded)  # runs with the earlier weights of this name are different
    return hash_text(json.dumps([values, dict(more or {})], sort_keys=True, default=str))[:16]


def parse_init_from(given: Sequence[str]) -> dict[str, str]:
    """Parse `BACKBONE=ARTIFACT`, or `ARTIFACT` for any backbone; return the artifacts by backbone."""
    pairs = (text.rpartition("=") for text in given)
    return {backbone: artifact for backbone, _, artifact in pairs}


def format_params(params: Mapping[str, Any]) -> str:
    """Format hyper-parameters for a message."""
    return ", ".join(f"{name}={value}" for name, value in params.items()) or "the recipe's settings"
