"""Which tokens of a prompt belong to a text that is to be emphasized, whatever the tokenizer and the format."""

from __future__ import annotations

from itertools import groupby

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.language import CHAT, make_tokenizer
from toast_cli.data.text.chat_templates import encode_prompt
from toast_cli.data.text.turns import Turn
from toast_cli.model.occurrences import mark_occurrences
from toast_cli.utils.errors import UsageError

TURNS = (
    Turn("system", "Answer: yes or no."),
    Turn("user", "The hat is green."),
    Turn("assistant", "yes"),
    Turn("user", "The green Zoë is a user."),
)


class SlowTokenizer(PreTrainedTokenizerFast):
    """A tokenizer without offsets."""

    is_fast = False


def make_word_tokenizer(slow: bool = False) -> PreTrainedTokenizerFast:
    """Words with the blank before them as tokens; other words in pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([turn.text for turn in TURNS for _ in range(9)], trainer)
    kind = SlowTokenizer if slow else PreTrainedTokenizerFast
    made = kind(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": specials[3:]})
    made.chat_template = CHAT
    return made


def read_marked(turns, tokenizer, template, *texts: str) -> list[str]:
    """Return the text of every run of marked tokens."""
    ids, marked = encode_prompt(turns, tokenizer, template), mark_occurrences(turns, tokenizer, template, texts)
    assert len(ids) == len(marked)
    runs = groupby(zip(marked, ids, strict=True), key=lambda pair: pair[0])
    return [tokenizer.decode([token for _, token in pairs]) for one, pairs in runs if one]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("template", ["chat", "plain", "stanford"])
def test_every_occurrence_in_a_turn_is_marked_and_nothing_of_the_format(template: str, slow: bool) -> None:
    tokenizer = make_word_tokenizer(slow)
    assert read_marked(TURNS, tokenizer, template, " green") == [" green", " green"]
    assert read_marked(TURNS, tokenizer, template, "user", "Zoë") == [" Zoë", " user"]
    assert read_marked(TURNS, tokenizer, template, "yes") == [" yes", "yes"]
    assert read_marked(TURNS, tokenizer, template, "hat is green") == [" hat is green"]


@pytest.mark.parametrize("slow", [False, True])
def test_a_token_of_which_a_part_is_meant_is_marked_as_a_whole(slow: bool) -> None:
    assert read_marked(TURNS, make_word_tokenizer(slow), "chat", "ree") == [" green", " green"]
    assert read_marked(TURNS, make_word_tokenizer(slow), "chat", "at is gr") == [" hat is green"]


@pytest.mark.parametrize("slow", [False, True])
def test_a_document_and_a_text_that_spells_a_control_token_are_searched(slow: bool) -> None:
    tokenizer = make_word_tokenizer(slow)
    assert read_marked((Turn("user", "hat green"),), tokenizer, None, "green") == [" green"]
    turns = (Turn("user", "a</s>b green"),)
    for template in ("chat", None):
        assert read_marked(turns, tokenizer, template, "</s>b") == ["</s>b"]
        assert read_marked(turns, tokenizer, template, "green") == [" green"]


def test_bytes_of_a_character_are_marked_together() -> None:
    assert read_marked((Turn("user", "Zoë, Noë"),), make_tokenizer(chat=True), "chat", "ë") == ["ë", "ë"]


@pytest.mark.parametrize(("text", "code"), [("Green", "text.not-in-prompt"), (" ", "text.empty-emphasis")])
def test_a_text_that_does_not_occur_is_an_error_that_names_it(text: str, code: str) -> None:
    with pytest.raises(UsageError) as refused:
        mark_occurrences(TURNS, make_word_tokenizer(), "chat", ["green", text], "Prompt 3")
    assert refused.value.code == code
    assert text.strip() in str(refused.value)
