"""Suites: data sets × rows × seeds, an optional search, and the tables that they fill. Does not import PyTorch.

A suite is a YAML file. Its `set` blocks contain dotted fields of the recipe. If several blocks set the same field, the
last of these takes precedence: suite, row, data set, stage, command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from toast_cli import registry
from toast_cli.recipe.builtin import RECIPE_SUFFIXES, get_header_comment, get_suite_path, list_suites
from toast_cli.recipe.parse import read_recipe_text
from toast_cli.recipe.safe_yaml import parse_mapping
from toast_cli.recipe.unvalidated_recipe import format_field_path
from toast_cli.utils.config import BaseOptions
from toast_cli.utils.errors import UsageError, did_you_mean

DEFAULT_TABLE = "summary"
"""File name of the table of a suite that lays out none."""
HyperparameterValue = float | int | bool | str | None


BUILTIN_COLUMNS = ("parameters", "flops", "minutes", "validation", "attention:pass_one", "attention:pass_two")
"""Values of `columns` other than data sets, `average`, `judge:CATEGORY` and `metric:NAME`."""


class SuiteDataset(BaseOptions):
    """A data set of a suite."""

    source: str = Field(description="data source, in the format of --dataset")
    set: dict[str, Any] = Field(default_factory=dict, description="recipe fields for this data set")
    settings_of: str | None = Field(
        None,
        description="data set whose selected hyper-parameters are used here; no search is run on this data set",
    )


class SuiteRow(BaseOptions):
    """A row of a suite: a method on a backbone, with its changes to the recipe."""

    method: str = Field(description="method, in the format of --method")
    backbone: str | None = Field(None, description="backbone of this row; default: the suite's")
    recipe: str | None = Field(None, description="base recipe of this row; default: the suite's")
    set: dict[str, Any] = Field(default_factory=dict, description="recipe fields for this row")
    on: tuple[str, ...] | None = Field(None, description="data sets of this row; default: all")
    pretuned: bool = Field(
        False, description="start from the artifact that --init-from gives for the row's backbone, if any"
    )
    settings_of: str | None = Field(
        None, description="row whose selected hyper-parameters on the same data set are used; this row runs no search"
    )


class ValueRange(BaseOptions):
    """A range of numbers from `low` to `high`, for the random samplers."""

    low: float
    high: float
    log: bool = False


class SearchOptions(BaseOptions):
    """Options of the search that selects hyper-parameters on the validation split before the final runs."""

    space: dict[str, tuple[HyperparameterValue, ...] | ValueRange] = Field(
        min_length=1, description="dotted fields and their values: a list, or low, high and log"
    )
    sampler: Literal["grid", "random", "tpe", "qmc"] = Field(
        "grid", description="every combination (grid), or a sampler of Optuna"
    )
    trials: int | None = Field(None, ge=1, description="number of runs of a sampler; not for grid")
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none",
        description="pruner that stops runs early if they validate worse than others after the same number of epochs",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the search's runs and of the sampler")
    set: dict[str, Any] = Field(default_factory=dict, description="recipe fields for the search's runs")

    @model_validator(mode="after")
    def _check_sampler(self) -> SearchOptions:
        ranges = [key for key, values in self.space.items() if isinstance(values, ValueRange)]
        if self.sampler == "grid" and (ranges or self.trials is not None):
            raise ValueError(f"sampler grid accepts lists only, and no trials; got {', '.join(ranges) or 'trials'}")
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"sampler {self.sampler} requires trials")
        return self


class TableLayoutRow(BaseOptions):
    """A row of a table: the row of the suite that it shows, and the paper's numbers."""

    run: str | None = Field(None, description="row of the suite; default: show only the paper's numbers")
    group: str = Field("", description="group heading above this row and the rows that follow")
    paper: tuple[float | str | None, ...] = Field((), description="the paper's numbers, one per column")


class TableLayout(BaseOptions):
    """Layout of a table: its columns, its rows, and the paper's numbers."""

    title: str
    columns: dict[str, str] = Field(
        description="heading and content: a data set, average, validation, parameters, flops, minutes, judge:CATEGORY, "
        "metric:NAME for a registered metric, "
        "or attention:pass_one and attention:pass_two, the share of attention on the object if the data has masks"
    )
    spans: dict[str, int] = Field(
        default_factory=dict, description="headings that span columns, with their number of columns"
    )
    rows: dict[str, TableLayoutRow]

    @model_validator(mode="after")
    def _check_paper_numbers(self) -> TableLayout:
        for name, row in self.rows.items():
            if row.paper and len(row.paper) != len(self.columns):
                raise ValueError(
                    f"row {name}: paper has {len(row.paper)} numbers, expected {len(self.columns)}, one per column"
                )
        if self.spans and sum(self.spans.values()) != len(self.columns):
            raise ValueError(f"spans cover {sum(self.spans.values())} columns, expected {len(self.columns)}")
        return self


class CurvesFigureOptions(BaseOptions):
    """Layout of a figure of accuracy and attention over training images, steps and seconds."""

    title: str
    images: dict[str, int] = Field(min_length=2, description="data sets and their number of training images")
    steps_on: str = Field(description="data set whose validation is drawn over optimizer steps")
    rows: dict[str, str] = Field(min_length=1, description="names in the legend and rows of the suite")


