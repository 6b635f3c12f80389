"""Chat templates in the manner of published models that write turns in unusual ways."""

from __future__ import annotations

from typing import Any

import pytest

from tests.language import CHAT, make_tokenizer
from toast_cli.data.base import BatchOptions, LoaderOptions
from toast_cli.data.text.chat_templates import encode_prompt, find_end_tokens, set_chat_template, tokenize_conversation
from toast_cli.data.text.conversation_split import ConversationOptions, ConversationSplit
from toast_cli.data.text.loader import build_conversation_loader
from toast_cli.data.text.turn_formats import ChatTemplateError
from toast_cli.data.text.turns import Conversation, Turn
from toast_cli.utils.constants import IGNORE_INDEX

R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content.split('</think>')[-1] }}</s>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
TALK = [
    Turn("user", "Hi"),
    Turn("assistant", "<think>\nwhy\n</think>\n\nHello"),
    Turn("user", "Bye"),
    Turn("assistant", "See you"),
]
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GREETED = [Turn("assistant", "Welcome", trained=False), Turn("user", "Hi"), Turn("assistant", "Hello")]


def make_chat_tokenizer(template: Any) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def load_notes(turns: list[Turn], tokenizer: Any) -> str:
    split = ConversationSplit((Conversation(tuple(turns), "entry 1"),), ConversationOptions(name="x", path="x"))
    return " ".join(build_conversation_loader(split, tokenizer, BatchOptions(1), LoaderOptions()).notes)


def test_answers_are_learned_after_the_thought_that_a_generation_prompt_begins() -> None:
    tokenizer = make_chat_tokenizer(R1)
    samples = tokenize_conversation(TALK, tokenizer, "chat")
    for place, (ids, labels) in zip((1, 3), samples, strict=True):
        prompt = encode_prompt(TALK[:place], tokenizer, "chat")
        assert ids[: len(prompt)] == prompt and tokenizer.decode(prompt).endswith("<|assistant|><think>\n")
        assert (
            all(label == IGNORE_INDEX for label in labels[: len(prompt)])
            and labels[len(prompt) :] == ids[len(prompt) :]
        )
    learned = [tokenizer.decode([label for label in labels if label != IGNORE_INDEX]) for _, labels in samples]
    assert learned == ["why\n</think>\n\nHello</s>", "See you</s>"]
    assert find_end_tokens(tokenizer, "chat") == {tokenizer.eos_token_id}
    notes = load_notes(TALK, tokenizer)
    assert "1 of 2 answers do not begin with '<think>'" in notes and "1 conversations became 2 texts" in notes
    assert "<think>" not in load_notes(TALK, make_chat_tokenizer(CHAT))


def test_a_template_that_begins_answers_in_another_way_is_still_refused() -> None:
    other = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    other += "{% if add_generation_prompt %}bot:{% endif %}"
    with pytest.raises(ChatTemplateError) as refused:
        tokenize_conversation(TALK, make_chat_tokenizer(other), "chat")
    assert refused.value.code == "text.inconsistent-chat-template"


@pytest.mark.parametrize(("template", "kept"), [(CHAT, True), (ALTERNATING, False)])
def test_a_conversation_may_begin_with_an_answer(template: str, kept: bool) -> None:
    tokenizer = make_chat_tokenizer(template)
    [(ids, labels)] = tokenize_conversation(GREETED, tokenizer, "chat")
    prompt = encode_prompt(GREETED[:2], tokenizer, "chat")
    assert ids[: len(prompt)] == prompt and labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
    opening = "<|assistant|>Welcome</s>" if kept else ""
    assert tokenizer.decode(ids) == f"{opening}<|user|>Hi</s><|assistant|>Hello</s>"
    assert labels[len(prompt) :] == ids[len(prompt) :]
    assert ("left out" if not kept else "read, but not learned") in load_notes(GREETED, tokenizer)
    with pytest.raises(ChatTemplateError):
        tokenize_conversation([Turn("assistant", "Alone")], tokenizer, "chat")


def test_tools_choose_the_template_that_is_named_for_them() -> None:
    named = {"default": CHAT, "tool_use": "{{ tools | tojson }}" + CHAT}
    tokenizer = make_chat_tokenizer(named)
    tools = Turn("tools", '[{"type": "function", "function": {"name": "weather"}}]')
    [(ids, _)] = tokenize_conversation([tools, *TALK[:2]], tokenizer, "auto")
    assert tokenizer.decode(ids).startswith('[{"type": "function", "function": {"name": "weather"}}]<|user|>')
    [(ids, _)] = tokenize_conversation(TALK[:2], tokenizer, "auto")
    assert tokenizer.decode(ids).startswith("<|user|>")
    assert set_chat_template(tokenizer, "auto") is tokenizer
    dated = make_chat_tokenizer({**named, "tool_use": "{{ strftime_now('%Y') }}" + CHAT})
    exported = set_chat_template(dated, "auto").chat_template
    assert exported["default"] == CHAT and "2024" in exported["tool_use"]
