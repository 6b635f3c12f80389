"""The audit of a data set of texts: entries that cannot be used, copies, lengths, and what a model makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from toast_cli.data.audit.check import MAX_LISTED, REPORTED_SPLITS, ProgressTracker
from toast_cli.data.audit.check_tokens import check_tokens, summarize_lengths
from toast_cli.data.base import DataSet
from toast_cli.data.text.conversation_split import ConversationSplit, find_near_conversations, format_content
from toast_cli.data.text.duplicates import (
    NearTexts,
    compute_text_key,
    count_copies_across_splits,
    find_first_copies,
    find_near_texts_by_split,
)
from toast_cli.data.text.turns import Conversation

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone


def check_texts(data: DataSet, track: ProgressTracker, backbone: Backbone | None = None) -> dict[str, Any]:
    """Return a report on a data set of texts as a JSON object: splits, copies, `problems` and `warnings`.

    A problem makes the results of a run questionable: copies of a text, or, with a backbone, texts that it cannot be
    trained on, such as those that its chat template rejects. A warning is for the user to judge: an entry that cannot
    be used, which tuning leaves out, a text that is nearly the same as an earlier one, a question in several splits,
    and what tuning the backbone reports about the texts, such as how many are truncated.

    With a backbone, conversations are also measured in tokens: their lengths, the limit, and the names of those that
    are truncated, rejected or without a token to learn.

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
    known = dict(zip(names, chain(*keys.values()), strict=True))
    near = _find_near(splits, lambda first, second: known[first] == known[second])
    asked = _find_questions_across_splits(splits)
    report: dict[str, Any] = {
        "classes": 0,
        "splits": {
            part: {
                "texts": len(split),
                "characters": summarize_lengths(lengths[part]),
            }
            for part, split in splits.items()
        },
        "left_out": dict(data.left_out),
        "left_out_by_reason": dict(Counter(data.left_out.values()).most_common()),
        "duplicates": {
            "copies": {
                "count": len(pairs),
                "across_splits": count_copies_across_splits(keys),
                "pairs": pairs[:MAX_LISTED],
            },
            "nearly_across_splits": _list_pairs(near.across_splits),
            "nearly_within_a_split": _list_pairs(near.within_a_split),
            "questions_across_splits": {
                "count": len(asked),
                "same_answer": sum(pair["same_answer"] for pair in asked),
                "pairs": asked[:MAX_LISTED],
            },
        },
        "notes": list(data.notes),
    }
    problems, warnings = _list_findings(report, len(names))
    warnings = [*data.warnings, *warnings]
    if backbone is not None:
        tokens = check_tokens(splits, backbone)
        for part, found in tokens.splits.items():
            report["splits"][part] |= found
        problems, warnings = [*problems, *tokens.problems], [*warnings, *tokens.warnings]
    return {**report, "problems": problems, "warnings": warnings}


def _list_pairs(near: Mapping[str, str]) -> dict[str, Any]:
    pairs = [{"first": first, "second": second} for second, first in islice(near.items(), MAX_LISTED)]
    return {"count": len(near), "pairs": pairs}


def _list_findings(report: Mapping[str, Any], total: int) -> tuple[list[str], list[str]]:
    problems, warnings = [], []
    if report["left_out"]:
        count = len(report["left_out"])
        entries = "entry cannot be used and is" if count == 1 else "entries cannot be used and are"
        warnings.append(f"{count:,} {entries} left out")
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
    if near := report["duplicates"]["nearly_within_a_split"]["count"]:
        warnings.append(
            f"{near:,} {'text is' if near == 1 else 'texts are'} nearly the same as an earlier one of the same split"
        )
    asked = report["duplicates"]["questions_across_splits"]
    if count := asked["count"]:
        warnings.append(
            f"{count:,} {'question is' if count == 1 else 'questions are'} in several splits, "
            f"{asked['same_answer']:,} of them with the same answer: results on them say little about new questions. "
            "Keep each question in one split: remove it from the others, or give files of your own for validation and "
            "testing (dataset.val_path, dataset.test_path)"
        )
    return problems, warnings


def _find_questions_across_splits(splits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a pair of conversations for every question that is in several splits, copies excepted.

    A question is what comes before the first answer. `same_answer` tells whether the first answers are the same.
    """
    first: dict[int, tuple[str, str, int, int]] = {}
    pairs: dict[int, dict[str, Any]] = {}
    for part, split in splits.items():
        for text in split.conversations if isinstance(split, ConversationSplit) else ():
            turns = text.turns
            begin = next((place for place, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
            question, answer, whole = (
                compute_text_key(format_content(Conversation(some, "")))
                for some in (turns[:begin], turns[begin : begin + 1], turns)
            )
            earlier, name, known_answer, known_whole = first.setdefault(question, (part, text.name, answer, whole))
            if earlier != part and known_whole != whole:
                pair = {"first": f"{earlier}: {name}", "second": f"{part}: {text.name}"}
                pairs.setdefault(question, {**pair, "same_answer": known_answer == answer})
    return list(pairs.values())


def _iterate_texts(split: Any) -> Iterator[Any]:
    return (split.load(index) for index in range(len(split)))


def _get_content(text: Any) -> str:
    return text if isinstance(text, str) else format_content(text)


def _get_name(split: Any, index: int) -> str:
    return split.names[index] if isinstance(split, ConversationSplit) else split.get_name(index)


def _find_near(splits: Mapping[str, Any], are_copies: Callable[[str, str], bool]) -> NearTexts:
    """Find near-duplicates, copies excepted. `are_copies` compares two names."""
    conversations = {part: split for part, split in splits.items() if isinstance(split, ConversationSplit)}
    if conversations:
        near = find_near_conversations(conversations, within=True)
    else:
        near = find_near_texts_by_split(
            {
                part: ([f"{part}: {_get_name(split, index)}" for index in range(len(split))], _iterate_texts(split))
                for part, split in splits.items()
            },
            within=True,
        )
    across, within = (
        {second: first for second, first in pairs.items() if not are_copies(first, second)}
        for pairs in (near.across_splits, near.within_a_split)
    )
    return NearTexts(across, within)
