"""The same text in two splits, by content; near-duplicates included.

Reports of similar tools: huggingface/datasets #4261.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import toast
from tests.language import instructions, make_model, write_json
from toast_cli.data.audit.check_texts import check_texts
from toast_cli.data.base import DataSet
from toast_cli.data.splits import hold_out
from toast_cli.data.text.documents import TextDocumentOptions, open_documents
from toast_cli.data.text.duplicates import compute_minimum_hashes, compute_text_key, find_near_texts
from toast_cli.data.text.formats import alpaca, messages

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("rn", "st", "ll", "x")]


def make_text(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def open_instructions(entries: list[dict[str, str]], folder: Path, **options: Any) -> DataSet:
    path = write_json(folder / "d.json", entries)
    return alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(path), **options), None)


def list_splits_of(data: DataSet) -> dict[str, set[str]]:
    """Return the splits of every text, in lower case and without spaces at its end."""
    found: dict[str, set[str]] = {}
    for part, split in data.splits.items():
        for index in range(len(split)):
            text = split.load(index)
            whole = text if isinstance(text, str) else " ".join(turn.whole for turn in text.turns)
            found.setdefault(" ".join(whole.lower().split()), set()).add(part)
    return found


VARIANTS = [str, str.upper, lambda text: f"  {text} ", lambda text: text.replace(" ", "\n")]


def test_copies_of_an_instruction_are_in_one_split(tmp_path: Path) -> None:
    entries = [
        {"instruction": change(f"Question {number}?"), "output": f"Answer {number}."}
        for number in range(30)
        for change in VARIANTS
    ]
    random.Random(0).shuffle(entries)
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    said = [note for note in open_instructions(entries, tmp_path, **fractions).notes if "copies of a text" in note]
    assert len(said) == 1 and "texts of val and test in d.json" in said[0]
    data = open_instructions(entries, tmp_path, group_copies=True, **fractions)
    splits = list_splits_of(data)
    assert len(splits) == 30 and all(len(parts) == 1 for parts in splits.values())
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 76, "val": 20, "test": 24}
    assert not any("copies of a text" in note for note in data.notes)


def test_copies_of_a_document_are_in_one_split(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("\n".join(f"Day {number % 20} was fine." for number in range(60)))
    options = {"path": str(path), "val_fraction": 0.2, "test_fraction": 0.2}
    said = open_documents(TextDocumentOptions(**options), None).notes
    assert any("are copies of a text in an earlier split" in note for note in said)
    data = open_documents(TextDocumentOptions(**options, group_copies=True), None)
    assert all(len(parts) == 1 for parts in list_splits_of(data).values())
    assert sum(map(len, data.splits.values())) == 60 and set(data.splits) == {"train", "val", "test"}
    assert not any("copies of a text" in note for note in data.notes)


def test_data_without_copies_are_split_as_ever(tmp_path: Path) -> None:
    """Earlier versions drew from the names of all entries, and runs of theirs are resumed."""
    data = open_instructions(instructions(200), tmp_path)
    names = [f"d.json, entry {number}" for number in range(1, 201)]
    kept, test = hold_out(names, [0] * 200, 0.05, 0)
    train, val = hold_out([names[i] for i in kept], [0] * len(kept), 0.05, 1)
    splits: Any = data.splits
    assert splits["test"].names == [names[i] for i in test]
    assert splits["val"].names == [names[kept[i]] for i in val]
    assert splits["train"].names == [names[kept[i]] for i in train]
    assert data.notes[0] == (
        "d.json: 180 train (split 1c1f7544), 10 val (split 7734bc73), 10 test (split 8682fd40), seed 0; held out: 5% "
        "for val (dataset.val_fraction) and 5% for test (dataset.test_fraction)"
    )
    path = tmp_path / "d.txt"
    path.write_text("\n".join(f"Day {number} was fine." for number in range(200)))
    documents = open_documents(TextDocumentOptions(path=str(path), test_fraction=0.1), None)
    held = "178 train (split dce2b710), 2 val (split ee1b405e), 20 test (split 0f8af6ae)"
    fractions = "1% for val (dataset.val_fraction) and 10% for test (dataset.test_fraction)"
    assert documents.notes == (f"documents of {path}: {held}, seed 0; held out: {fractions}",)
    whole = TextDocumentOptions(path=str(path), val_fraction=0, test_fraction=0)
    assert f"documents of {path}: 200 texts, all of them (split " in open_documents(whole, None).notes[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a b", " A\n\nB ", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("\ufb01ne", "fine", True),
        ("1 + 2", "1 - 2", False),
        ("a b", "ab", False),
        ("a.", "a", False),
        ("\ud800", "\ud800", True),
    ],
)
def test_copies_may_differ_in_case_spaces_and_form_of_unicode(one: str, other: str, same: bool) -> None:
    assert (compute_text_key(one) == compute_text_key(other)) == same


def test_near_duplicates_are_found_and_other_texts_are_not() -> None:
    texts = [make_text(seed) for seed in range(300)]
    changed = [
        f"{text} bell" if seed % 2 else text.replace(text.split()[3], "new", 1) for seed, text in enumerate(texts)
    ]
    others = [make_text(seed) for seed in range(1000, 1300)]
    found = find_near_texts(compute_minimum_hashes(texts), compute_minimum_hashes([*changed, *others, "", "a"]))
    assert sum(found.get(index) == index for index in range(300)) > 285
    assert all(index < 300 for index in found)
    assert find_near_texts(compute_minimum_hashes([]), compute_minimum_hashes(["a"])) == {}
    assert find_near_texts(compute_minimum_hashes([""]), compute_minimum_hashes([""])) == {0: 0}


def test_near_duplicates_in_two_splits_are_said(tmp_path: Path) -> None:
    entries = [{"instruction": make_text(seed), "output": "yes"} for seed in range(40)]
    assert "nearly" not in " ".join(open_instructions(entries, tmp_path).notes)
    near = [{**entry, "instruction": entry["instruction"] + " too"} for entry in entries]
    notes = " ".join(open_instructions([*entries, *near], tmp_path).notes)
    assert "nearly the same as one of an earlier split" in notes and "d.json, entry " in notes


def test_a_part_that_all_texts_share_makes_no_near_duplicates(tmp_path: Path) -> None:
    """Such as a long instruction with another input each, or a system prompt."""
    long = make_text(0, 200)
    entries = [
        {"system": long, "instruction": make_text(1, 200), "input": make_text(seed, 12), "output": "yes"}
        for seed in range(60)
    ]
    assert "nearly" not in " ".join(open_instructions(entries, tmp_path).notes)


def test_data_check_reports_what_is_wrong_with_texts(tmp_path: Path) -> None:
    entries: list[Any] = [{"instruction": make_text(seed), "output": "yes"} for seed in range(60)]
    fine = toast("data", "check", f"alpaca:{write_json(tmp_path / 'fine.json', entries)}")
    assert fine.code == 0 and "No problems found." in fine.out, fine.out
    path = write_json(tmp_path / "one.json", [*entries, {"instruction": "a", "output": ""}])
    one = toast("data", "check", f"alpaca:{path}")
    assert one.code == 0 and "1 entry cannot be used and is left out" in one.out, "tuning leaves it out as well"
    bad = [*entries, entries[0], {"instruction": "a", "output": ""}, {"instruction": "a", "output": ["b"]}]
    bad += [{**entry, "instruction": entry["instruction"] + " too"} for entry in entries]
    path = write_json(tmp_path / "bad.json", bad)
    said = toast("data", "check", f"alpaca:{path}", "--json", "--out", tmp_path / "report.json")
    assert said.code == 1
    report = json.loads(said.out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == ["1 of 121 texts are copies of an earlier one, 1 of them in another split"]
    assert "2 entries cannot be used and are left out" in report["warnings"]
    assert report["left_out"] == {"entry 62": "'output' is empty", "entry 63": "'output' is not a string"}
    assert report["duplicates"]["copies"]["pairs"][0]["second"].endswith("entry 61")
    assert report["duplicates"]["nearly_across_splits"]["count"] > 5
    shown = toast("data", "check", f"alpaca:{path}")
    assert shown.code == 1 and "'output' is empty" in shown.out and "nearly identical: " in shown.out


def test_data_check_reads_documents_and_tries_texts_on_a_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "d.txt").write_text("\n".join(make_text(seed % 90) for seed in range(100)))
    said = toast("data", "check", f"text:{tmp_path / 'd.txt'}", "--backbone", f"llama:{model}", "--json")
    report = json.loads(said.out)
    assert said.code == 1 and "10 of 100 texts are copies" in report["problems"][0]
    assert any("256 positions" in warning for warning in report["warnings"])
    long = write_json(tmp_path / "long.json", [{"instruction": make_text(n), "output": "yes" * 300} for n in range(40)])
    checked = toast("data", "check", f"alpaca:{long}", "--backbone", f"llama:{model}")
    assert checked.code == 0 and "truncated to 256 tokens" in checked.out
    images = toast("data", "check", "demo", "--backbone", f"llama:{model}")
    images.fails(2, "--backbone", error="cli.conflicting-options")


def test_questions_in_several_splits_are_counted_with_their_answers(tmp_path: Path) -> None:
    def answer(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    def write(name: str, conversations: list[list[dict[str, str]]]) -> Path:
        return write_json(tmp_path / name, [{"messages": turns} for turns in conversations])

    asked = [{"role": "user", "content": f"{make_text(number, 3)}?"} for number in range(4)]
    again = [{"role": "user", "content": "And then?"}, answer("Nothing.")]
    train = write("train.json", [[question, answer(make_text(100 + n))] for n, question in enumerate(asked)])
    test = write(
        "test.json",
        [
            [asked[0], answer(make_text(100))],  # a copy, which is counted as such
            [asked[1], answer(make_text(101)), *again],
            [asked[2], answer(make_text(202))],
            [{"role": "user", "content": "Which one is new?"}, answer("This one.")],
        ],
    )
    data = messages.open_messages(messages.MessagesOptions(path=str(train), test_path=str(test), val_fraction=0), None)
    report = check_texts(data, lambda items, total, description: items)
    found = report["duplicates"]["questions_across_splits"]
    assert (found["count"], found["same_answer"]) == (2, 1)
    assert [pair["same_answer"] for pair in found["pairs"]] == [True, False]
    assert any(
        "2 questions are in several splits, 1 of them with the same answer" in line and "dataset.test_path" in line
        for line in report["warnings"]
    )
    near = [note for note in data.notes if "nearly the same" in note]
    assert not any("entry 1 and" in note for note in near)
