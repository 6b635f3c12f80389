"""Conversations: read, divided, written out, and only their answers learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.language import instructions, make_tokenizer, write_json
from toast_cli.backbones.base import TextLimits
from toast_cli.data.base import BatchOptions, LoaderOptions
from toast_cli.data.text.chat_templates import tokenize_conversation
from toast_cli.data.text.conversation_split import ConversationOptions, ConversationSplit
from toast_cli.data.text.formats import alpaca, sharegpt
from toast_cli.data.text.formats.messages import MessagesOptions, open_messages
from toast_cli.data.text.loader import TextLoader, TokenizedText, build_conversation_loader, collate_texts, pack_texts
from toast_cli.data.text.turn_formats import ChatTemplateError, format_prompt
from toast_cli.data.text.turns import Conversation, Turn
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

TALK = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye"), Turn("assistant", "See you")]


def learned(ids: list[int], labels: list[int], tokenizer: Any) -> str:
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("template", ["plain", "chat", "stanford"])
def test_answers_and_their_ends_are_learned_and_nothing_else(template: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    ((ids, labels),) = tokenize_conversation(TALK, tokenizer, template)
    assert learned(ids, labels, tokenizer) == "Hello</s>See you</s>"


@pytest.mark.parametrize("template", ["plain", "chat", "stanford"])
def test_what_is_learned_is_read_as_it_will_be_when_the_model_writes(template: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    ((ids, labels),) = tokenize_conversation(TALK, tokenizer, template)
    start = len(labels) - 1 - labels[::-1].index(IGNORE_INDEX)  # the last token before the last answer
    text = format_prompt(TALK[:3], tokenizer, template)
    assert tokenizer.decode(ids[: start + 1]).removeprefix("<s>") == text


def test_auto_takes_the_chat_template_where_there_is_one() -> None:
    assert format_prompt(TALK[:1], make_tokenizer(chat=True), "auto") == "<|user|>Hi</s><|assistant|>"
    assert format_prompt(TALK[:1], make_tokenizer(), "auto") == "### Instruction:\nHi\n\n### Response:\n"


def test_a_chat_template_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(ToastError) as refused:
        tokenize_conversation(TALK, make_tokenizer(), "chat")
    assert refused.value.code == "text.no-chat-template"


THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As some models have it: what was thought is written before the last answer alone."""


def test_a_chat_template_that_rewrites_what_was_said_gives_a_sample_for_every_answer() -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = THINKING
    first, second = tokenize_conversation(TALK, tokenizer, "chat")
    assert tokenizer.decode(first[0]) == "<|user|>Hi</s><|assistant|><think></think>Hello</s>"
    assert learned(*first, tokenizer) == "<think></think>Hello</s>"
    assert tokenizer.decode(second[0]) == (
        "<|user|>Hi</s><|assistant|>Hello</s><|user|>Bye</s><|assistant|><think></think>See you</s>"
    )
    assert learned(*second, tokenizer) == "<think></think>See you</s>"
    for (ids, labels), turns in ((first, TALK[:1]), (second, TALK[:3])):
        prompt = [token for token, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX]
        assert tokenizer.decode(prompt) == format_prompt(turns, tokenizer, "chat")


def test_a_chat_template_that_asks_otherwise_than_it_writes_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    with pytest.raises(ChatTemplateError) as refused:
        tokenize_conversation(TALK, tokenizer, "chat")
    assert refused.value.code == "text.inconsistent-chat-template"


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_what_the_system_says_goes_to_the_user_where_a_template_knows_no_system() -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = NO_SYSTEM
    ((ids, labels),) = tokenize_conversation([Turn("system", "Be short."), *TALK[:2]], tokenizer, "chat")
    assert tokenizer.decode(ids) == "<|user|>Be short.\n\nHi</s><|assistant|>Hello</s>"
    assert learned(ids, labels, tokenizer) == "Hello</s>"
    with pytest.raises(ChatTemplateError) as refused:
        format_prompt([TALK[0], TALK[0]], tokenizer, "chat")
    assert refused.value.code == "text.refused-by-chat-template"
    assert "roles must alternate" in refused.value.why


def test_stanfords_words_are_to_the_letter() -> None:
    tokenizer = make_tokenizer()
    entry = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    ((ids, _),) = tokenize_conversation(alpaca.parse_alpaca_entry(entry), tokenizer, "stanford")
    assert tokenizer.decode(ids) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:3</s>"
    )
    assert format_prompt(TALK[:1], tokenizer, "stanford") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHi\n\n### Response:"
    )


def test_instructions_are_divided_once_and_for_all(tmp_path: Path) -> None:
    path = write_json(tmp_path / "data.json", instructions(40))
    first, second = (alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(path)), None) for _ in range(2))
    assert {name: len(split) for name, split in first.splits.items()} == {"train": 36, "val": 2, "test": 2}
    assert first.splits == second.splits
    texts = [text.turns for split in first.splits.values() for text in split.conversations]  # type: ignore[attr-defined]
    assert len(set(texts)) == 40


