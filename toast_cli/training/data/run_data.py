"""The data of a run: opened alike by all processes, recorded in the run folder, and compared when it is met again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from toast_cli.data.base import DataSet
from toast_cli.data.identity import (
    UNKNOWN,
    DataIdentity,
    SplitIdentity,
    describe_data_differences,
    describe_split_differences,
    identify_data,
    identify_split,
)
from toast_cli.model.recipe_data import open_data
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import ADAPTER_CONFIG_FILE
from toast_cli.storage.checksums import parse_record, read_checksummed_json
from toast_cli.storage.run_folder import DATA_FILE
from toast_cli.training.distributed.collectives import raise_together
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import require_regular_file

FORMAT = 1


def open_shared_data(recipe: Recipe, accelerator: Accelerator) -> DataSet:
    """Open the recipe's data set in every process, and check that all of them see the same classes and samples.

    Raises:
        ToastError: a process cannot open it, or sees other data than the first one. Every process raises the same
            error, which names the process, so that none waits for another.
    """
    if accelerator.num_processes == 1:
        return open_data(recipe)
    data, error, identity = None, None, DataIdentity()
    try:
        data = open_data(recipe)
        identity = identify_data(data)
    except ToastError as caught:
        error = caught
    raise_together(error)
    found: list[Any] = gather_object([identity.summary()])
    unlike = [process for process, summary in enumerate(found) if summary != found[0]]
    if unlike:
        identities: list[DataIdentity] = gather_object([identity])
        raise ToastError(
            f"Process {unlike[0]} of {len(found)} has other data than process 0.",
            describe_data_differences(identities[0], identities[unlike[0]]),
            "Copy the same data to every machine, or let all processes read one folder.",
            code="data.unequal-processes",
        )
    assert data is not None
    return data


def read_data_record(run: Path) -> DataIdentity | None:
    """Return the data that a run was started with; None if nothing is recorded.

    `run` is a run folder or the adapter folder in it. Runs of earlier versions have the hashes of the splits in their
    results.

    Raises:
        ToastError: the record is damaged.
    """
    run = run.parent if (run / ADAPTER_CONFIG_FILE).is_file() and run.name == "adapter" else run
    file = run / DATA_FILE
    if not file.exists():
        return _read_results_record(run)
    try:
        return parse_record(DataIdentity, require_regular_file(file).read_bytes(), FORMAT, file)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ToastError(
            f"{file} is damaged.",
            str(error),
            "Restore it from a copy. Without this file, the run is used without comparing its data.",
            code="run.damaged",
        ) from error


def _read_results_record(run: Path) -> DataIdentity | None:
    """Return the record of a run of an earlier version; None for unfinished runs and exports.

    Raises:
        ToastError: the results are damaged.
    """
    file = run / "results.json"
    results = read_checksummed_json(file) if file.exists() else {}
    return build_results_record(results) if isinstance(results.get("split_hashes"), dict) else None


def build_results_record(results: Mapping[str, Any]) -> DataIdentity:
    """Return what the results of a run tell of its data: the hashes of its splits, and their sizes if recorded."""
    samples, contents = results.get("samples", {}), results.get("split_contents", {})
    return DataIdentity(
        None,
        {
            name: SplitIdentity(samples.get(name, UNKNOWN), digest, contents.get(name))
            for name, digest in results["split_hashes"].items()
        },
    )


def identify_recipe_data(recipe: Recipe) -> DataIdentity:
    """Open the data set of a recipe and return its identity.

    Raises:
        ToastError: it cannot be opened.
    """
    return identify_data(open_data(recipe))


def describe_changes_since(run: Path | None, record: Mapping[str, Any], current: DataIdentity | None) -> list[str]:
    """Return how data differs from that of a run, known by its folder or else by its record in a suite's ledger.

    Raises:
        ToastError: the record in the folder is damaged.
    """
    if current is None:
        return []
    recorded = None if run is None else read_data_record(run)
    if recorded is None and record:
        recorded = build_results_record(record)
    return [] if recorded is None else describe_data_differences(recorded, current)


def check_resumed_data(run: Path, identity: DataIdentity) -> bool:
    """Check that the data is what an interrupted run was started with, before anything is written.

    Return whether the run has a record of its data.

    Raises:
        ToastError: classes or samples differ, or the record is damaged.
    """
    recorded = read_data_record(run)
    differences = [] if recorded is None else describe_data_differences(recorded, identity)
    if differences:
        raise ToastError(
            f"Cannot resume {run}: the data has changed since the run was started.",
            differences,
            f"Put the data back as it was, or start a new run: --recipe {run / 'recipe.yaml'} --output-dir NEW.",
            code="resume.changed-data",
        )
    return recorded is not None


def describe_changed_split(run: Path, name: str, data: DataSet) -> str | None:
    """Return a message if a split is not the one that the run was started with, whose numbers it cannot be compared to.

    Raises:
        ToastError: the record is damaged.
    """
    recorded = read_data_record(run)
    if recorded is None or name not in data.splits:
        return None
    current = DataIdentity(data.classes, {name: identify_split(data.splits[name])})
    differences = describe_split_differences(name, recorded, current)
    return f"The data has changed since {run} was trained. {differences[0]}" if differences else None
