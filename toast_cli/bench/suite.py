"""A suite: data sets × rows × seeds, perhaps with a search before, and the tables that they fill. Torch-free.

A suite is a YAML file as recipes are. `set` blocks hold dotted fields of the recipe; of two that name the same field
the more special one counts: suite, row, data set, stage, command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from toast_cli.recipe.builtin import RECIPE_SUFFIXES, get_header_comment, get_suite_path, list_suites
from toast_cli.recipe.parse import read_recipe_text
from toast_cli.recipe.partial_recipe import format_field_path
from toast_cli.recipe.safe_yaml import parse_mapping
from toast_cli.utils.config import BaseOptions
from toast_cli.utils.errors import UsageError, did_you_mean

HyperparameterValue = float | int | bool | str | None


BUILTIN_COLUMNS = ("parameters", "flops", "minutes", "validation", "attention:pass_one", "attention:pass_two")
"""What a column may show beside data sets, their average and a judge's scores."""


class SuiteDataset(BaseOptions):
    """One data set of a suite."""

    source: str = Field(description="as --dataset takes it")
    set: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe on this data set")
    settings_of: str | None = Field(
        None,
        description="data set whose rows' settings, as found there, are taken here; nothing is searched on this one",
    )


class SuiteRow(BaseOptions):
    """One way of adapting: a method on a backbone, with its changes."""

    method: str = Field(description="as --method takes it")
    backbone: str | None = Field(None, description="instead of the suite's")
    recipe: str | None = Field(None, description="recipe to start from, instead of the suite's")
    set: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe in this row")
    on: tuple[str, ...] | None = Field(None, description="data sets of this row; left out: all of the suite")
    pretuned: bool = Field(
        False, description="starts from the artifact that --init-from gives for its backbone, if any"
    )
    settings_of: str | None = Field(
        None, description="row whose settings, as found on the same data set, it takes; it searches none of its own"
    )


class ValueRange(BaseOptions):
    """Numbers from `low` to `high`, for samplers that draw them."""

    low: float
    high: float
    log: bool = False


class SearchOptions(BaseOptions):
    """How hyper-parameters are found, on validation alone, before the final runs."""

    space: dict[str, tuple[HyperparameterValue, ...] | ValueRange] = Field(
        min_length=1, description="dotted fields and what to try: a list, or low, high and log"
    )
    sampler: Literal["grid", "random", "tpe", "qmc"] = Field(
        "grid", description="every combination, or one of Optuna's samplers"
    )
    trials: int | None = Field(None, ge=1, description="how many runs a sampler gets; a grid has as many as it has")
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none", description="which runs are stopped early for doing worse than others did after as many epochs"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the runs among which is chosen, and of the sampler")
    set: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe while searching")

    @model_validator(mode="after")
    def _check_sampler(self) -> SearchOptions:
        drawn = [key for key, values in self.space.items() if isinstance(values, ValueRange)]
        if self.sampler == "grid" and (drawn or self.trials is not None):
            raise ValueError(f"a grid takes lists alone, and no trials (here: {', '.join(drawn) or 'trials'})")
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"sampler {self.sampler} needs trials")
        return self


class TableLayoutRow(BaseOptions):
    """One line of a table: whose runs it shows, and what the paper has there."""

    run: str | None = Field(None, description="row of the suite; left out: the paper's numbers alone")
    group: str = Field("", description="heading above this and the following rows")
    paper: tuple[float | str | None, ...] = Field((), description="the paper's numbers, a column each")


class TableLayout(BaseOptions):
    """A table of the paper: columns, rows, and its numbers."""

    title: str
    columns: dict[str, str] = Field(
        description="heading and what it shows: a data set, average, validation, parameters, flops, minutes, "
        "judge:CATEGORY, or attention:pass_one and attention:pass_two, the share on the object where there are masks"
    )
    spans: dict[str, int] = Field(default_factory=dict, description="headings above so many columns each")
    rows: dict[str, TableLayoutRow]

    @model_validator(mode="after")
    def _check_paper_numbers(self) -> TableLayout:
        for name, row in self.rows.items():
            if row.paper and len(row.paper) != len(self.columns):
                raise ValueError(f"{name} has {len(row.paper)} numbers of the paper for {len(self.columns)} columns")
        if self.spans and sum(self.spans.values()) != len(self.columns):
            raise ValueError(f"spans cover {sum(self.spans.values())} of {len(self.columns)} columns")
        return self


class CurvesFigureOptions(BaseOptions):
    """A figure of accuracy and attention against training images, steps and seconds."""

    title: str
    images: dict[str, int] = Field(min_length=2, description="data set and its number of training images")
    steps_on: str = Field(description="data set whose validation is drawn step by step")
    rows: dict[str, str] = Field(min_length=1, description="name in the legend and row of the suite")