def test_an_input_follows_its_instruction() -> None:
    (asked, answer) = alpaca.parse_alpaca_entry({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert asked.whole == "Add.\n\n1 and 2" and answer == Turn("assistant", "3")


def test_an_answer_before_the_first_question_is_kept_and_not_learned(tmp_path: Path) -> None:
    said = [{"from": "gpt", "value": "?"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    written = [{"role": ROLES[each["from"]], "content": each["value"]} for each in said]
    for entry in ({"conversations": said}, {"messages": written}):
        path = write_json(tmp_path / "talk.json", [entry])
        data = open_messages(MessagesOptions(path=str(path), val_fraction=0, test_fraction=0), None)
        turns = data.splits["train"].load(0).turns  # type: ignore[union-attr]
        assert turns == (Turn("assistant", "?", trained=False), Turn("user", "a"), Turn("assistant", "b"))


ROLES = {"gpt": "assistant", "human": "user", "system": "system", "observation": "tool"}
BLANKS: list[tuple[list[tuple[str, Any]], list[Turn], str]] = [
    ([("system", " "), ("human", "a"), ("gpt", "b")], [Turn("user", "a"), Turn("assistant", "b")], "an empty system"),
    (
        [("human", "a"), ("gpt", ""), ("human", "c"), ("gpt", "d")],
        [Turn("user", "a"), Turn("assistant", "", trained=False), Turn("user", "c"), Turn("assistant", "d")],
        "an empty answer, which is read but not learned, of 1 entry",
    ),
    (
        [("human", "a"), ("observation", ""), ("observation", {"warm": True}), ("gpt", "b")],
        [Turn("user", "a"), Turn("tool", ""), Turn("tool", '{"warm": true}'), Turn("assistant", "b")],
        "",
    ),
]


@pytest.mark.parametrize(("said", "turns", "note"), BLANKS)
def test_blank_turns_leave_out_no_conversation(
    tmp_path: Path, said: list[tuple[str, Any]], turns: list[Turn], note: str
) -> None:
    shared = {"conversations": [{"from": speaker, "value": value} for speaker, value in said]}
    written = {"messages": [{"role": ROLES[speaker], "content": value} for speaker, value in said]}
    for entry in (shared, written):
        path = write_json(tmp_path / "talk.json", [entry])
        data = open_messages(MessagesOptions(path=str(path), val_fraction=0, test_fraction=0), None)
        assert list(data.splits["train"].load(0).turns) == turns  # type: ignore[union-attr]
        assert note in " ".join(data.notes) and ("Not used" in " ".join(data.notes)) == bool(note)


@pytest.mark.parametrize("empty", [[], "[]", None, ""])
def test_an_empty_conversation_is_called_empty(tmp_path: Path, empty: Any) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_json(tmp_path / "talk.json", [good, {"messages": empty}])
    data = open_messages(MessagesOptions(path=str(path), val_fraction=0, test_fraction=0), None)
    assert data.left_out == {"entry 2": "'messages' is empty"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"instruction": "a"}, "'output' is missing"),
        ({"output": "a"}, "'instruction' is missing"),
        ({"instruction": "a", "output": 5}, "'output' is not a string"),
        ({"instruction": "a", "output": None}, "'output' has no value"),
        ({"instruction": "a", "output": " "}, "'output' is empty"),
        ({"instruction": "a", "input": 5, "output": "b"}, "'input' is not a string"),
        ({"instruction": "a", "output": "\ud800"}, "'output' contains a lone surrogate"),
        (["a"], "not a JSON object"),
    ],
)
def test_an_instruction_that_cannot_be_used_is_left_out_and_named(tmp_path: Path, entry: Any, words: str) -> None:
    path = write_json(tmp_path / "data.json", [*instructions(2), entry, *instructions(2)])
    data = alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(path), val_fraction=0, test_fraction=0), None)
    assert len(data.splits["train"]) == 4
    assert "1 of 5 entries of data.json were left out: entry 3 (" in data.notes[-1] and words in data.notes[-1]
    alone = write_json(tmp_path / "alone.json", [entry])
    with pytest.raises(ToastError) as refused:
        alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(alone)), None)
    assert refused.value.code == "text.no-conversations"
    assert words in refused.value.why


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], "no answer to learn"),
        ([{"from": "human", "value": "a"}], "no answer to learn"),
        ([{"from": "human", "value": "a"}, {"from": "bing", "value": "b"}], "unknown speaker 'bing'"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], "its answer is empty"),
        ([{"from": ["gpt"], "value": "a"}], "'from' is not a string"),
        (None, "'conversations' is not a list"),
        (["a"], "'conversations' is not a list"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_left_out_and_named(tmp_path: Path, said: Any, words: str) -> None:
    good = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    path = write_json(tmp_path / "talk.json", [good, {"conversations": said}, good])
    data = sharegpt.open_sharegpt(sharegpt.ShareGptOptions(path=str(path), val_fraction=0, test_fraction=0), None)
    assert len(data.splits["train"]) == 2
    assert "1 of 3 entries of talk.json were left out: entry 2" in data.notes[-1] and words in data.notes[-1]


def test_an_edited_file_has_another_hash(tmp_path: Path) -> None:
    notes = []
    for answer in ("yes", "no"):
        path = write_json(tmp_path / "data.json", [{**entry, "output": answer} for entry in instructions(20)])
        notes.append(alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(path)), None).notes)
    assert notes[0] != notes[1]


