"""Validation and test texts from files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.language import instructions, write_json
from toast_cli.data.base import DataSet
from toast_cli.data.identity import describe_data_differences, identify_data
from toast_cli.data.text.documents import TextDocumentOptions, open_documents
from toast_cli.data.text.formats.alpaca import AlpacaOptions, open_alpaca
from toast_cli.data.text.formats.messages import MessagesOptions, open_messages
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.errors import ToastError, UsageError


def count(data: DataSet) -> dict[str, int]:
    return {part: len(split) for part, split in data.splits.items()}


def write_lines(path: Path, count: int, word: str) -> Path:
    path.write_text("\n".join(f"{word} {number} was fine." for number in range(count)))
    return path


def open_files(folder: Path, **options: Any) -> DataSet:
    return open_alpaca(AlpacaOptions(path="train.json", **options), folder)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    everything = instructions(60)
    write_json(tmp_path / "train.json", everything[:40])
    write_json(tmp_path / "val.json", [{**each, "id": 1} for each in everything[40:45]])
    write_json(tmp_path / "test.json", everything[45:])
    return tmp_path


def test_files_of_their_own_are_whole_splits_and_the_rest_is_held_out(files: Path) -> None:
    both = open_files(files, val_path="val.json", test_path="test.json")
    assert count(both) == {"train": 40, "val": 5, "test": 15}
    assert both.splits["val"].names == [f"val.json, entry {number}" for number in range(1, 6)]  # type: ignore[attr-defined]
    assert "Not used in val.json: 'id' of 5 entries." in both.notes
    assert any(note.startswith("test.json: 15 test (split ") for note in both.notes)
    held = open_files(files, val_path="val.json", test_fraction=0.1)
    assert count(held) == {"train": 36, "val": 5, "test": 4}
    texts = [text.turns for split in held.splits.values() for text in split.conversations]  # type: ignore[attr-defined]
    assert len(set(texts)) == 45
    # The same texts are held out for test as without a file for validation.
    alone = open_files(files, val_fraction=0, test_fraction=0.1)
    assert held.splits["test"].names == alone.splits["test"].names  # type: ignore[attr-defined]


def test_documents_have_files_of_their_own_too(tmp_path: Path) -> None:
    path, other = write_lines(tmp_path / "a.txt", 50, "Day"), write_lines(tmp_path / "b.txt", 7, "Night")
    data = open_documents(TextDocumentOptions(path=str(path), val_path=str(other), documents=20), None)
    assert count(data) == {"train": 20, "val": 7}
    assert data.splits["val"].load(6) == "Night 6 was fine."
    copied = write_lines(tmp_path / "c.txt", 3, "Day")
    leaking = open_documents(TextDocumentOptions(path=str(path), test_path=str(copied), val_fraction=0), None)
    said = [note for note in leaking.notes if "copies of a text" in note]
    assert len(said) == 1 and said[0].startswith("3 texts") and "Remove them from one of the files" in said[0]


def test_texts_in_two_files_are_reported_with_a_remedy_that_works(files: Path) -> None:
    write_json(files / "val.json", instructions(40)[:2])
    said = [note for note in open_files(files, val_path="val.json", group_copies=True).notes if "copies" in note]
    assert len(said) == 1 and said[0].startswith("2 texts of val and test in train.json and val.json are copies")
    assert "Remove them from one of the files" in said[0] and "group_copies" not in said[0]


def test_entries_that_are_left_out_are_named_with_their_file(files: Path) -> None:
    write_json(files / "val.json", [*instructions(2), {"instruction": "a", "output": ""}])
    assert open_files(files, val_path="val.json").left_out == {"val.json, entry 3": "'output' is empty"}


def test_files_of_one_name_are_told_apart(files: Path) -> None:
    (files / "held").mkdir()
    write_json(files / "held" / "train.json", instructions(43)[40:])
    for path in ("held/train.json", str(files / "held" / "train.json")):  # a run may be opened from another folder
        names = open_files(files, val_path=path).splits["val"].names  # type: ignore[attr-defined]
        assert names[0] == "held/train.json, entry 1"
    for folder, word in (("a", "one"), ("b", "two")):
        (files / folder).mkdir()
        for number in (1, 2):
            write_json(files / folder / f"{number}.json", [{"instruction": f"{word} {number}", "output": "yes"}])
    mixed = open_files(files, mix={"a": 1, "b": 1}, val_fraction=0, test_fraction=0)
    assert mixed.splits["train"].names[40:] == [  # type: ignore[attr-defined]
        f"{name}.json, entry 1" for name in ("1", "2", "b/1", "b/2")
    ]


def test_a_path_of_a_split_replaces_the_split_of_a_data_set_and_takes_all_files_of_a_folder(files: Path) -> None:
    for folder, parts in (("own", ("train", "validation", "test")), ("held", ("train", "test"))):
        (files / folder).mkdir()
        for place, part in enumerate(parts):
            texts = [{"prompt": f"{folder} {part} {number}", "completion": "yes"} for number in range(3 + place)]
            write_json(files / folder / f"{part}.json", texts)
    options = MessagesOptions(path="own", val_path="held")
    data = open_messages(options, files)
    assert count(data) == {"train": 3, "val": 7, "test": 5}
    assert "validation.json: 4 texts are not used, as dataset.val_path replaces them." in data.notes
    assert any(
        note.startswith("held/test.json, held/train.json: 7 val (split ") and note.endswith(", the whole files")
        for note in data.notes
    )
    assert not {text.turns for text in data.splits["val"].conversations} & {  # type: ignore[attr-defined]
        text.turns
        for text in data.splits["train"].conversations  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"val_path": "train.json"}, "data.same-path"),
        ({"val_path": "val.json", "test_path": "./val.json"}, "data.same-path"),
        ({"mix": {"alpaca:val.json": 1}, "val_path": "val.json"}, "data.same-path"),
        ({"mix": {"./train.json": 2}}, "data.same-path"),
        ({"val_path": "gone.json"}, "data.missing-file"),
        ({"test_path": "empty.json"}, "text.no-conversations"),
    ],
)
def test_wrong_files_are_refused(files: Path, options: dict[str, str], code: str) -> None:
    (files / "empty.json").write_text("[]")
    with pytest.raises(ToastError) as refused:
        open_files(files, **options)
    assert refused.value.code == code
    assert isinstance(refused.value, UsageError) == code.startswith("data.")


def test_a_change_of_the_validation_file_is_noticed(files: Path) -> None:
    before = identify_data(open_files(files, val_path="val.json"))
    assert not describe_data_differences(before, identify_data(open_files(files, val_path="val.json")))
    entries = json.loads((files / "val.json").read_text())
    write_json(files / "val.json", [{**entries[0], "output": "no"}, *entries[1:]])
    changed = describe_data_differences(before, identify_data(open_files(files, val_path="val.json")))
    assert changed == ["val: 1 with other content (val.json, entry 1)."]


def test_recipes_know_the_paths(files: Path) -> None:
    raw = {"backbone": "llama_7b", "dataset": {"name": "alpaca", "path": "a.json", "val_path": "b.json"}}
    dataset: Any = build_recipe({**raw, "method": "toast"}, {}, origin="options").dataset
    assert dataset.val_path == "b.json" and dataset.list_path_fields() == ["path", "val_path", "test_path"]
