"""Seals: no single bit of a sealed text can change and the text be read as another."""

from __future__ import annotations

import json

from toast_cli.recipe.checksum import seal_holds, sealed_text
from toast_cli.storage.checksums import sealed, unsealed

VALUE = {"accuracy": 0.25, "name": "a", "of": "ab" * 32, "more": [1, None, {"deep": True}]}


def test_every_bit_of_a_sealed_object_counts_its_seals_name_too() -> None:
    whole = json.dumps(sealed(VALUE)).encode()
    assert unsealed(whole) == VALUE
    for place in range(len(whole)):
        for bit in range(8):
            spoiled = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
            try:
                assert unsealed(spoiled) == VALUE
            except ValueError:
                continue


def test_an_object_without_a_seal_is_taken_as_it_is() -> None:
    assert unsealed(json.dumps(VALUE)) == VALUE
    assert unsealed("[1, 2]") == [1, 2]


def test_every_bit_of_a_sealed_text_counts() -> None:
    text = "lr: 0.01\nseed: 3\n"
    whole = sealed_text(text).encode()
    assert seal_holds(whole.decode())
    for place in range(len(whole)):
        spoiled = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert not seal_holds(spoiled.decode()) or spoiled.endswith(text.encode())
