"""`unknown`: a placeholder for the unknown training data of an imported checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NoReturn

from pydantic import Field

from toast_cli.data.base import DataSource
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError


class UnknownDataOptions(NamedOptions):
    """Options of the placeholder. There are none."""

    name: Literal["unknown"] = Field("unknown", description="the data of an imported checkpoint")


def open_unknown(options: UnknownDataOptions, data_dir: Path | None) -> NoReturn:
    """Refuse to open the placeholder.

    Raises:
        UsageError: Always.
    """
    raise UsageError(
        "The training data of this imported checkpoint is unknown.",
        what_to_do="Choose a data set with --dataset.",
        code="data.unknown-source",
    )


SOURCE = DataSource(
    UnknownDataOptions, open_unknown, "nothing: a placeholder for the unknown data of an imported checkpoint"
)
