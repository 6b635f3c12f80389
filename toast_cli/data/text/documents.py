"""`text`: documents, joined and cut into blocks of tokens, to pre-tune a language model on (section 3.2)."""

from __future__ import annotations

import gc
import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, SplitKind
from toast_cli.data.hub import import_datasets, require_hub_dataset
from toast_cli.data.split_names import parse_split_name
from toast_cli.data.splits import hold_out_indices
from toast_cli.data.text.conversation_files import summarize_left_out
from toast_cli.data.text.conversation_format import is_blank, list_filled_fields
from toast_cli.data.text.duplicates import count_copies_across_splits, format_copies_note
from toast_cli.data.text.json_lines import require_utf8
from toast_cli.data.text.split_options import TextSplitOptions, join_names, require_distinct_paths
from toast_cli.data.text.text_store import TextStore
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError

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
"""Name of the reader in `datasets` by file suffix, without compression suffixes such as .gz."""

COMPRESSED_SUFFIXES = {".gz", ".xz", ".zst", ".bz2"}


class TextDocumentOptions(TextSplitOptions):
    """Options of documents from a file, a folder of files or a Hugging Face data set."""

    TOKEN_FIELDS: ClassVar[tuple[str, ...]] = ("block_tokens",)

    name: Literal["text"] = Field("text", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["books"],
        json_schema_extra=LOCAL_PATH,
        description="a .txt, .jsonl, .json, .csv or .parquet file (also .gz, .xz, .zst), a folder of such files, or "
        "the id of a Hugging Face data set, which is streamed",
    )
    subset: str | None = Field(
        None, examples=["en"], description="the subset (configuration) of a Hugging Face data set"
    )
    split: str = Field("train", examples=["validation"], description="the split of a Hugging Face data set")
    field: str = Field(
        "text",
        examples=["content"],
        description="the column or key that contains the text; in plain text, every line is a document",
    )
    documents: int | None = Field(
        None, ge=2, examples=[10000], description="use only the first N documents of path; default: all"
    )
    val_fraction: float = Field(0.01, ge=0, lt=1, description="share of the documents held out for validation")
    test_fraction: float = Field(
        0.0, ge=0, lt=1, examples=[0.01], description="share of the documents held out for testing"
    )
    block_tokens: int = Field(
        512, ge=8, description="number of tokens per block; documents are joined and cut into blocks"
    )


@dataclass(frozen=True)
class DocumentSplit:
    """A split of documents, given by their numbers `[n]` in `spool`. They are cut into blocks of `block_tokens`."""

    kind: ClassVar[SplitKind] = "documents"

    spool: TextStore
    numbers: np.ndarray
    block_tokens: int
    has_masks: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, index: int) -> str:
        """Return the text of a document."""
        return self.spool.read(int(self.numbers[index]))

    def get_name(self, index: int) -> str:
        """Return the name of a document in messages: its number in the file."""
        return f"document {self.numbers[index] + 1:,}"

    def take(self, indices: Sequence[int]) -> DocumentSplit:
        """Return the split of the documents at `indices`, in that order."""
        return replace(self, numbers=self.numbers[list(indices)])

    @property
    def keys(self) -> np.ndarray:
        """Return the keys of the documents, which copies of a text share."""
        import numpy as np

        return np.frombuffer(self.spool.keys, np.uint64)[self.numbers]

    @property
    def digest(self) -> str:
        """Return a hash of the texts, independent of their order: eight hexadecimal digits."""
        import numpy as np

        hashes = np.frombuffer(self.spool.hashes, np.uint64)[self.numbers]
        return sha256(np.sort(hashes).tobytes()).hexdigest()[:8]


