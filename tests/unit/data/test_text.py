"""Conversations: read, divided, written out, and only their answers learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.language import instructions, make_tokenizer, write_json
from toast_cli.data import alpaca, sharegpt
from toast_cli.data.rendering import IGNORED, prompt_text, tokens
from toast_cli.data.text import TextSplit, Turn
from toast_cli.data.text_loading import Tokenized, collate, packed
from toast_cli.errors import ToastError, UsageError

TALK = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye"), Turn("assistant", "See you")]


def learned(ids: list[int], labels: list[int], tokenizer: Any) -> str:
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode([label for label in labels if label != IGNORED])


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_answers_and_their_ends_are_learned_and_nothing_else(template: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    ids, labels = tokens(TALK, tokenizer, template)
    assert learned(ids, labels, tokenizer) == "Hello</s>See you</s>"


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_what_is_learned_is_read_as_it_will_be_when_the_model_writes(template: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    ids, labels = tokens(TALK, tokenizer, template)
    start = len(labels) - 1 - labels[::-1].index(IGNORED)  # the last token before the last answer
    text = prompt_text(TALK[:3], tokenizer, template)
    assert tokenizer.decode(ids[: start + 1]).removeprefix("<s>") == text


def test_auto_takes_the_chat_template_where_there_is_one() -> None:
    assert prompt_text(TALK[:1], make_tokenizer(chat=True), "auto") == "<|user|>Hi</s><|assistant|>"
    assert prompt_text(TALK[:1], make_tokenizer(), "auto") == "### Instruction:\nHi\n\n### Response:\n"


def test_a_chat_template_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(ToastError, match="no chat template"):
        tokens(TALK, make_tokenizer(), "chat")


def test_a_chat_template_that_rewrites_what_was_said_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ToastError, match="rewrites earlier turns"):
        tokens(TALK, tokenizer, "chat")


def test_instructions_are_divided_once_and_for_all(tmp_path: Path) -> None:
    path = write_json(tmp_path / "data.json", instructions(40))
    first, second = (alpaca.open_source(alpaca.Options(path=str(path)), None) for _ in range(2))
    assert {name: len(split) for name, split in first.splits.items()} == {"train": 36, "val": 2, "test": 2}
    assert first.splits == second.splits
    texts = [text.turns for split in first.splits.values() for text in split.conversations]  # type: ignore[attr-defined]
    assert len(set(texts)) == 40


def test_an_input_follows_its_instruction() -> None:
    (asked, answer) = alpaca.read({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert asked == Turn("user", "Add.\n\n1 and 2") and answer == Turn("assistant", "3")


def test_a_conversation_that_begins_with_an_answer_begins_with_the_question_after_it() -> None:
    said = [{"from": "gpt", "value": "?"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert sharegpt.read({"conversations": said}) == [Turn("user", "a"), Turn("assistant", "b")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"instruction": "a"}, "there is no 'output'"), ({"output": "a"}, "there is no 'instruction'")],
)
def test_an_entry_in_another_format_is_named(tmp_path: Path, entry: dict[str, str], words: str) -> None:
    path = write_json(tmp_path / "data.json", [*instructions(2), entry])
    with pytest.raises(ToastError, match=r"data.json, entry 3") as caught:
        alpaca.open_source(alpaca.Options(path=str(path)), None)
    assert words in str(caught.value.why)


def test_json_lines_are_read_and_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"instruction": "a", "output": "b"}\n\n{"instruction": "c", "output": "d"}\n')
    split = alpaca.open_source(alpaca.Options(path="data.jsonl", test_fraction=0), tmp_path).splits["train"]
    assert isinstance(split, TextSplit)
    with pytest.raises(UsageError, match="There is no file"):
        alpaca.open_source(alpaca.Options(path=str(tmp_path / "none.json")), None)
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ToastError, match="cannot be read"):
        alpaca.open_source(alpaca.Options(path=str(tmp_path / "broken.json")), None)


def tokenized(*ids: int) -> Tokenized:
    return Tokenized(list(ids), list(ids), list(range(len(ids))))


def test_padding_is_on_the_right_masked_and_not_learned() -> None:
    batch = collate([tokenized(5, 6, 7), tokenized(8)], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]


def test_packing_keeps_texts_whole_and_learns_no_first_token_from_another_text() -> None:
    blocks = packed([tokenized(1, 2, 3), tokenized(4, 5), tokenized(6, 7, 8)], length=5)
    assert [block.ids for block in blocks] == [[1, 2, 3, 4, 5], [6, 7, 8]]
    assert blocks[0].labels == [IGNORED, 2, 3, IGNORED, 5]
    batch = collate(blocks, pad=0)
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    assert torch.equal(batch["real"], torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
