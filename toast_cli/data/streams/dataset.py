"""What a streamed split is, known before anything is read: imported by sources, so it is light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from toast_cli.data.base import SplitKind
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class StreamSplit:
    """A split that can be read from front to end alone.

    `table` is the library's stream, images undecoded; `image` and `label` are its columns (no label: all are of class
    0). `classes` are the names that a label may have, or may count from 0; `numbered` are those that its numbers stand
    for, where the column says so itself. `key` is the column that names a sample, where there is one. `length` is how
    many there are, `where` what a message calls the stream. `digest` is the `split_hash` of what it is read from, None
    where nothing lists it.
    """

    kind: ClassVar[SplitKind] = "stream"

    table: Any
    image: str
    label: str | None
    classes: tuple[str, ...]
    length: int
    where: str
    key: str | None = None
    shuffle_buffer: int = 1000
    has_masks: bool = False
    digest: str | None = None
    numbered: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> Any:
        """A stream has no places.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self.where} is streamed: no single image can be asked for.",
            what_to_do="Unpack the data.",
            code="data.streamed",
        )

    def name_of(self, row: Mapping[str, Any]) -> str:
        """What an error calls a sample."""
        if self.key is not None:
            return f"{self.where}: {row[self.key]}"
        cell = row[self.image] or {}
        content = cell.get("bytes")
        # Nothing else tells images without a name apart.
        told = (
            "no image"
            if content is None
            else f"an image of {len(content):,} bytes, {blake2b(content, digest_size=4).hexdigest()}"
        )
        return f"{self.where}: {cell.get('path') or told}"

    def label_of(self, row: Mapping[str, Any], name: str) -> int:
        """The class of a sample.

        Raises:
            ToastError: it has none, or one that is not known.
        """
        if self.label is None:
            return 0
        value = row[self.label]
        if self.numbered and isinstance(value, int) and 0 <= value < len(self.numbered):
            value = self.numbered[value]
        if isinstance(value, int) and 0 <= value < len(self.classes):
            return value
        if isinstance(value, str) and value in self.classes:
            return self.classes.index(value)
        raise ToastError(
            f"{name} has the label {value!r}, which is none of {len(self.classes)} classes.",
            what_to_do="Name the column that holds it, and how many classes there are (dataset.label_column, "
            "dataset.classes or dataset.class_file).",
            code="data.unknown-class",
        )
