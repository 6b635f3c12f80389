"""`StreamSplit`: a split that is streamed. Sources import this module, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar
from unicodedata import normalize

from toast_cli.data.base import SplitKind
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class StreamSplit:
    """A split that can only be read in sequence.

    Attributes:
        table: the stream of the `datasets` library, with undecoded images.
        image: column of the images.
        label: column of the labels; None: every sample has the class 0.
        classes: class names. A label is one of them, or an index.
        length: number of samples.
        where: name of the stream in messages.
        key: column with the name of a sample, or None.
        shuffle_buffer: number of samples that each reader shuffles at a time.
        has_masks: whether samples have masks.
        digest: the `split_hash` of the files of the stream; None if they are not listed anywhere.
        content: the hash of the content of its files, as far as they are known.
        numbered: class names of a label column that stores indices into its own list; empty for others.
        white: value of white in 16-bit images (`images.white`).
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
    content: str | None = None
    numbered: tuple[str, ...] = ()
    white: int | None = None

    def __len__(self) -> int:
        return self.length

    def with_white(self, white: int) -> StreamSplit:
        """Return the same split with another value of white."""
        return replace(self, white=white)

    def load(self, index: int) -> Any:
        """Raise an error: a stream has no random access.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self.where} is streamed, so single images cannot be read.",
            what_to_do="Unpack the data.",
            code="data.streamed",
        )

    def get_name(self, row: Mapping[str, Any]) -> str:
        """Return the name of a sample for messages."""
        if self.key is not None:
            return f"{self.where}: {row[self.key]}"
        cell = row[self.image] or {}
        content = cell.get("bytes")
        # Images without a name are distinguished by their content.
        description = (
            "no image"
            if content is None
            else f"an image of {len(content):,} bytes, {blake2b(content, digest_size=4).hexdigest()}"
        )
        return f"{self.where}: {cell.get('path') or description}"

    def get_label(self, row: Mapping[str, Any], name: str) -> int:
        """Return the class index of a sample.

        Raises:
            ToastError: the label is missing or is not a known class.
        """
        if self.label is None:
            return 0
        value = row[self.label]
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ToastError(
                f"{name} has no label.",
                what_to_do="Correct the data, or leave such samples out with images.on_error=skip.",
                code="data.missing-label",
            )
        if self.numbered and isinstance(value, int) and 0 <= value < len(self.numbered):
            value = self.numbered[value]
        if isinstance(value, int) and 0 <= value < len(self.classes):
            return value
        if isinstance(value, str) and (name_of_class := normalize("NFC", value)) in self.classes:
            return self.classes.index(name_of_class)
        raise ToastError(
            f"{name} has the label {value!r}, which is not one of the {len(self.classes)} classes.",
            what_to_do="Check the column of labels and the classes (dataset.label_column, dataset.classes or "
            "dataset.class_file).",
            code="data.unknown-class",
        )
