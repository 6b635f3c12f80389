"""`alpaca`: instructions with answers, in the layout of Stanford Alpaca."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, Source
from toast_cli.data.text.conversations import TextOptions, Turn, open_conversations, text_of


class Options(TextOptions):
    """A file of instructions."""

    name: Literal["alpaca"] = Field("alpaca", description="the data set")


def read(entry: dict[str, Any]) -> list[Turn]:
    """`instruction`, perhaps `input`, and `output`, as one question and its answer."""
    material = "" if entry.get("input") in (None, "") else text_of(entry, "input")
    return [Turn("user", text_of(entry, "instruction"), material), Turn("assistant", text_of(entry, "output"))]


def open_source(options: Options, data_dir: Path | None) -> DataSet:
    """The file as a data set."""
    return open_conversations(options, data_dir, read)


SOURCE = Source(Options, open_source, "alpaca:FILE, a JSON list of instruction, input, output", task="language")
