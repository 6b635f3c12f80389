"""Text from tokens: whole characters, stop texts across tokens, and the same text as decoding at once."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.language import make_tokenizer
from toast_cli.serve.text_stream import TextStream

TOKENIZER = make_tokenizer()
TOKENS = {byte: TOKENIZER.convert_tokens_to_ids(character) for byte, character in bytes_to_unicode().items()}


def stream(text: bytes, *stops: str) -> tuple[list[str], TextStream]:
    """Return the pieces of a text whose tokens are its bytes."""
    followed = TextStream(TOKENIZER, stops)
    pieces = []
    for byte in text:
        pieces.append(followed.add(TOKENS[byte]))
        if followed.stopped:
            break
    pieces.append(followed.finish())
    return pieces, followed


def test_a_character_of_several_tokens_is_passed_on_whole() -> None:
    pieces, followed = stream("aé😀b".encode())
    assert pieces == ["a", "", "é", "", "", "", "😀", "b", ""]
    assert followed.text == "aé😀b"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "wo t"), "one t"),
        ("one two three", ("thrive",), "one two three"),
        ("ababac", ("abac",), "ab"),
        ("grün ü", ("ün",), "gr"),
        ("end</", ("</s>",), "end</"),
    ],
)
def test_nothing_from_the_first_stop_text_on_is_passed_on(text: str, stops: tuple[str, ...], expected: str) -> None:
    pieces, followed = stream(text.encode(), *stops)
    assert "".join(pieces) == followed.text == expected
    assert followed.stopped == (expected != text)


def test_spaces_and_bytes_of_sentencepiece_are_those_of_decoding_at_once() -> None:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁bird", "s", "é", "▁▁"]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    emoji = [words.index(f"<0x{byte:02X}>") for byte in "😀".encode()]
    generator = random.Random(0)
    for _ in range(100):
        tokens = [token for _ in range(20) for token in generator.choice([*([one] for one in range(257, 263)), emoji])]
        followed = TextStream(tokenizer)
        streamed = "".join([*map(followed.add, tokens), followed.finish()])
        assert streamed == followed.text == tokenizer.decode(tokens)


def test_any_bytes_give_the_text_of_decoding_at_once() -> None:
    generator = random.Random(0)
    for _ in range(200):
        text = bytes(generator.choice([generator.randrange(256), 0xE2, 0x82, 0xAC, 0x41]) for _ in range(60))
        pieces, followed = stream(text)
        whole = TOKENIZER.decode([TOKENS[byte] for byte in text], skip_special_tokens=True)
        assert "".join(pieces) == followed.text == whole
