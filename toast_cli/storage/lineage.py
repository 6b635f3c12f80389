"""The lineage of a run: the models that it starts from, and the extensions that trained it for longer.

`lineage.json` in a run folder holds both. An adapter's configuration repeats the models that it starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toast_cli.storage.checksums import RUN_REPAIR_HINT, add_checksum, parse_record
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import require_regular_file, write_json
from toast_cli.utils.version import __version__

FORMAT = 1
LINEAGE_FILE = "lineage.json"
"""File of a run folder with its lineage; a run that starts afresh and was never extended has none."""


@dataclass(frozen=True)
class RunLineage:
    """The lineage of a run.

    Attributes:
        start: the models that the run starts from, oldest first, as in `AdapterConfig.lineage`.
        warnings: what is wrong with a result of a run that starts there, for example test images that it was trained
            on.
        extensions: the changes of the recipe after the run was started, oldest first. Each has `changes` (the values
            before and after by field), the `epochs` and `steps` at that time, the `results` of the earlier end (None if
            the run had not ended) and the `environment`.
    """

    start: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    extensions: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT
    toast_version: str = __version__

    @property
    def tests(self) -> int:
        """Return how often the test split was evaluated before the last extension."""
        ends = [extension["results"] for extension in self.extensions]
        return sum(end is not None and end.get("test") is not None for end in ends)

    @property
    def changes(self) -> dict[str, Any]:
        """Return the last value of every recipe field that an extension changed."""
        return {field: values[1] for each in self.extensions for field, values in each["changes"].items()}


def read_lineage(run: Path) -> RunLineage:
    """Return the lineage in a run folder; an empty one if none is recorded.

    Raises:
        ToastError: The record is damaged, or has a newer format.
    """
    file = run / LINEAGE_FILE
    if not file.exists():
        return RunLineage()
    try:
        return parse_record(RunLineage, require_regular_file(file).read_bytes(), FORMAT, file)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ToastError(f"{file} is damaged.", str(error), RUN_REPAIR_HINT, code="run.damaged") from error


def write_lineage(run: Path, lineage: RunLineage) -> None:
    """Write the lineage to a run folder.

    Raises:
        ToastError: The file cannot be written.
    """
    write_json(run / LINEAGE_FILE, add_checksum(asdict(lineage)))


def describe_step(step: Mapping[str, Any]) -> str:
    """Return a description of one model of a lineage: `runs/a (toast on pets, seed 0)`.

    Those that earlier versions recorded have the name of the source, such as `folder`, and none of the data.
    """
    data = step.get("data", step["dataset"])
    if step["kind"] == "pre-tuned":
        return f"{step['from']}, pre-tuned on {data}"
    return f"{step['from']} ({step['method']} on {data}, seed {step['seed']})"


def describe_chain(start: Sequence[Mapping[str, Any]]) -> str:
    """Return a description of a lineage, newest model first."""
    return ", which starts from ".join(describe_step(step) for step in reversed(start))


def describe_extension(extension: Mapping[str, Any]) -> str:
    """Return a description of one extension: `after epoch 10, training.epochs from 10 to 20`."""
    changes = ", ".join(f"{field} from {old} to {new}" for field, (old, new) in extension["changes"].items())
    return f"after epoch {extension['epochs']}, {changes}"