def test_json_lines_are_read_and_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"instruction": "a", "output": "b"}\n\n{"instruction": "c", "output": "d"}\n')
    split = alpaca.open_alpaca(alpaca.AlpacaOptions(path="data.jsonl", test_fraction=0), tmp_path).splits["train"]
    assert isinstance(split, ConversationSplit)
    with pytest.raises(UsageError, match=r"none\.json") as refused:
        alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(tmp_path / "none.json")), None)
    assert refused.value.code == "data.missing-file"
    broken = tmp_path / "broken.json"
    for text, line in [
        (b'[\n{"instruction": "a"},\n{', 3),
        (b'{"instruction": "a", "output": "b"}\n{"a\n', 2),
        (b'[{"instruction": "a",\n"output": "caf\xe9"}]', 2),
        (b"[" * 100_000, 1),
    ]:
        broken.write_bytes(text)
        with pytest.raises(ToastError, match=r"broken\.json") as damaged:
            alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(broken)), None)
        assert damaged.value.code == "text.invalid-json"
        assert f"Line {line} " in damaged.value.why


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"instruction": "a", "output": "b\u2028c"}\n', encoding="utf-8")
    (talk,) = alpaca.open_alpaca(alpaca.AlpacaOptions(path=str(lines)), None).splits["train"].conversations  # type: ignore[attr-defined]
    assert talk.turns[1].text == "b\u2028c"


def tokenized(*ids: int) -> TokenizedText:
    return TokenizedText(list(ids), list(ids), list(range(len(ids))))


def test_padding_is_on_the_right_masked_and_not_learned() -> None:
    batch = collate_texts([tokenized(5, 6, 7), tokenized(8)], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORE_INDEX, IGNORE_INDEX]]


def test_packing_keeps_texts_whole_and_learns_no_first_token_from_another_text() -> None:
    blocks = pack_texts([tokenized(1, 2, 3), tokenized(4, 5), tokenized(6, 7, 8)], length=5)
    assert [block.ids for block in blocks] == [[1, 2, 3, 4, 5], [6, 7, 8]]
    assert blocks[0].labels == [IGNORE_INDEX, 2, 3, IGNORE_INDEX, 5]
    batch = collate_texts(blocks, pad=0)
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    assert torch.equal(batch["real"], torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def test_blocks_of_packed_texts_are_no_longer_than_the_window() -> None:
    options = ConversationOptions(name="sharegpt", path="x", packing=True, max_tokens=2048)
    split = ConversationSplit(tuple(Conversation(tuple(TALK), "x") for _ in range(8)), options)
    batches = BatchOptions(2, shuffle=True, augment=True)
    tokenizer = make_tokenizer(chat=True)
    text = build_conversation_loader(split, tokenizer, BatchOptions(2), LoaderOptions()).longest
    window = 2 * text + 1
    loader = build_conversation_loader(split, tokenizer, batches, LoaderOptions(), TextLimits(window, None))
    assert loader.samples == 4 and loader.longest == 2 * text
    assert f"Packed into 4 blocks of at most {window} tokens." in loader.notes


def batched(template: str, *talks: list[Turn]) -> TextLoader:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = template
    split = ConversationSplit(
        tuple(Conversation(tuple(talk), "x") for talk in talks), ConversationOptions(name="sharegpt", path="x")
    )
    return build_conversation_loader(split, tokenizer, BatchOptions(2), LoaderOptions())


def test_what_a_chat_template_refuses_is_left_out_and_counted() -> None:
    twice = [TALK[0], TALK[0], TALK[1]]
    loader = batched(NO_SYSTEM, TALK, twice)
    assert loader.samples == 1
    assert "1 of 2 texts were left out" in loader.notes[0] and "roles must alternate" in loader.notes[0]
    with pytest.raises(ToastError) as refused:
        batched(NO_SYSTEM, twice)
    assert refused.value.code == "text.refused-by-chat-template"


def test_a_conversation_that_becomes_several_texts_is_said() -> None:
    loader = batched(THINKING, TALK)
    assert loader.samples == 2
    assert loader.notes[0].startswith("1 conversations became 2 texts")
