"""`unknown`: what an imported checkpoint was trained on, when nobody said."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NoReturn

from pydantic import Field

from toast_cli.data.base import DataSource
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError


class UnknownDataOptions(NamedOptions):
    """There is nothing to choose."""

    name: Literal["unknown"] = Field("unknown", description="the data of an imported checkpoint")


def open_unknown(options: UnknownDataOptions, data_dir: Path | None) -> NoReturn:
    """There is nothing to open.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        "What this checkpoint was trained on is not known here.",
        what_to_do="Name data with --dataset.",
        code="data.unknown-source",
    )


SOURCE = DataSource(UnknownDataOptions, open_unknown, "nothing: it stands for the data of an imported checkpoint")
