"""`text`: running text in blocks, every token of which is learned; what a language model is pre-tuned on (3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, SplitKind
from toast_cli.data.splits import hold_out_indices
from toast_cli.data.text.text_store import TextStore
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    import numpy as np

READERS_BY_SUFFIX = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}
"""What `datasets` calls the reader of a file, by its ending before any .gz, .xz or .zst."""

COMPRESSED_SUFFIXES = {".gz", ".xz", ".zst", ".bz2"}


class TextDocumentOptions(NamedOptions):
    """Running text: a file, a folder of files, or a Hugging Face data set."""

    name: Literal["text"] = Field("text", description="the data set")
    path: str = Field(
        min_length=1,
        description="a .txt, .jsonl, .json, .csv or .parquet file (.gz, .xz, .zst too), a folder of such, or the id "
        "of a Hugging Face data set, of which no more is fetched than is used",
    )
    subset: str | None = Field(None, description="the part of a Hugging Face data set, where it has several")
    split: str = Field("train", description="the split of a Hugging Face data set")
    field: str = Field("text", description="the column or key that holds the text; plain text has a document a line")
    documents: int | None = Field(None, ge=2, description="use the first so many documents; left out: all there are")
    val_fraction: float = Field(0.01, ge=0, lt=1, description="share of the documents held out to validate on")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="share of the documents held out to be measured once")
    split_seed: int = Field(0, ge=0, description="seed of both, apart from the run's own seed")
    block_tokens: int = Field(512, ge=8, description="documents are joined and cut into blocks of so many tokens")


@dataclass(frozen=True)
class DocumentSplit:
    """Texts in order, by their numbers `[n]` in a spool; joined, they are cut into blocks of `block_tokens`."""

    kind: ClassVar[SplitKind] = "documents"

    spool: TextStore
    numbers: np.ndarray
    block_tokens: int
    has_masks: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, index: int) -> str:
        """One text."""
        return self.spool.read(int(self.numbers[index]))

    def hash(self) -> str:
        """Eight hexadecimal digits that two runs share exactly when they hold the same texts."""
        import numpy as np

        hashes = np.frombuffer(self.spool.hashes, np.uint64)[self.numbers]
        return sha256(np.sort(hashes).tobytes()).hexdigest()[:8]


def open_documents(options: TextDocumentOptions, data_dir: Path | None) -> DataSet:
    """Read the documents through, keeping them on disk, and divide them, once and for all runs alike.

    Raises:
        UsageError: there is no such file.
        ToastError: nothing can be read there, a document has no such field, or too few are left to train on.
    """
    import numpy as np

    spool = TextStore(_read_texts(options, data_dir))
    if not len(spool):
        raise ToastError(f"{options.path} holds no text to train on.", code="text.no-training-text")
    kept, test = hold_out_indices(np.arange(len(spool)), options.test_fraction, options.split_seed)
    train, val = hold_out_indices(kept, options.val_fraction, options.split_seed + 1)
    numbers = {"train": train, "val": val, "test": test}
    parts = {name: DocumentSplit(spool, each, options.block_tokens) for name, each in numbers.items()}
    splits = {name: documents for name, documents in parts.items() if len(documents)}
    held = ", ".join(f"{len(documents):,} {name} (split {documents.hash()})" for name, documents in splits.items())
    notes = [f"documents of {options.path}: {held}, seed {options.split_seed}"]
    if options.documents is not None and len(spool) < options.documents:
        notes.append(f"{options.path} has {len(spool):,} documents; {options.documents:,} were asked for.")
    return DataSet(classes=(), splits=splits, notes=tuple(notes))


def _read_texts(options: TextDocumentOptions, data_dir: Path | None) -> Iterable[str]:
    entries = _read_entries(options, data_dir)
    number = 0
    try:
        for number, entry in enumerate(islice(entries, options.documents), start=1):
            text = entry[options.field]
            if not isinstance(text, str):
                raise ToastError(
                    f"{options.path}, document {number}: '{options.field}' is no text.", code="text.not-a-string"
                )
            if text.strip():
                yield text
    except KeyError as error:
        raise ToastError(
            f"{options.path}, document {number} has no '{options.field}'.",
            f"It has {', '.join(map(str, entry))}.",
            "Name the one that holds the text: dataset.field=NAME.",
            code="text.missing-field",
        ) from error
    except (OSError, ValueError) as error:  # what pyarrow and datasets raise while they stream is either
        raise ToastError(
            f"{options.path} cannot be read after document {number}.",
            f"{type(error).__name__}: {error}",
            code="data.unreadable-file",
        ) from error


def _read_entries(options: TextDocumentOptions, data_dir: Path | None) -> Iterable[dict[str, Any]]:
    """Documents as mappings, read as they are asked for."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ToastError(
            "Running text is read through the datasets library.",
            what_to_do='pip install "datasets>=4.4".',
            code="data.missing-library",
        ) from error
    path = Path(options.path).expanduser()
    path = path if path.is_absolute() or data_dir is None or path.exists() else data_dir / path
    if (path / "README.md").is_file():  # a data set of the hub, as it was downloaded: its card tells what is what
        named: dict[str, Any] = {"name": options.subset, "split": options.split}
        where = str(path)
    elif path.exists():
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _get_reader(file))
        odd = [file for file in files if not file.is_file()]
        if odd:
            raise ToastError(
                f"{odd[0]} is no regular file.",
                "It is a folder, a pipe or a device.",
                "Remove it.",
                code="data.not-a-regular-file",
            )
        readers = {_get_reader(file) for file in files}
        if len(readers) != 1 or None in readers:
            found = "several kinds of files" if len(readers) > 1 else "no file that is understood"
            raise ToastError(
                f"{path} holds {found}." if path.is_dir() else f"{path} is of no kind that is understood.",
                what_to_do=f"Give files of one kind: {', '.join(READERS_BY_SUFFIX)}.",
                code="text.unsupported-files",
            )
        named = {"data_files": [str(file) for file in files], "split": "train"}
        where = str(readers.pop())
    elif _get_reader(path) or options.path.startswith((".", "/", "~")):
        raise UsageError(
            f"There is no file or folder {path}.", what_to_do="Check the path after 'text:'.", code="data.missing-file"
        )
    else:
        named = {"name": options.subset, "split": options.split}
        where = options.path
    try:
        return load_dataset(where, streaming=True, **named)
    except Exception as error:  # the hub's client raises anything from a timeout to a missing split
        raise ToastError(
            f"'{options.path}' cannot be opened, as a file or as a Hugging Face data set.",
            f"{type(error).__name__}: {error}",
            "Check the name, dataset.subset and dataset.split, or give a local file.",
            code="data.cannot-open",
        ) from error


def _get_reader(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED_SUFFIXES]
    return READERS_BY_SUFFIX.get(suffixes[-1]) if suffixes else None


SOURCE = DataSource(
    TextDocumentOptions,
    open_documents,
    "text:FILE, .txt, .jsonl or .parquet, a folder, or a Hugging Face data set",
    task="language",
)
