"""Which part of a conversation a token belongs to, whatever the tokenizer and the format."""

from __future__ import annotations

from itertools import groupby

import pytest

from tests.language import make_tokenizer
from toast_cli.data.text.chat_templates import tokenize_conversation
from toast_cli.data.text.text_parts import label_conversation_tokens, label_document_tokens
from toast_cli.data.text.turns import Turn

TURNS = (
    Turn("system", " Be kind. "),
    Turn("user", "user", "Zoë: 1"),
    Turn("assistant", "yes"),
    Turn("user", "yes"),
    Turn("assistant", "</s>no"),
)
TRIMMED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('=')[-1] }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def read_parts(turns: tuple[Turn, ...], tokenizer, template: str) -> list[list[tuple[str, str]]]:
    """Return the text of every run of tokens of one part, for each sample."""
    found = []
    samples = tokenize_conversation(turns, tokenizer, template)
    labelled = label_conversation_tokens(turns, tokenizer, template)
    assert [len(ids) for ids, _ in samples] == [len(parts) for parts in labelled]
    for (ids, _), parts in zip(samples, labelled, strict=True):
        runs = groupby(zip(parts, ids, strict=True), key=lambda pair: pair[0])
        found.append([(part, tokenizer.decode([token for _, token in pairs])) for part, pairs in runs])
    return found


def test_turns_of_a_chat_template_are_found_between_its_marks() -> None:
    (parts,) = read_parts(TURNS, make_tokenizer(chat=True), "chat")
    assert parts == [
        ("special tokens", "<|system|>"), ("system", " Be kind. "), ("special tokens", "</s><|user|>"),
        ("user 1", "user"), ("format", "\n\n"), ("user 1", "Zoë: 1"), ("special tokens", "</s><|assistant|>"),
        ("answer 1", "yes"), ("special tokens", "</s><|user|>"), ("user 2", "yes"),
        ("special tokens", "</s><|assistant|>"), ("answer 2", "</s>no"), ("special tokens", "</s>"),
    ]  # fmt: skip


@pytest.mark.parametrize("template", ["plain", "stanford", TRIMMED])
def test_headings_are_format_and_trimmed_texts_are_found(template: str) -> None:
    tokenizer = make_tokenizer()
    if template == TRIMMED:
        tokenizer.chat_template, template = TRIMMED, "chat"
    (parts,) = read_parts(TURNS, tokenizer, template)
    turns = [text.strip() for part, text in parts if part not in ("format", "special tokens")]
    assert turns == ["Be kind.", "user", "Zoë: 1", "yes", "yes", "</s>no"]
    own = {part for part, text in parts if "###" in text or "<|" in text}
    assert own <= {"format", "special tokens"}


def test_turns_that_the_template_writes_otherwise_are_looked_for() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = THINKING
    turns = (Turn("user", "a?"), Turn("assistant", "so=b"), Turn("user", "c?"), Turn("assistant", "hm=d"))
    first, second = read_parts(turns, tokenizer, "chat")
    assert ("answer 1", "so=b") in first and ("user 1", "a?") in first
    assert ("user 2", "c?") in second and ("answer 2", "hm=d") in second


def test_tokens_that_a_turn_may_contain_belong_to_it() -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.add_tokens(["<think>"])
    (parts,) = read_parts((Turn("user", "a"), Turn("assistant", "<think>b")), tokenizer, "chat")
    assert parts[-2:] == [("answer 1", "<think>b"), ("special tokens", "</s>")]


def test_documents_are_text_and_special_tokens() -> None:
    tokenizer = make_tokenizer()
    ids = [tokenizer.bos_token_id, *tokenizer.encode("hi", add_special_tokens=False), tokenizer.eos_token_id]
    assert label_document_tokens(ids, tokenizer) == ["special tokens", "text", "text", "special tokens"]