class Suite(BaseOptions):
    """A suite: everything that determines an experiment except the machine."""

    recipe: str | None = Field(None, description="base recipe of every run; default: the data set's own")
    backbone: str = Field(description="default backbone of the rows")
    datasets: dict[str, str | SuiteDataset] = Field(min_length=1, description="data sets, by the name that tables use")
    rows: dict[str, SuiteRow] = Field(min_length=1, description="rows to compare, by name")
    seeds: tuple[int, ...] = Field(min_length=1, description="seeds of the final runs")
    set: dict[str, Any] = Field(default_factory=dict, description="recipe fields for all runs")
    search: SearchOptions | None = Field(None, description="default: no search, the recipe's settings are used")
    final: dict[str, Any] = Field(default_factory=dict, description="recipe fields for the final runs")
    tables: dict[str, TableLayout] = Field(
        default_factory=dict, description="tables, by file name; default: one of all rows and data sets"
    )
    curves: dict[str, CurvesFigureOptions] = Field(default_factory=dict, description="figures of curves, by file name")

    @model_validator(mode="after")
    def _check_names(self) -> Suite:
        registered = registry.load_all(registry.METRICS)
        metrics = (f"metric:{name}" for name, metric in registered.items() if metric.needs == "logits")
        shown = {"average", *BUILTIN_COLUMNS, *metrics, *self.datasets}
        for name, row in self.rows.items():
            for dataset in row.on or ():
                if dataset not in self.datasets:
                    raise ValueError(f"row {name}: unknown data set '{dataset}'")
        cells = list(self.iterate_cells())
        for dataset, name in cells:
            lender = self.get_search_cell(dataset, name)
            uses = f"{name} on {dataset} uses the settings of {lender[1]} on {lender[0]}"
            if lender not in cells:
                raise ValueError(f"{uses}, which the suite does not run")
            if self.get_search_cell(*lender) != lender or (lender != (dataset, name) and self.search is None):
                raise ValueError(f"{uses}, which has no search")
        for table in self.tables.values():
            for heading, content in table.columns.items():
                if content not in shown and not content.startswith("judge:"):
                    raise ValueError(f"table '{table.title}', column {heading}: unknown content '{content}'")
            for name, line in table.rows.items():
                if line.run is not None and line.run not in self.rows:
                    raise ValueError(f"table '{table.title}', row {name}: the suite has no row '{line.run}'")
        for curves in self.curves.values():
            for kind, names, known in (
                ("data set", (*curves.images, curves.steps_on), self.datasets),
                ("row", curves.rows.values(), self.rows),
            ):
                for name in names:
                    if name not in known:
                        raise ValueError(f"curves '{curves.title}': unknown {kind} '{name}'")
        return self

    def get_dataset_options(self, dataset: str) -> SuiteDataset:
        """Return a data set's options, also if the suite gives only its source."""
        given = self.datasets[dataset]
        return SuiteDataset(source=given) if isinstance(given, str) else given

    def list_tables(self) -> dict[str, TableLayout]:
        """Return the tables by file name; for a suite without any, one of all rows and data sets."""
        if self.tables:
            return self.tables
        average = {"average": "average"} if len(self.datasets) > 1 else {}
        columns = {name: name for name in self.datasets} | average | {"trained": "parameters"}
        rows = {name: TableLayoutRow(run=name) for name in self.rows}
        return {DEFAULT_TABLE: TableLayout(title="Mean ± standard deviation over seeds", columns=columns, rows=rows)}

    def get_search_cell(self, dataset: str, row: str) -> tuple[str, str]:
        """Return the (data set, row) whose search selects a cell's settings: itself unless `settings_of` is set."""
        return self.get_dataset_options(dataset).settings_of or dataset, self.rows[row].settings_of or row

    def iterate_cells(self, datasets: Sequence[str] = (), rows: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
        """Yield every (data set, row), restricted to `datasets` and `rows` unless they are empty.

        Raises:
            UsageError: the suite has no data set or row of a given name.
        """
        for kind, code, names, known in (
            ("data set", "bench.unknown-dataset", datasets, self.datasets),
            ("row", "bench.unknown-row", rows, self.rows),
        ):
            for name in names:
                if name not in known:
                    raise UsageError(
                        f"The suite has no {kind} '{name}'.", what_to_do=did_you_mean(name, known), code=code
                    )
        for row, options in self.rows.items():
            for dataset in options.on or self.datasets:
                if (not datasets or dataset in datasets) and (not rows or row in rows):
                    yield dataset, row


def read_suite_summary(name: str) -> str:
    """Return the first line of a built-in suite's header."""
    return get_header_comment(read_recipe_text(get_suite_path(name))).partition("\n")[0]


def load_suite(name_or_path: str) -> tuple[str, Suite, str]:
    """Load a suite by built-in name or by path; return its name, the suite and its text.

    Raises:
        UsageError: the suite does not exist, or it is not valid; the error lists every problem with its line.
    """
    path = Path(name_or_path)
    if path.suffix not in RECIPE_SUFFIXES or not path.is_file():
        if name_or_path not in list_suites():
            hint = did_you_mean(name_or_path, list_suites())
            raise UsageError(
                f"Unknown suite '{name_or_path}'.",
                what_to_do=f"{hint} Or give the path of a YAML file.",
                code="bench.unknown-suite",
            )
        path = get_suite_path(name_or_path)
    text = read_recipe_text(path)
    return path.stem, parse_suite(text, path.name if path == get_suite_path(path.stem) else str(path)), text


def parse_suite(text: str, origin: str) -> Suite:
    """Parse the YAML text of a suite; `origin` names it in errors.

    Raises:
        UsageError: the suite is not valid; the error lists every problem with its line.
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
    """Return `KEY=VALUE` for every field of the blocks; later blocks take precedence."""
    fields: dict[str, Any] = {}
    for block in blocks:
        fields |= block
    return [f"{key}={json.dumps(value)}" for key, value in fields.items()]


def _format_validation_error(found: Mapping[str, Any]) -> str:
    if found["type"] == "extra_forbidden":
        return "is not a field of a suite"
    return found["msg"].removeprefix("Value error, ")