def open_documents(options: TextDocumentOptions, data_dir: Path | None) -> DataSet:
    """Read all documents into a temporary file and split them, independent of the seed of the run.

    Copies of a document that are in several splits are counted in the notes. With `group_copies`, they are in one.

    Raises:
        UsageError: If the file or folder does not exist.
        ToastError: If the data cannot be read, a document has no such field, or there is no text.
    """
    import numpy as np

    require_distinct_paths(options, lambda path: _find_path(path, data_dir).resolve())
    unused: Counter[str] = Counter()
    blank: dict[str, str] = {}
    spool = TextStore(_read_texts(options, data_dir, unused, blank))
    if not len(spool):
        raise ToastError(f"{options.path} contains no text to train on.", code="text.no-training-text")
    keys = np.frombuffer(spool.keys, np.uint64)
    first = np.arange(len(spool))
    if options.group_copies:
        _, firsts, copy_of = np.unique(keys, return_index=True, return_inverse=True)
        first = firsts[copy_of]
    originals = np.flatnonzero(first == np.arange(len(spool)))
    kept, test = hold_out_indices(originals, options.get_fraction("test"), options.split_seed)
    train, val = hold_out_indices(kept, options.get_fraction("val"), options.split_seed + 1)
    numbers = {
        name: np.flatnonzero(np.isin(first, part)) for name, part in {"train": train, "val": val, "test": test}.items()
    }
    parts = {name: DocumentSplit(spool, each, options.block_tokens) for name, each in numbers.items()}
    own_notes = []
    for name, path in options.own_paths.items():
        own = options.model_copy(update={"path": path, "documents": None})
        parts[name] = _read_own_split(own, data_dir, unused, blank)
        own_notes.append(f"documents of {path}: {_describe_part(name, parts[name])}, all of them")
    splits = {name: documents for name, documents in parts.items() if len(documents)}
    is_whole = not options.own_paths and not options.holds_out
    held = ", ".join(
        _describe_part("texts, all of them" if is_whole else name, part)
        for name, part in splits.items()
        if name not in options.own_paths
    )
    seed = f", seed {options.split_seed}{options.describe_fractions()}" if options.holds_out else ""
    notes = [f"documents of {options.path}: {held}{seed}", *own_notes]
    repeated = count_copies_across_splits({name: part.keys.tolist() for name, part in parts.items()})
    places = join_names([options.path, *options.own_paths.values()])
    notes += format_copies_note(repeated, places, bool(options.own_paths))
    if unused:
        fields = ", ".join(f"{name} of {count:,} documents" for name, count in unused.most_common())
        notes.append(f"Not used in {places}: {fields}.")
    read = len(spool) + sum(name.startswith(f"{options.path}, ") for name in blank)
    if options.documents is not None and read < options.documents:
        notes.append(f"{options.path} has only {read:,} documents, not {options.documents:,}.")
    if blank:
        total = sum(map(len, parts.values())) + len(blank)
        notes.append(f"{len(blank):,} of {total:,} documents were left out: {summarize_left_out(blank)}.")
    warnings = tuple(_describe_split_files(_find_path(options.path, data_dir)))
    return DataSet((), splits, tuple(notes), warnings, left_out=blank)


def _read_own_split(
    options: TextDocumentOptions, data_dir: Path | None, unused: Counter[str], blank: dict[str, str]
) -> DocumentSplit:
    """Read all documents of a path as one split.

    Raises:
        ToastError: If the data cannot be read, or there is no text.
    """
    import numpy as np

    spool = TextStore(_read_texts(options, data_dir, unused, blank))
    if not len(spool):
        raise ToastError(f"{options.path} contains no text.", code="text.no-text")
    return DocumentSplit(spool, np.arange(len(spool)), options.block_tokens)


def _describe_part(name: str, documents: DocumentSplit) -> str:
    return f"{len(documents):,} {name} (split {documents.digest})"


