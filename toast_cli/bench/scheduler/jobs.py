"""From a suite to its runs: each is a recipe, and a key that two runs share exactly when they are the same run."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from toast_cli import registry
from toast_cli.bench.scheduler.input_digests import hash_input, list_input_files, replace_paths_by_hashes
from toast_cli.bench.suite import Suite, ValueRange, merge_overrides
from toast_cli.recipe.partial_recipe import expand_shorthand
from toast_cli.recipe.resolve import resolve_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import ToastError, UsageError

Stage = Literal["search", "final"]

LOCATION_FIELDS = {"device", "data_dir"}
"""What says where a run happens, not what it is."""
RESULT_NEUTRAL_SETTINGS = {"workers", "log_every", "tensorboard", "eval_batch_size"}
"""Training's settings that change no number."""


@dataclass(frozen=True)
class Job:
    """One run that a suite wants.

    `params` are its hyper-parameters by dotted field; None: the sampler draws them, and `slot` counts its draws.
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
        """What its folder is called: what it is, and its key, for what does not show in a name."""
        words = [
            self.dataset,
            self.row,
            *(["search"] if self.stage == "search" else [f"seed{self.seed}"]),
            self.key[:8],
        ]
        return re.sub(r"[^\w.=]+", "-", "-".join(words))


@dataclass(frozen=True)
class Experiment:
    """A suite as it is to run here.

    Args:
        name: what the suite is called.
        suite: the suite.
        changes: `KEY=VALUE` for every run, from the command line.
        data_dir, device, precision: as for `toast tune`.
        starts: pre-tuned artifacts by backbone; "" is for any.
        datasets, rows: names to restrict it to; empty: all.
        seeds: instead of the suite's.
        known: digests of the files that runs start from, by path, as they were when it was begun; None: to be found.
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
        """Data sets whose source is not registered here, and what was said about it: their cells are left out."""
        found = {}
        for name in self.suite.datasets:
            try:
                registry.load_entry(
                    registry.SOURCES, expand_shorthand("dataset", self.suite.source(name).source)["name"]
                )
            except UsageError as error:
                found[name] = error.what
        return found

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Every (data set, row) of it that there is a data source for."""
        asked = self.suite.cells(self.datasets, self.rows)
        return [(dataset, row) for dataset, row in asked if dataset not in self.missing]

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """Seeds of the final runs of every cell."""
        return self.seeds or self.suite.seeds

    @property
    def search_cells(self) -> list[tuple[str, str]]:
        """Every (data set, row) whose search some cell waits for."""
        if self.suite.search is None:
            return []
        return list(dict.fromkeys(self.suite.get_search_cell(*cell) for cell in self.cells))

    def check(self) -> None:
        """Make a recipe of every cell and read the files that it names, before anything is run.

        Raises:
            UsageError: one is not valid, a file is missing, or there is no cell at all.
            ToastError: a file cannot be read.
        """
        if not self.cells:
            raise UsageError(
                "There is nothing to run.", " ".join(dict.fromkeys(self.missing.values())), code="bench.nothing-to-run"
            )
        _ = self.contents

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """Digests of the files that its runs start from, by path as it was given.

        Raises:
            UsageError, ToastError: as `check`.
        """
        if self.known is not None:
            return self.known
        recipes = [self.recipe(*cell, "final", self.suite.seeds[0]) for cell in self.cells]
        if self.suite.search is not None:
            recipes += [self.recipe(*cell, "search", self.suite.search.seed) for cell in self.search_cells]
        return {
            path: hash_input(name, path) for recipe in recipes for name, path in list_input_files(recipe, {}).items()
        }

    def key(self, recipe: Recipe, more: Mapping[str, Any] | None = None) -> str:
        """The key of one of its runs."""
        return compute_run_key(recipe, more, self.contents)

    def check_unchanged(self, recipe: Recipe) -> None:
        """Make sure that what a run starts from is still what its key was made of.

        Raises:
            ToastError: it is not.
        """
        for name, path in list_input_files(recipe, self.contents).items():
            now = hash_input(name, path)
            if now != self.contents.get(path, now):
                raise ToastError(
                    f"{path} was changed since the suite was started ({name}).",
                    what_to_do="Start the same command again: runs from the new content are other runs.",
                    code="bench.input-changed",
                )

    def study(self, dataset: str, row: str, stage: Stage) -> str:
        """The name of the study that holds a cell's runs."""
        return f"{self.name}/{dataset}/{row}/{stage}"

    def recipe(
        self, dataset: str, row: str, stage: Stage, seed: int, params: Mapping[str, Any] | None = None
    ) -> Recipe:
        """The recipe of one run; a search never looks at the test split.

        Raises:
            UsageError: a name in it is not registered, or a field is wrong.
        """
        suite, options, source = self.suite, self.suite.rows[row], self.suite.source(dataset)
        backbone = options.backbone or suite.backbone
        searching = suite.search is not None and stage == "search"
        own = suite.search.set if suite.search is not None and searching else suite.final
        return resolve_recipe(
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

    def make_search_jobs(self, dataset: str, row: str) -> list[Job]:
        """The runs among which a cell's hyper-parameters are chosen; none where the suite has no search."""
        search = self.suite.search
        if search is None:
            return []
        if search.sampler == "grid":
            lists = [values for values in search.space.values() if not isinstance(values, ValueRange)]
            points = [dict(zip(search.space, point, strict=True)) for point in itertools.product(*lists)]
            return [self._make_job(dataset, row, "search", search.seed, params) for params in points]
        base = self.recipe(dataset, row, "search", search.seed)
        drawn = {"space": search.model_dump(mode="json")["space"], "sampler": search.sampler, "pruner": search.pruner}
        return [
            Job(dataset, row, "search", search.seed, self.key(base, {**drawn, "slot": slot}), slot=slot)
            for slot in range(search.trials or 0)
        ]

    def finals(self, dataset: str, row: str, params: Mapping[str, Any]) -> list[Job]:
        """A cell's final runs with the chosen hyper-parameters, one a seed."""
        return [self._make_job(dataset, row, "final", seed, params) for seed in self.final_seeds]

    def _make_job(self, dataset: str, row: str, stage: Stage, seed: int, params: Mapping[str, Any]) -> Job:
        recipe = self.recipe(dataset, row, stage, seed, params)
        return Job(dataset, row, stage, seed, self.key(recipe), dict(params))


def compute_run_key(
    recipe: Recipe, more: Mapping[str, Any] | None = None, known: Mapping[str, str] | None = None
) -> str:
    """Sixteen hexadecimal digits of what decides a run's numbers; of files, their contents (or digests in `known`).

    Raises:
        UsageError, ToastError: a file is missing, or cannot be read.
    """
    values = recipe.model_dump(mode="json", exclude=LOCATION_FIELDS | {"training"})
    values["training"] = recipe.training.model_dump(mode="json", exclude=RESULT_NEUTRAL_SETTINGS)
    replace_paths_by_hashes(values, recipe, known or {})
    if superseded := registry.load_backbone_card(recipe.backbone.name).superseded:
        values["superseded"] = dict(superseded)  # runs on the weights that had this name before are other runs
    return sha256(json.dumps([values, dict(more or {})], sort_keys=True, default=str).encode()).hexdigest()[:16]


def parse_init_from(given: Sequence[str]) -> dict[str, str]:
    """`BACKBONE=ARTIFACT`, or `ARTIFACT` for any backbone, by backbone."""
    pairs = (text.rpartition("=") for text in given)
    return {backbone: artifact for backbone, _, artifact in pairs}


def format_params(params: Mapping[str, Any]) -> str:
    """Hyper-parameters as a sentence has them."""
    return ", ".join(f"{name}={value}" for name, value in params.items()) or "the recipe's settings"
