"""The audit of a data set of texts: entries that cannot be used, copies, lengths, and what a model makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

from toast_cli.data.audit.check import MAX_LISTED, REPORTED_SPLITS, ProgressTracker
from toast_cli.data.base import BatchOptions, DataSet, LoaderOptions
from toast_cli.data.loaders import build_loader
from toast_cli.data.text.conversation_split import ConversationSplit, find_near_conversations, format_content
from toast_cli.data.text.duplicates import (
    compute_text_key,
    count_copies_across_splits,
    find_first_copies,
    find_near_texts_across_splits,
)
from toast_cli.data.text.turns import Conversation
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone


def check_texts(data: DataSet, track: ProgressTracker, backbone: Backbone | None = None) -> dict[str, Any]:
    """Return a report on a data set of texts as a JSON object: splits, copies, `problems` and `warnings`.

    A problem makes the results of a run questionable: an entry that cannot be used, copies of a text, or, with a
    backbone, texts that it cannot be trained on. A warning is for the user to judge: a text that is nearly the same as
    one of an earlier split, a question with different answers in different splits, and what tuning the backbone
    reports about the texts, such as how many are truncated.

    `track(items, total, description)` yields the items and shows progress.
    """
    splits: dict[str, Any] = {part: data.splits[part] for part in REPORTED_SPLITS if part in data.splits}
    keys, lengths = {}, {}
    for part, split in splits.items():
        texts = track(map(_get_content, _iterate_texts(split)), len(split), f"reading {part}")
        measured = [(compute_text_key(text), len(text)) for text in texts]
        keys[part], lengths[part] = ([pair[place] for pair in measured] for place in (0, 1))
    names = [f"{part}: {_get_name(splits[part], index)}" for part in splits for index in range(len(splits[part]))]
    pairs = [
        {"first": names[first], "second": names[index]}
        for index, first in enumerate(find_first_copies(chain(*keys.values())))
        if first != index
    ]
    near = _find_near(splits)
    asked = _find_questions_across_splits(splits)
    report: dict[str, Any] = {
        "classes": 0,
        "splits": {
            part: {
                "texts": len(split),
                "characters": {
                    "least": min(lengths[part]),
                    "median": median(lengths[part]),
                    "most": max(lengths[part]),
                },
            }
            for part, split in splits.items()
        },
        "left_out": dict(data.left_out),
        "duplicates": {
            "copies": {
                "count": len(pairs),
                "across_splits": count_copies_across_splits(keys),
                "pairs": pairs[:MAX_LISTED],
            },
            "nearly_across_splits": {
                "count": len(near),
                "pairs": [{"first": first, "second": second} for second, first in [*near.items()][:MAX_LISTED]],
            },
            "questions_across_splits": {"count": len(asked), "pairs": asked[:MAX_LISTED]},
        },
        "notes": list(data.notes),
    }
    problems, warnings = _list_findings(report, len(names))
    try:
        if backbone is not None:
            backbone.require_tokenizer()
    except ToastError as error:
        problems.append(" ".join(filter(None, (error.what, error.why, error.what_to_do))))
        backbone = None
    for part, split in splits.items():
        if backbone is None:
            break
        try:
            loader = build_loader(split, backbone, BatchOptions(1, augment=part == "train"), LoaderOptions())
            warnings += [f"{part}: {note}" for note in loader.notes]
        except ToastError as error:
            problems.append(f"{part}: {' '.join(filter(None, (error.what, error.why)))}")
    return {**report, "problems": problems, "warnings": warnings}


def _list_findings(report: Mapping[str, Any], total: int) -> tuple[list[str], list[str]]:
    problems, warnings = [], []
    if report["left_out"]:
        problems.append(f"{len(report['left_out']):,} entries cannot be used")
    copies = report["duplicates"]["copies"]
    if copies["count"]:
        problems.append(
            f"{copies['count']:,} of {total:,} texts are copies of an earlier one, {copies['across_splits']:,} of them "
            "in another split"
        )
    for part, effect in (("val", "epochs and settings cannot be selected"), ("test", "no test result is reported")):
        if part not in report["splits"]:
            warnings.append(f"there is no {part} split: {effect}")
    if near := report["duplicates"]["nearly_across_splits"]["count"]:
        warnings.append(
            f"{near:,} {'text is' if near == 1 else 'texts are'} nearly the same as one of an earlier split"
        )
    if asked := report["duplicates"]["questions_across_splits"]["count"]:
        warnings.append(
            f"{asked:,} {'question is' if asked == 1 else 'questions are'} in several splits, with different answers: "
            "results on them say little about new questions"
        )
    return problems, warnings


def _find_questions_across_splits(splits: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a pair of conversations for every question that has different answers in different splits.

    A question is what comes before the first answer.
    """
    first: dict[int, tuple[str, str, int]] = {}
    pairs: dict[int, dict[str, str]] = {}
    for part, split in splits.items():
        for text in split.conversations if isinstance(split, ConversationSplit) else ():
            turns = text.turns
            begin = next((place for place, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
            question, answer = (
                compute_text_key(format_content(Conversation(half, ""))) for half in (turns[:begin], turns[begin:])
            )
            earlier, name, known = first.setdefault(question, (part, text.name, answer))
            if earlier != part and known != answer:
                pairs.setdefault(question, {"first": f"{earlier}: {name}", "second": f"{part}: {text.name}"})
    return list(pairs.values())


def _iterate_texts(split: Any) -> Iterator[Any]:
    return (split.load(index) for index in range(len(split)))


def _get_content(text: Any) -> str:
    return text if isinstance(text, str) else format_content(text)


def _get_name(split: Any, index: int) -> str:
    return split.names[index] if isinstance(split, ConversationSplit) else f"document {split.numbers[index] + 1:,}"


def _find_near(splits: Mapping[str, Any]) -> dict[str, str]:
    conversations = {part: split for part, split in splits.items() if isinstance(split, ConversationSplit)}
    if conversations:
        return find_near_conversations(conversations)
    return find_near_texts_across_splits(
        {
            part: ([f"{part}: {_get_name(split, index)}" for index in range(len(split))], _iterate_texts(split))
            for part, split in splits.items()
        }
    )
