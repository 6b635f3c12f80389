"""Lines that a session adds one by one: what was cut short is made again, what is damaged is never read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toast_cli.storage.checksummed_jsonl import append_checksummed_line, drop_damaged_lines, read_checksummed_lines
from toast_cli.utils.errors import ToastError

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
    with pytest.raises(ToastError, match=r"kept\.jsonl is damaged") as raised:
        list(read_checksummed_lines(kept, "Ask again."))
    assert "Line 2" in raised.value.why and raised.value.what_to_do == "Ask again."
    assert drop_damaged_lines(kept) == 1
    assert list(read_checksummed_lines(kept, "")) == [SCORES[0], SCORES[2]]
