"""Seals: no single bit of a sealed text can change and the text be read as another."""

from __future__ import annotations

import json

from toast_cli.recipe.checksum import add_checksum_line, is_checksum_valid
from toast_cli.storage.checksums import add_checksum, parse_checksummed_json

VALUE = {"accuracy": 0.25, "name": "a", "of": "ab" * 32, "more": [1, None, {"deep": True}]}


def test_every_bit_of_a_sealed_object_counts_its_seals_name_too() -> None:
    whole = json.dumps(add_checksum(VALUE)).encode()
    assert parse_checksummed_json(whole) == VALUE
    for place in range(len(whole)):
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
