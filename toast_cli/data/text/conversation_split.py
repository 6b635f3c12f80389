"""Conversations from files and data sets, and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from toast_cli.data.base import DataSet, SplitKind
from toast_cli.data.paths import resolve_path
from toast_cli.data.split_names import SplitNames
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.data.text.conversation_files import (
    ConversationFile,
    ConversationSource,
    compute_repeats,
    read_conversation_files,
)
from toast_cli.data.text.duplicates import (
    NearTexts,
    compute_text_key,
    count_copies_across_splits,
    find_first_copies,
    find_near_texts_by_split,
    format_copies_note,
)
from toast_cli.data.text.entry_files import EntryOptions
from toast_cli.data.text.split_options import TextSplitOptions, join_names, require_distinct_paths
from toast_cli.data.text.turns import Conversation
from toast_cli.registry import CONVERSATION_FORMATS, list_names
from toast_cli.utils.config import LOCAL_PATH, LOCAL_PATH_KEYS, BaseOptions
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import hash_text

MAX_SHARING_CONVERSATIONS = 3
"""Number of conversations that may share a part verbatim for it to count in the search for near-duplicates."""

Weight = Annotated[float, Field(gt=0, le=100)]
"""How often texts are trained in an epoch."""


class MixedSourceOptions(BaseOptions):
    """Options of a source of `mix`; those that are not given are as for `path`."""

    weight: Weight = Field(1.0, description="how often each of its texts is trained in an epoch")
    fields: dict[str, str] | None = Field(None, description="names of fields in the format by their names in it")
    list_field: str | None = Field(None, description="the key of its list of entries")
    subset: str | None = Field(None, description="its subset (configuration), if it is a Hugging Face data set")
    split_names: dict[str, Literal["train", "val", "test", "unused"]] | None = Field(
        None, description="what the names of its splits mean"
    )


MixedSource = Annotated[
    Annotated[Weight, Tag("weight")] | Annotated[MixedSourceOptions, Tag("options")],
    Discriminator(lambda given: "options" if isinstance(given, dict | MixedSourceOptions) else "weight"),
]
"""A source of `mix`: its weight, or its options."""


class ConversationOptions(TextSplitOptions):
    """Options of a file of conversations."""

    TOKEN_FIELDS: ClassVar[tuple[str, ...]] = ("fields", "max_tokens", "template")

    path: str = Field(
        min_length=1,
        examples=["answers.json"],
        json_schema_extra=LOCAL_PATH,
        description="a JSON, JSON Lines, CSV or Parquet file (also .gz, .bz2, .xz), a folder or a pattern of such "
        "files, a folder that save_to_disk wrote, or the id of a Hugging Face data set; a relative path is looked up "
        "in the data folder, then in the current one",
    )
    weight: Weight = Field(
        1.0, examples=[0.5], description="how often each text of path is trained in an epoch; 0.5 trains half of them"
    )
    mix: dict[str, MixedSource] = Field(
        default_factory=dict,
        examples=[{"chats.json": 2, "alpaca:answers.json": 0.5}, {"owner/name": {"weight": 0.5, "subset": "en"}}],
        json_schema_extra=LOCAL_PATH_KEYS,
        description="further files, folders or ids, with their weights, or with weight, subset, fields, list_field and "
        "split_names of their own; a format before a colon, else detected",
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        examples=[{"question": "prompt", "answer": "completion"}],
        description="names of fields in the format by their names in the files, if they differ",
    )
    list_field: str | None = Field(
        None, examples=["data"], description="the key of the list of entries, in a JSON object with several lists"
    )
    subset: str | None = Field(
        None, examples=["en"], description="the subset (configuration) of a Hugging Face data set"
    )
    split_names: SplitNames
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out to select the epoch")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out for testing")
    max_tokens: int = Field(
        2048,
        ge=8,
        description="maximum number of tokens, within those that the model reads; longer texts are cut and counted",
    )
    template: Literal["auto", "chat", "plain", "stanford"] = Field(
        "auto",
        description="format of the turns: chat for the tokenizer's chat template, plain for headings, stanford for "
        "Stanford Alpaca's text; auto: chat if the tokenizer has a chat template, else plain",
    )
    packing: bool = Field(
        False, description="pack several texts into blocks of max_tokens; texts do not attend to each other"
    )


@dataclass(frozen=True)
class ConversationSplit:
    """A split of conversations, with the options of their format.

    `repeats` says how often each conversation is trained in an epoch; once if it is empty.
    """

    kind: ClassVar[SplitKind] = "conversations"

    conversations: tuple[Conversation, ...]
    options: ConversationOptions
    has_masks: bool = False
    repeats: tuple[int, ...] = ()

    @property
    def names(self) -> list[str]:
        """Name of every conversation in messages."""
        return [conversation.name for conversation in self.conversations]

    def __len__(self) -> int:
        return len(self.conversations)

    def stamp(self, index: int) -> int:
        """Return a hash of the text of a conversation, whose name is only its number."""
        return int(hash_text(repr(self.conversations[index].turns))[:12], 16)

    def load(self, index: int) -> Conversation:
        """Return a conversation."""
        return self.conversations[index]


def open_conversations(options: ConversationOptions, data_dir: Path | None, format_name: str | None) -> DataSet:
    """Read the conversations of `path` and `mix` as a data set, and those of `val_path` and `test_path`.

    A data set with splits of its own keeps them; those that it lacks are held out of its texts for training.
    Copies of a conversation that are in several splits are counted in the notes. With `group_copies`, they are in one.

    Args:
        options: The options of the source.
        data_dir: The folder that relative paths refer to; None for the current folder.
        format_name: The format of `path`; None if every entry shows its own.

    Raises:
        UsageError: If a file does not exist, or two splits are read from the same place.
        ToastError: If a file cannot be read, or has no valid entry or no training conversation.
    """
    files, notes = _read_files(options, data_dir, format_name)
    conversations = [text for file in files for text in file.conversations]
    keys = [compute_text_key(format_content(text)) for text in conversations]
    parts = _split_conversations(files, keys, options)
    if not parts["train"]:
        raise ToastError(f"{options.path} contains no conversation to train on.", code="text.no-training-text")
    contents = [repr(text.turns) for text in conversations]  # not the entry numbers, which do not change with an edit
    names = join_names(list(dict.fromkeys(file.name for file in files)))
    notes = [*_describe_splits(files, parts, contents, options), *notes]
    for file in files:
        notes += file.describe_reading()
    repeated = count_copies_across_splits({name: [keys[i] for i in indices] for name, indices in parts.items()})
    notes += format_copies_note(repeated, names, any(file.split in ("val", "test") for file in files))
    splits = {
        name: ConversationSplit(tuple(conversations[i] for i in indices), options)
        for name, indices in parts.items()
        if indices
    }
    repeats = _compute_repeats(files, parts["train"], options.split_seed)
    if any(count != 1 for count in repeats.values()):
        splits["train"] = replace(splits["train"], repeats=tuple(repeats[index] for index in parts["train"]))
        notes += _describe_weights(files, repeats)
    key_by_name = {f"{part}: {conversations[i].name}": keys[i] for part, indices in parts.items() for i in indices}
    near = {
        later: earlier
        for later, earlier in find_near_conversations(splits).across_splits.items()
        if key_by_name[later] != key_by_name[earlier]  # copies have a note of their own
    }
    if near:
        later, earlier = next(iter(near.items()))
        count = f"{len(near):,} {'texts of val and test are' if len(near) > 1 else 'text of val and test is'}"
        notes.append(
            f"{count} nearly the same as one of an earlier split, for example {later} and {earlier}. Results on them "
            "say little about new texts; 'toast data check' lists them."
        )
    left_out: dict[str, str] = {}
    for file in files:
        notes += file.describe_left_out()
        prefix = f"{file.name}, " if len(files) > 1 else ""
        left_out |= {f"{prefix}{name}": why for name, why in file.left_out.items()}
    return DataSet(classes=(), splits=splits, notes=tuple(notes), left_out=left_out)


def _read_files(
    options: ConversationOptions, data_dir: Path | None, format_name: str | None
) -> tuple[list[ConversationFile], list[str]]:
    """Read the files of `path`, those of `mix`, and those of `val_path` and `test_path`, which are whole splits.

    Return them, with a note for every split of a data set that these replace.
    """
    entries = EntryOptions(options.subset, options.split_names, options.list_field)
    sources = [(ConversationSource(options.path, format_name, options.weight, options.fields), entries)]
    for place, given in options.mix.items():
        name, colon, path = place.partition(":")
        known = bool(colon) and name in list_names(CONVERSATION_FORMATS)
        own = given if isinstance(given, MixedSourceOptions) else MixedSourceOptions(weight=given)
        renamed = options.fields if own.fields is None else own.fields
        source = ConversationSource(path if known else place, name if known else None, own.weight, renamed)
        sources.append((source, _override_entry_options(entries, own)))
    mixed = [source.path for source, _ in sources[1:]]
    require_distinct_paths(options, lambda path: resolve_path(path, data_dir), mixed)
    files: list[ConversationFile] = []
    notes = []
    for source, found_by in sources:
        for file in read_conversation_files(source, data_dir, found_by, {file.name for file in files}):
            if file.split in options.own_paths:
                count = len(file.conversations)
                notes.append(f"{file.name}: {count:,} texts are not used, as dataset.{file.split}_path replaces them.")
            else:
                files.append(file)
    for part, path in options.own_paths.items():
        source = ConversationSource(path, format_name, renamed=options.fields)
        read = read_conversation_files(source, data_dir, entries, {file.name for file in files})
        files += [file if file.split == "unused" else replace(file, split=part) for file in read]
    return files, notes


def _override_entry_options(entries: EntryOptions, own: MixedSourceOptions) -> EntryOptions:
    """Return how the entries of a source of `mix` are found: by its own options, and by those of `path` otherwise."""
    names = ("subset", "split_names", "list_field")
    return replace(entries, **{name: value for name in names if (value := getattr(own, name)) is not None})


def _describe_splits(
    files: Sequence[ConversationFile],
    parts: Mapping[str, Sequence[int]],
    contents: Sequence[str],
    options: ConversationOptions,
) -> list[str]:
    """Return a note on the texts of the splits of `path` and `mix`, and one for each split with a path of its own."""

    own = options.own_paths
    given = {file.split for file in files}
    is_whole = not own and not options.holds_out and given == {None}

    def describe_part(part: str) -> str:
        indices = parts[part]
        split_hash = compute_split_hash([contents[i] for i in indices], [0] * len(indices))
        return f"{len(indices):,} {'texts, all of them' if is_whole else part} (split {split_hash})"

    held = ", ".join(
        describe_part(part)
        for part, indices in parts.items()
        if part not in own and (indices or options.get_fraction(part))
    )
    missing = [part for part in ("val", "test") if None in given or part not in given]
    seed = f", seed {options.split_seed}{options.describe_fractions(missing)}" if options.holds_out else ""
    names = {part: [file.name for file in files if file.split == part] for part in own}
    whole = {part: "the whole file" if len(listed) == 1 else "the whole files" for part, listed in names.items()}
    return [
        f"{', '.join(file.name for file in files if file.split not in own)}: {held}{seed}",
        *(f"{', '.join(names[part])}: {describe_part(part)}, {whole[part]}" for part in own),
    ]


def _compute_repeats(files: Sequence[ConversationFile], training: Sequence[int], seed: int) -> dict[int, int]:
    """Return how often each conversation for training, by index, is trained in an epoch."""
    repeats: dict[int, int] = {}
    chosen, start = set(training), 0
    for file in files:
        own = [index for index in range(start, start + len(file.conversations)) if index in chosen]
        names = [file.conversations[index - start].name for index in own]
        repeats |= dict(zip(own, compute_repeats(file.weight, names, seed), strict=True))
        start += len(file.conversations)
    return repeats


def _describe_weights(files: Sequence[ConversationFile], repeats: Mapping[int, int]) -> list[str]:
    """Return a note for every file with texts for training: how many of them an epoch has."""
    notes, start = [], 0
    for file in files:
        counts = [repeats[index] for index in range(start, start + len(file.conversations)) if index in repeats]
        start += len(file.conversations)
        if counts:
            used = sum(count > 0 for count in counts)
            notes.append(
                f"{file.name}, weight {file.weight:g}: an epoch has {sum(counts):,} texts, {used:,} of its "
                f"{len(counts):,} training texts."
            )
    return notes


def _split_conversations(
    files: Sequence[ConversationFile], keys: Sequence[int], options: ConversationOptions
) -> dict[str, list[int]]:
    """Return the indices of each split. Conversations with equal keys are in one split if `group_copies` is set.

    Files that are splits of their own stay whole, except that of training if its data set lacks a split.
    """
    names = [text.name for file in files for text in file.conversations]
    given = [file.split for file in files for _ in file.conversations]
    own = {split for file in files if (split := file.split) is not None}
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, split in enumerate(given):
        if split in ("val", "test"):
            parts[split].append(index)
    for has_splits in (False, True):
        indices = [index for index, split in enumerate(given) if split == ("train" if has_splits else None)]
        fractions = {
            part: 0.0 if has_splits and part in own else options.get_fraction(part) for part in ("val", "test")
        }
        first = find_first_copies([keys[i] for i in indices] if options.group_copies else range(len(indices)))
        kinds = sorted(set(first))
        kept, test = hold_out(
            [names[indices[i]] for i in kinds], [0] * len(kinds), fractions["test"], options.split_seed
        )
        train, val = hold_out(
            [names[indices[kinds[i]]] for i in kept], [0] * len(kept), fractions["val"], options.split_seed + 1
        )
        chosen = {"train": [kept[i] for i in train], "val": [kept[i] for i in val], "test": test}
        split_of = {kinds[place]: part for part, places in chosen.items() for place in places}
        for index, original in zip(indices, first, strict=True):
            parts[split_of[original]].append(index)
    return parts


def format_content(conversation: Conversation) -> str:
    """Return the roles and texts of a conversation as one text, to compare conversations."""
    return "\n".join(f"{turn.role}: {turn.whole}{turn.fields}" for turn in conversation.turns)


def find_near_conversations(splits: Mapping[str, ConversationSplit], within: bool = False) -> NearTexts:
    """Find the conversations that are nearly the same as an earlier one: `part: name` of both.

    Parts that many conversations share, such as a system prompt or the name of a class, are not compared.
    """
    turns = (turn for split in splits.values() for text in split.conversations for turn in text.turns)
    common = Counter(hash(part) for turn in turns for part in (turn.text, turn.material, turn.fields))
    kept: dict[str, tuple[list[str], list[str]]] = {part: ([], []) for part in splits}
    for part, split in splits.items():
        for text in split.conversations:
            pieces = [piece for turn in text.turns for piece in (turn.text, turn.material, turn.fields)]
            if own := " ".join(piece for piece in pieces if common[hash(piece)] <= MAX_SHARING_CONVERSATIONS):
                kept[part][0].append(f"{part}: {text.name}")
                kept[part][1].append(own)
    return find_near_texts_by_split(kept, within)
