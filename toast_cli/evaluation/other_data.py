"""The options of other data that a run is used with: the run's columns where the data has them, and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toast_cli.data.text.split_options import TextSplitOptions, hold_out_nothing
from toast_cli.recipe.parse import build_dataset_options
from toast_cli.recipe.schema import Recipe
from toast_cli.recipe.unvalidated_recipe import expand_shorthand

COLUMN_FIELDS = ("image_column", "label_column", "split_column", "box_columns")
"""Fields of data sources that name columns which a table need not have under the same name."""


def choose_dataset(
    choice: str,
    recipe: Recipe,
    data_dir: str | None,
    overrides: Sequence[str] = (),
    *,
    hold_out_texts: bool = True,
) -> dict[str, Any]:
    """Return the section of another data set for a run.

    Data of the run's own source has the run's columns of labels and numbers, and those of its other columns that it
    has. Texts become tokens as in the run. Overrides replace all of these.

    Args:
        choice: the data set, as given by `--dataset`.
        recipe: the recipe of the run.
        data_dir: the folder of data sets.
        overrides: dotted fields of the data set, such as `dataset.image_column=file`.
        hold_out_texts: False puts all texts of the data into one split.

    Raises:
        UsageError: there is no such data set, or an override is invalid or addresses another section.
        ToastError: the data is a table that cannot be read.
    """
    section = expand_shorthand("dataset", choice)
    kept: dict[str, Any] = {}
    if section["name"] == recipe.dataset.name:
        kept = _keep_columns(section, recipe, data_dir)
    other = build_dataset_options(choice, {**kept, **section}, overrides)
    if isinstance(other, TextSplitOptions):
        kept |= _keep_token_fields(other, recipe)
        if not hold_out_texts:
            kept = hold_out_nothing(kept)
    return build_dataset_options(choice, {**kept, **section}, overrides).model_dump(mode="json")


def _keep_columns(section: dict[str, str], recipe: Recipe, data_dir: str | None) -> dict[str, Any]:
    """Return the fields of the run that name columns of the other data."""
    source, own = recipe.plugins.dataset, recipe.dataset.model_dump(mode="json")
    kept = {name: own[name] for name in source.task_by_option if own[name] is not None}
    if source.list_columns is None:  # which columns there are is only known when the data is opened
        return {**kept, "label_column": own["label_column"]} if kept else {}
    options = recipe.dataset.model_copy(update=section)
    columns = set(source.list_columns(options, None if data_dir is None else Path(data_dir).expanduser()))
    for name in COLUMN_FIELDS:
        if name in own and columns.issuperset([own[name]] if isinstance(own[name], str) else own[name]):
            kept[name] = own[name]
    if "box_columns" in kept:
        kept["box_corners"] = own["box_corners"]
    return kept


def _keep_token_fields(other: TextSplitOptions, recipe: Recipe) -> dict[str, Any]:
    """Return the fields of the run that decide how the other data's texts become tokens."""
    own = recipe.dataset
    if not isinstance(own, TextSplitOptions):
        return {}
    values = own.model_dump(mode="json")
    return {name: values[name] for name in other.TOKEN_FIELDS if name in own.TOKEN_FIELDS}
