"""No bit below a checksum can change unseen; a line cut short is made again, a damaged one is never read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toast_cli.storage.checksums import (
    add_checksum,
    append_checksummed_line,
    drop_damaged_lines,
    parse_checksummed_json,
    read_checksummed_lines,
)
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import CHECKSUM_KEY, add_checksum_line, is_checksum_valid

VALUE = {"accuracy": 0.25, "name": "a", "of": "ab" * 32, "more": [1, None, {"deep": True}]}


def test_every_bit_of_a_checksummed_object_counts() -> None:
    whole = json.dumps(add_checksum(VALUE)).encode()
    assert parse_checksummed_json(whole) == VALUE
    name = whole.rindex(CHECKSUM_KEY.encode())
    for place in {*range(len(whole))} - {*range(name, name + len(CHECKSUM_KEY))}:
        for bit in range(8):
            spoiled = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
            try:
                assert parse_checksummed_json(spoiled) == VALUE
            except ValueError:
                continue


def test_an_object_without_a_seal_is_taken_as_it_is() -> None:
    assert parse_checksummed_json(json.dumps(VALUE)) == VALUE
    assert parse_checksummed_json("[1, 2]") == [1, 2]


def test_every_bit_of_a_sealed_text_counts() -> None:
    text = "lr: 0.01\nseed: 3\n"
    whole = add_checksum_line(text).encode()
    assert is_checksum_valid(whole.decode())
    for place in range(len(whole)):
        spoiled = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert not is_checksum_valid(spoiled.decode()) or spoiled.endswith(text.encode())


SCORES = [{"question": number, "score": 5 + number} for number in range(3)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    for score in SCORES:
        append_checksummed_line(tmp_path / "kept.jsonl", score)
    return tmp_path / "kept.jsonl"


def test_lines_come_back_as_they_were_written(kept: Path) -> None:
    assert list(read_checksummed_lines(kept, "")) == SCORES
    assert drop_damaged_lines(kept) == 0
    assert drop_damaged_lines(kept.with_name("none")) == 0


def test_lines_of_before_there_were_seals_are_taken(kept: Path) -> None:
    kept.write_text(json.dumps(SCORES[0]) + "\n")
    assert list(read_checksummed_lines(kept, "")) == SCORES[:1]


def test_a_line_that_was_not_finished_is_passed_over_and_closed_by_the_next(kept: Path) -> None:
    whole = kept.read_bytes()
    kept.write_bytes(whole + whole[:20])
    assert list(read_checksummed_lines(kept, "")) == SCORES
    assert drop_damaged_lines(kept) == 1
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("damaged", [b'{"question": 1, "score": 8, "sha256": "%s"}', b"[1]", b"\xff{"])
def test_a_damaged_line_is_an_error_until_it_is_dropped(kept: Path, damaged: bytes) -> None:
    first, second, third = kept.read_bytes().splitlines()
    kept.write_bytes(b"\n".join([first, damaged.replace(b"%s", json.loads(second)["sha256"].encode()), third]) + b"\n")
    with pytest.raises(ToastError, match=r"kept\.jsonl") as raised:
        list(read_checksummed_lines(kept, "Ask again."))
    assert raised.value.code == "run.damaged"
    assert "Line 2" in raised.value.why and raised.value.what_to_do == "Ask again."
    assert drop_damaged_lines(kept) == 1
    assert list(read_checksummed_lines(kept, "")) == [SCORES[0], SCORES[2]]
