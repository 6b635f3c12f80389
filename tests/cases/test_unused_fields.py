"""Fields of entries: used, or counted and named in the notes.

Reports of similar tools: unslothai/unsloth #11053, axolotl-ai-cloud/axolotl #222, PrimeIntellect-ai/verifiers #542.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.language import write_json
from toast_cli.data.base import DataSet
from toast_cli.data.text.documents import TextDocumentOptions, open_documents
from toast_cli.data.text.formats import alpaca, sharegpt
from toast_cli.data.text.json_lines import read_json_lines, read_json_list
from toast_cli.data.text.turns import Turn
from toast_cli.utils.errors import ToastError

PLAIN = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
ASKED = [Turn("user", "Add.", "1 and 2"), Turn("assistant", "3")]


@pytest.mark.parametrize(
    ("more", "before"),
    [
        ({"system": "Be kind."}, [Turn("system", "Be kind.")]),
        ({"history": [["a", "b"], ["c", "d"]]}, [Turn("user", "a"), Turn("assistant", "b"), *()]),
        ({"system": "", "history": []}, []),
        ({"system": None, "history": None}, []),
        ({"system": "S", "history": [["a", "b"]]}, [Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b")]),
    ],
)
def test_system_and_history_of_an_instruction_are_turns(more: dict[str, Any], before: list[Turn]) -> None:
    turns = alpaca.parse_alpaca_entry({**PLAIN, **more})
    assert turns[: len(before)] == before and turns[-2:] == ASKED
    assert len(turns) == len(before) + 2 + 2 * (len(more.get("history") or []) > 1)


@pytest.mark.parametrize(
    "more",
    [
        {"system": 5},
        {"system": ["a"]},
        {"history": "a"},
        {"history": [["a"]]},
        {"history": [["a", 5]]},
        {"history": [["", "b"]]},
        {"history": {"a": "b"}},
        {"history": ["ab"]},
    ],
)
def test_a_system_or_history_of_another_type_leaves_the_entry_out(more: dict[str, Any], tmp_path: Path) -> None:
    (name,) = more
    path = write_json(tmp_path / "a.json", [PLAIN, {**PLAIN, **more}])
    data = alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(path), val_fraction=0, test_fraction=0), None)
    assert list(data.left_out) == ["entry 2"] and name in data.left_out["entry 2"]


TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def test_the_system_prompt_of_a_conversation_is_its_first_turn_and_is_not_given_twice() -> None:
    said, system = [Turn("user", "a"), Turn("assistant", "b")], Turn("system", "S")
    own = {"from": "system", "value": "S"}
    parse = sharegpt.parse_sharegpt_turns
    assert parse({"system": "S", "conversations": TALK}) == [system, *said]
    assert parse({"system": "S", "conversations": [own, *TALK]}) == [system, *said]
    assert parse({"system": "S", "conversations": [TALK[1], *TALK]}) == [system, said[1], *said]
    both = parse({"system": "T", "conversations": [own, *TALK]})
    assert both == [Turn("system", "T"), system, *said]


def open_as(source: str, entries: list[dict[str, Any]], folder: Path) -> DataSet:
    path = str(write_json(folder / "d.json", entries))
    if source == "alpaca":
        return alpaca.open_alpaca(alpaca.AlpacaOptions(path=path), None)
    if source == "sharegpt":
        return sharegpt.open_sharegpt(sharegpt.ShareGptOptions(path=path), None)
    return open_documents(TextDocumentOptions(path=path), None)


@pytest.mark.parametrize(
    ("source", "entry", "unused"),
    [
        ("alpaca", {**PLAIN, "id": 7, "weight": 0.5}, ["'id' of 3 entries", "'weight' of 3 entries"]),
        ("alpaca", {**PLAIN, "tags": [], "note": None, "text": ""}, []),
        ("alpaca", {**PLAIN, "weight": 0}, ["'weight' of 3 entries"]),
        ("sharegpt", {"conversations": TALK, "tools": "[]", "id": "x"}, ["'id' of 3"]),
        (
            "sharegpt",
            {"conversations": [{**TALK[0], "weight": 1}, TALK[1]]},
            ["'conversations.weight' of another"],
        ),
        ("sharegpt", {"conversations": [*TALK, TALK[0]]}, ["the question after the last answer of 3"]),
        ("sharegpt", {"conversations": TALK, "system": "S"}, []),
        ("text", {"text": "a b c", "url": "x", "meta": {"n": 1}}, ["'url' of 3 documents", "'meta' of 3 documents"]),
        ("text", {"text": "a b c", "title": None}, []),
    ],
)
def test_what_is_not_used_is_counted_and_named(
    source: str, entry: dict[str, Any], unused: list[str], tmp_path: Path
) -> None:
    notes = " ".join(open_as(source, [entry] * 3, tmp_path).notes)
    assert ("Not used in" in notes) == bool(unused)
    for words in unused:
        assert words in notes


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"messages": [{"role": "user", "content": "a"}]},
            ("'conversations' is missing", "found 'messages'"),
        ),
        ({"dialogue": [], "id": 1}, ("'conversations' is missing", "'dialogue', 'id'")),
        ({"conversations": [{"role": "user", "content": "a"}]}, ("'from' is missing", "'role', 'content'")),
    ],
)
def test_fields_of_another_format_are_named(entry: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="is missing") as caught:
        sharegpt.parse_sharegpt_turns(entry)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("source", ["alpaca", "sharegpt", "text", "judge"])
def test_a_file_in_another_encoding_is_to_be_saved_as_utf8(tmp_path: Path, encoding: str, source: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"instruction": "caf\xe9", "output": "a"}\n'.encode(encoding) * 3)
    opens = {
        "alpaca": lambda: alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(path)), None),
        "sharegpt": lambda: sharegpt.open_sharegpt(sharegpt.ShareGptOptions(path=str(path)), None),
        "text": lambda: open_documents(TextDocumentOptions(path=str(path)), None),
        "judge": lambda: list(read_json_lines(path)),
    }
    with pytest.raises(ToastError) as caught:
        opens[source]()
    assert "UTF-8" in caught.value.what_to_do


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("alpaca", [{"messages": [{"role": "user", "content": "a"}]}], "'messages': use --dataset messages:"),
        ("alpaca", [{"conversations": TALK}], "'sharegpt': use --dataset messages:"),
        ("sharegpt", [PLAIN], "'alpaca': use --dataset messages:"),
        ("alpaca", [{"question": "a", "answer": "b"}], "'instruction' and 'output' (alpaca)"),
        ("alpaca", [{"instruction": "a"}], ""),
        ("alpaca", ["a"], "'instruction' and 'output' (alpaca)"),
    ],
)
def test_a_file_of_another_format_says_what_to_do(
    source: str, content: Any, words: str, indent: int | None, tmp_path: Path
) -> None:
    (tmp_path / "d.json").write_text(json.dumps(content, indent=indent))
    options: Any = {"alpaca": alpaca.AlpacaOptions, "sharegpt": sharegpt.ShareGptOptions}[source]
    opened: Any = {"alpaca": alpaca.open_alpaca, "sharegpt": sharegpt.open_sharegpt}[source]
    with pytest.raises(ToastError) as refused:
        opened(options(path=str(tmp_path / "d.json")), None)
    assert refused.value.code == "text.no-conversations"
    assert words in refused.value.what_to_do and bool(refused.value.what_to_do) == bool(words)


def test_one_object_over_several_lines_is_one_entry(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(PLAIN, indent=2))
    assert read_json_list(tmp_path / "d.json") == [PLAIN]


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_every_line_of_plain_text_is_a_document(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("one\ntwo\n\n  \nthree")
    data = open_documents(TextDocumentOptions(path=str(tmp_path / name), val_fraction=0), None)
    assert [data.splits["train"].load(index) for index in range(3)] == ["one", "two", "three"]


def test_documents_without_text_are_counted_and_named(tmp_path: Path) -> None:
    lines = [{"text": "a"}, {"text": " "}, {"text": "b"}, {"text": None}, {"text": "c"}]
    (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    path = str(tmp_path / "d.jsonl")
    data = open_documents(TextDocumentOptions(path=path, val_fraction=0), None)
    assert len(data.splits["train"]) == 3
    assert dict(data.left_out) == {f"{path}, document {number}": "'text' is empty" for number in (2, 4)}
    assert "2 of 5 documents were left out" in data.notes[-1]
    (tmp_path / "d.txt").write_text("a\n\nb\n", encoding="utf-8")
    assert not open_documents(TextDocumentOptions(path=str(tmp_path / "d.txt"), val_fraction=0), None).left_out