class Suite(BaseOptions):
    """Everything that decides an experiment but the machine it runs on."""

    recipe: str | None = Field(None, description="recipe that every run starts from; left out: the data set's own")
    backbone: str = Field(description="frozen network of rows that name none")
    datasets: dict[str, str | SuiteDataset] = Field(min_length=1, description="data sets by the name that tables use")
    rows: dict[str, SuiteRow] = Field(min_length=1, description="what is compared, by name")
    seeds: tuple[int, ...] = Field(min_length=1, description="seeds of the final runs")
    set: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe in all runs")
    search: SearchOptions | None = Field(None, description="left out: the recipe's own settings are taken")
    final: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe in the final runs alone")
    tables: dict[str, TableLayout] = Field(default_factory=dict, description="what is shown, by file name")
    curves: dict[str, CurvesFigureOptions] = Field(default_factory=dict, description="figures of curves, by file name")

    @model_validator(mode="after")
    def _check_names(self) -> Suite:
        shown = {"average", *BUILTIN_COLUMNS, *self.datasets}
        for name, row in self.rows.items():
            for dataset in row.on or ():
                if dataset not in self.datasets:
                    raise ValueError(f"row {name}: there is no data set '{dataset}'")
        cells = list(self.cells())
        for dataset, name in cells:
            lender = self.get_search_cell(dataset, name)
            takes = f"{name} on {dataset} takes the settings of {lender[1]} on {lender[0]}"
            if lender not in cells:
                raise ValueError(f"{takes}, which is not run")
            if self.get_search_cell(*lender) != lender or (lender != (dataset, name) and self.search is None):
                raise ValueError(f"{takes}, which searches none")
        for table in self.tables.values():
            for heading, what in table.columns.items():
                if what not in shown and not what.startswith("judge:"):
                    raise ValueError(f"table '{table.title}', column {heading}: there is no '{what}'")
            for name, line in table.rows.items():
                if line.run is not None and line.run not in self.rows:
                    raise ValueError(f"table '{table.title}', {name}: there is no row '{line.run}'")
        for curves in self.curves.values():
            for kind, names, known in (
                ("data set", (*curves.images, curves.steps_on), self.datasets),
                ("row", curves.rows.values(), self.rows),
            ):
                for name in names:
                    if name not in known:
                        raise ValueError(f"curves '{curves.title}': there is no {kind} '{name}'")
        return self

    def source(self, dataset: str) -> SuiteDataset:
        """A data set, spelled out."""
        given = self.datasets[dataset]
        return SuiteDataset(source=given) if isinstance(given, str) else given

    def get_search_cell(self, dataset: str, row: str) -> tuple[str, str]:
        """The (data set, row) whose search a cell's settings come from: its own, unless it takes another's."""
        return self.source(dataset).settings_of or dataset, self.rows[row].settings_of or row

    def cells(self, datasets: Sequence[str] = (), rows: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
        """Every (data set, row), or those of the names given.

        Raises:
            UsageError: one of them is not in the suite.
        """
        for word, code, asked, known in (
            ("data set", "bench.unknown-dataset", datasets, self.datasets),
            ("row", "bench.unknown-row", rows, self.rows),
        ):
            for name in asked:
                if name not in known:
                    raise UsageError(
                        f"The suite has no {word} '{name}'.", what_to_do=did_you_mean(name, known), code=code
                    )
        for row, options in self.rows.items():
            for dataset in options.on or self.datasets:
                if (not datasets or dataset in datasets) and (not rows or row in rows):
                    yield dataset, row


def read_suite_summary(name: str) -> str:
    """The first line of a built-in suite's header."""
    return get_header_comment(read_recipe_text(get_suite_path(name))).partition("\n")[0]


def load_suite(name_or_path: str) -> tuple[str, Suite, str]:
    """A suite by built-in name or by file: what it is called, the suite, and its text.

    Raises:
        UsageError: there is none, or it is not valid; every problem is named with its line.
    """
    path = Path(name_or_path)
    if path.suffix not in RECIPE_SUFFIXES or not path.is_file():
        if name_or_path not in list_suites():
            hint = did_you_mean(name_or_path, list_suites())
            raise UsageError(
                f"There is no suite '{name_or_path}'.",
                what_to_do=f"{hint} Or name a YAML file.",
                code="bench.unknown-suite",
            )
        path = get_suite_path(name_or_path)
    text = read_recipe_text(path)
    return path.stem, parse_suite(text, path.name if path == get_suite_path(path.stem) else str(path)), text


def parse_suite(text: str, origin: str) -> Suite:
    """The suite that a YAML text holds.

    Raises:
        UsageError: it is not valid; every problem is named with its line.
    """
    values, places = parse_mapping(text, origin, "suite")
    try:
        return Suite.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        lines = []
        for found in error.errors():
            loc = found["loc"]
            place = next((places[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in places), origin)
            lines.append(" ".join(filter(None, (f"{place}:", format_field_path(loc), _format_validation_error(found)))))
        raise UsageError(
            f"{origin} is not a valid suite.", list(dict.fromkeys(lines)), code="bench.invalid-suite"
        ) from error


def merge_overrides(*blocks: Mapping[str, Any]) -> list[str]:
    """`KEY=VALUE` of every field that some block sets, the last block's value."""
    fields: dict[str, Any] = {}
    for block in blocks:
        fields |= block
    return [f"{key}={json.dumps(value)}" for key, value in fields.items()]


def _format_validation_error(found: Mapping[str, Any]) -> str:
    return (
        "is no field of a suite" if found["type"] == "extra_forbidden" else found["msg"].removeprefix("Value error, ")
    )
