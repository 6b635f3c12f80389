"""The names of splits: one table for folders, archives, tables, shards, text files and data sets of the hub.

A name is divided into words: `Training`, `seg_train`, `train_images` and `train2017` all mean train.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from toast_cli.utils.errors import ToastError, UsageError

SPLITS = ("train", "val", "test")
"""Names of the splits in recipes, results and commands."""

SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst"),
    "trainval": ("trainval", "trainvalid", "traindev"),
    "unclear": ("eval", "evaluation", "evaluate", "holdout", "heldout", "testval", "devtest", "testdev"),
}
"""The words that mean a split. `trainval` is train with validation still in it. `unclear` may mean val or test."""

PLAIN_WORDS = (
    *("set", "sets", "subset", "split", "splits", "part", "folder", "dir", "data", "dataset", "images", "image"),
    *("imgs", "img", "photos", "pictures", "pics", "samples", "files", "jpg", "jpeg", "png", "raw"),
)
"""The words beside a split's word that tell nothing about its meaning."""

_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_JOINED = re.compile(rf"({'|'.join(sorted(_SPLIT_OF_WORD, key=len, reverse=True))})({'|'.join(PLAIN_WORDS)})")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _read_keys_as_text(given: Any) -> Any:
    return {str(key): value for key, value in given.items()} if isinstance(given, dict) else given


SplitNames = Annotated[
    dict[str, Literal["train", "val", "test", "unused"]],
    BeforeValidator(_read_keys_as_text),
    Field(
        default_factory=dict,
        examples=[{"eval": "val"}],
        description="what names of splits mean, if they are unclear: {eval: val, fold1: train, extra: unused}",
    ),
]
"""Option of a source that has named splits: train, val, test or unused, by name."""


@dataclass(frozen=True)
class SplitName:
    """The meaning of a name: a key of `SPLIT_WORDS`, and whether it has no other words (`val_images`, not `my_val`)."""

    split: str
    plain: bool


@cache
def parse_split_name(name: str) -> SplitName | None:
    """Return the meaning of a name; None if no word of it is the name of a split."""
    words = [word.lower() for word in _WORD.findall(name)]
    if "".join(words) in _SPLIT_OF_WORD:  # hold-out, TrainVal
        return SplitName(_SPLIT_OF_WORD["".join(words)], True)
    meanings, plain = [], True
    for word in words:
        joined = _JOINED.fullmatch(word)
        if word in _SPLIT_OF_WORD or joined:
            meanings.append(_SPLIT_OF_WORD[joined[1] if joined else word])
        elif word not in PLAIN_WORDS:
            plain = False
    if not meanings:
        return None
    if set(meanings) == {"train", "val"}:
        return SplitName("trainval", plain)
    return SplitName(meanings[0] if len(set(meanings)) == 1 else "unclear", plain)


def is_plain_name(name: str) -> bool:
    """Return whether a name tells nothing about its content: `images`, `data`."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(words) and all(word in PLAIN_WORDS for word in words)


@dataclass(frozen=True)
class SplitAssignment:
    """The name of every split that a source has, and the names that are not read."""

    names: Mapping[str, str]
    unread: tuple[str, ...] = ()

    def describe(self, where: str, noun: str) -> list[str]:
        """Return notes on names that are not the split's own, and on names that are not read."""
        notes = []
        usual = (*SPLITS, "validation")
        renamed = [f"'{name}' as {split}" for split, name in self.names.items() if name not in usual]
        if renamed:
            notes.append(f"{where}: read {', '.join(renamed)}")
        if self.unread:
            nouns = f"{len(self.unread)} {noun}{'s' * (len(self.unread) > 1)}"
            notes.append(f"{where}: {nouns} beside train, val and test, not read: {', '.join(self.unread)}")
        return notes


def assign_splits(names: Sequence[str], given: Mapping[str, str], where: str, noun: str = "folder") -> SplitAssignment:
    """Find the names of train, val and test. `given` are the meanings that the user gives.

    A name without other words counts before one with other words: of `train` and `train_small`, the first is read.

    Raises:
        UsageError: `given` has a name that is not there.
        ToastError: two names mean the same split, or a name may mean val or test.
    """
    require_known_names(given, names, where, noun)
    claims: dict[str, list[tuple[str, bool]]] = {}
    for name in names:
        meaning = parse_split_name(name)
        if name not in given and meaning is not None:
            claims.setdefault(meaning.split, []).append((name, meaning.plain))
    found: dict[str, str] = {}
    for split in SPLITS:
        own = [name for name, meaning in given.items() if meaning == split]
        plain = [name for name, is_plain in claims.get(split, ()) if is_plain]
        candidates = own or plain or [name for name, _ in claims.get(split, ())]
        if split == "train" and not candidates:
            candidates = [name for name, _ in claims.get("trainval", ())]
            if candidates and ("val" in claims or "val" in given.values()):
                raise _make_unclear_error(candidates[0], where, noun, "train with the images of val in it", "unused")
        if len(candidates) > 1:
            raise ToastError(
                f"{where} has {'two' if len(candidates) == 2 else len(candidates)} {noun}s for the same split: "
                f"{' and '.join(candidates)}.",
                f"All of them mean {split}.",
                f"Remove one, or leave it out: dataset.split_names={{{candidates[-1]}: unused}}.",
                code="data.duplicate-split",
            )
        if candidates:
            found[split] = candidates[0]
    if "unclear" in claims and len(found) < len(SPLITS):
        raise _make_unclear_error(claims["unclear"][0][0], where, noun, "val or test", "val")
    return SplitAssignment(found, tuple(name for name in names if name not in found.values()))


def require_known_names(given: Collection[str], names: Collection[str], where: str, noun: str = "folder") -> None:
    """Check that the option `split_names` has only names that are there.

    Raises:
        UsageError: it has another one.
    """
    strange = sorted(set(given) - set(names))
    if strange:
        raise UsageError(
            f"dataset.split_names has '{strange[0]}', and {where} has no {noun} of that name.",
            f"It has {', '.join(names)}.",
            "Correct the name.",
            code="data.unknown-split",
        )


def get_cell_split(cell: str, given: Mapping[str, str]) -> str | None:
    """Return the split that a cell of a table names, `unused` if it is left out, or None if it is not clear."""
    name = cell.strip()
    if name in given:
        return given[name]
    meaning = parse_split_name(name)
    split = meaning.split if meaning is not None else None
    return {"trainval": "train", "unclear": None}.get(split, split) if split is not None else None


def _make_unclear_error(name: str, where: str, noun: str, meanings: str, example: str) -> ToastError:
    return ToastError(
        f"{where} has a {noun} '{name}', which may mean {meanings}.",
        "A wrong guess would train or select on the wrong images.",
        f"Rename it, or set dataset.split_names={{{name}: {example}}} (train, val, test or unused).",
        code="data.unclear-split",
    )