def _describe_split_files(path: Path) -> list[str]:
    """Return a warning if the names of the files in a folder mean several splits, which are read together."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if _get_reader(file))
    found = {name: meaning.split for name in names if (meaning := parse_split_name(name.partition(".")[0])) is not None}
    if len(set(found.values())) < 2 or (path / "README.md").is_file():
        return []
    training = next((name for name, split in found.items() if split == "train"), "FILE")
    return [
        f"{path}: {', '.join(list(found)[:5])} are read together and divided anew, those for evaluation too; to keep "
        f"them apart, use text:{path / training}, dataset.val_path and dataset.test_path"
    ]


def _find_path(given: str, data_dir: Path | None) -> Path:
    path = Path(given).expanduser()
    return path if path.is_absolute() or data_dir is None or path.exists() else data_dir / path


def _read_texts(
    options: TextDocumentOptions, data_dir: Path | None, unused: Counter[str], blank: dict[str, str]
) -> Iterable[str]:
    """Yield the texts that are not blank, count in `unused` what else the documents have, and name blank ones.

    Blank lines of plain text are no documents.
    """
    entries = iter(_read_entries(options, data_dir))
    plain = _is_plain_text(_find_path(options.path, data_dir))
    number = 0
    try:
        for number, entry in enumerate(islice(entries, options.documents), start=1):
            text = entry[options.field]
            if not plain and is_blank(text):
                blank[f"{options.path}, document {number:,}"] = f"'{options.field}' is empty"
                continue
            if not isinstance(text, str):
                raise ToastError(
                    f"{options.path}, document {number}: '{options.field}' is not a string.", code="text.not-a-string"
                )
            unused.update(list_filled_fields(entry, (options.field,)))
            if text.strip():
                yield text
    except KeyError as error:
        raise ToastError(
            f"{options.path}, document {number} has no '{options.field}'.",
            f"It has {', '.join(map(str, entry))}.",
            "Set dataset.field to the field that contains the text.",
            code="text.missing-field",
        ) from error
    except (OSError, ValueError) as error:  # pyarrow and datasets raise either while streaming
        file = _find_path(options.path, data_dir)
        if isinstance(error, ValueError) and file.is_file():
            require_utf8(file)
        raise ToastError(
            f"Cannot read {options.path} after document {number}.",
            f"{type(error).__name__}: {error}",
            "Check that the file is whole, and save it as UTF-8." if isinstance(error, ValueError) else "",
            code="data.unreadable-file",
        ) from error
    finally:
        # Threads of Arrow that still read ahead when Python exits abort the process (huggingface/datasets #7566).
        del entries
        gc.collect()


def _read_entries(options: TextDocumentOptions, data_dir: Path | None) -> Iterable[dict[str, Any]]:
    """Return an iterable over the documents as mappings, which reads them lazily."""
    load_dataset = import_datasets().load_dataset
    path = _find_path(options.path, data_dir)
    if (path / "README.md").is_file():  # a downloaded Hub data set, whose card describes subsets and splits
        named: dict[str, Any] = {"name": options.subset, "split": options.split}
        where = str(path)
    elif path.exists():
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _get_reader(file))
        irregular = [file for file in files if not file.is_file()]
        if irregular:
            raise ToastError(
                f"{irregular[0]} is not a regular file.",
                "It is a folder, a pipe or a device.",
                "Remove it.",
                code="data.not-a-regular-file",
            )
        readers = {_get_reader(file) for file in files}
        if len(readers) != 1 or None in readers:
            content = "files of several formats" if len(readers) > 1 else "no file in a supported format"
            raise ToastError(
                f"{path} contains {content}." if path.is_dir() else f"The format of {path} is not supported.",
                what_to_do=f"Use files of one format: {', '.join(READERS_BY_SUFFIX)}.",
                code="text.unsupported-files",
            )
        # The library reads patterns. A bracket in a name of a folder is not one.
        named = {"data_files": [glob.escape(str(file.absolute())) for file in files], "split": "train"}
        where = str(readers.pop())
    else:
        require_hub_dataset(options.path, [path], "dataset.subset and dataset.split")
        named = {"name": options.subset, "split": options.split}
        where = options.path
    try:
        return load_dataset(where, streaming=True, **named)
    except Exception as error:  # the Hub client raises many types, such as timeouts
        raise ToastError(
            f"Cannot open '{options.path}' as a file or as a Hugging Face data set.",
            f"{type(error).__name__}: {error}",
            "Check the name, dataset.subset and dataset.split, or use a local file.",
            code="data.cannot-open",
        ) from error


def _is_plain_text(path: Path) -> bool:
    """Return whether a file, or a file in a folder, is read line by line."""
    files = path.rglob("*") if path.is_dir() else [path]
    return path.exists() and any(_get_reader(file) == "text" for file in files)


def _get_reader(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED_SUFFIXES]
    return READERS_BY_SUFFIX.get(suffixes[-1]) if suffixes else None


SOURCE = DataSource(
    TextDocumentOptions,
    open_documents,
    "text:PATH, a .txt, .jsonl or .parquet file, a folder, or a Hugging Face data set",
    task="language",
    layout=(
        "FILE.txt      A document per line; blank lines are skipped. Also FILE.md.\n"
        'FILE.jsonl    {"text": "A document."}\n'
        'FILE.parquet  a column "text"\n'
        "FOLDER/**     files of these kinds"
    ),
)
