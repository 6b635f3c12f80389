"""A chat template is a program of somebody else: whatever it raises is one message."""

from __future__ import annotations

import pytest

from tests.language import make_tokenizer
from toast_cli.data.text.chat_templates import encode_prompt, find_end_tokens, set_chat_template, tokenize_conversation
from toast_cli.data.text.turn_formats import ChatTemplateError
from toast_cli.data.text.turns import Turn

TALK = [Turn("user", "Hi"), Turn("assistant", "Hello")]

FAILING = {
    "undefined": "{{ nobody.name.first }}",
    "division": "{{ 1 // 0 }}",
    "type": "{{ messages + 1 }}",
    "key": "{{ messages[0].content.format(**{'a': 1}, b=c) }}{{ '%(x)s' % {} }}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "own": "{{ raise_exception('first line\nsecond line' + 'x' * 1000) }}",
    "filter": "{{ messages | no_such_filter }}",
    "import": "{% include 'other.jinja' %}",
    "sandbox": "{{ messages.__class__.__mro__ }}{{ [].append.__globals__ }}",
    "syntax": "{% for %}",
    "number": 5,
    "several": {"rag": "{{ 1 }}", "tools": "{{ 2 }}"},
}


@pytest.mark.parametrize("name", FAILING)
def test_whatever_a_chat_template_raises_is_one_message(name: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = FAILING[name]
    for work in (
        lambda: tokenize_conversation(TALK, tokenizer, "auto"),
        lambda: encode_prompt(TALK, tokenizer, "auto"),
    ):
        with pytest.raises(ChatTemplateError) as refused:
            work()
        error = refused.value
        assert error.what and error.why and "dataset.template=plain" in error.what_to_do
        assert "\n" not in error.why and len(error.why) < 500
    assert find_end_tokens(tokenizer, "auto") == frozenset()
    if name in ("number", "several"):
        with pytest.raises(ChatTemplateError) as refused:
            set_chat_template(tokenizer, "auto")
        assert refused.value.code == "text.no-default-chat-template"
