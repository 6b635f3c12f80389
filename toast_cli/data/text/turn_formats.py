"""Formats of conversations as text: the chat template of a tokenizer, headings, and the words of Stanford Alpaca."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from toast_cli.data.text.turns import Turn, dump_json, to_messages
from toast_cli.utils.errors import ToastError

TURN_HEADINGS = {
    "tools": "### Tools:\n",
    "system": "### System:\n",
    "user": "### Instruction:\n",
    "assistant": "### Response:\n",
    "tool": "### Tool answer:\n",
}
"""Headings of the turns in the plain template."""

STANFORD_PREAMBLES = {
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
    False: "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
}
"""Preambles of Stanford Alpaca, with and without an input. Models tuned with them expect exactly this text."""


_JINJA_START = "{{ bos_token or '' }}"
_JINJA_END = "{{ eos_token or '\n\n' }}"
JINJA_TEMPLATES = {
    "plain": _JINJA_START
    + f"{{% if tools %}}{{{{ {TURN_HEADINGS['tools']!r} + (tools | tojson) + '\n\n' }}}}{{% endif %}}"
    + "{% for m in messages %}"
    + "".join(
        f"{{% if m['role'] == '{role}' %}}{{{{ {heading!r} }}}}{{% endif %}}" for role, heading in TURN_HEADINGS.items()
    )
    + "{{ m['content'] }}{% if m['tool_calls'] %}{{ ('\n\n' if m['content'] else '') + (m['tool_calls'] | tojson) }}"
    + "{% endif %}{% if m['role'] == 'assistant' %}"
    + _JINJA_END
    + "{% else %}{{ '\n\n' }}{% endif %}{% endfor %}"
    + f"{{% if add_generation_prompt %}}{{{{ {TURN_HEADINGS['assistant']!r} }}}}{{% endif %}}",
    "stanford": _JINJA_START
    + "{% if tools %}{{ raise_exception('this format has no tools') }}{% endif %}"
    + f"{{{{ {STANFORD_PREAMBLES[False]!r} }}}}"
    + "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '### Response:' + m['content'] }}"
    + _JINJA_END
    + f"{{% else %}}{{% if m['role'] == 'system' %}}{{{{ {TURN_HEADINGS['system']!r} }}}}{{% else %}}"
    + f"{{{{ {TURN_HEADINGS['user']!r} }}}}{{% endif %}}"
    + "{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}",
}
"""The formats without a chat template of the tokenizer, as chat templates of transformers."""


_TEMPLATE_DAY = datetime(2024, 7, 26)
"""The day that chat templates take for today, the default of Llama 3: prompts are the same on every day."""
_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{_TEMPLATE_DAY.strftime('%' + code)}')" for code in "aAbBdeFHIjmMpSTyY")
    + " | replace('%-d', '26') | replace('%-m', '7') }}{% endmacro %}"
)
"""A Jinja macro in place of the function with which chat templates write the date."""


class ChatTemplateError(ToastError):
    """A conversation that the chat template of the tokenizer cannot format."""


def uses_chat_template(tokenizer: Any, template: str) -> bool:
    """Return whether conversations are formatted by the chat template of the tokenizer.

    Raises:
        ToastError: If `template` is "chat" and the tokenizer has no chat template.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise ToastError(
            "This tokenizer has no chat template.",
            what_to_do="Use dataset.template=plain.",
            code="text.no-chat-template",
        )
    return template in ("auto", "chat") and bool(tokenizer.chat_template)


def describe_template(tokenizer: Any, template: str) -> str:
    """Return a note on how turns are written, for `dataset.template`.

    Raises:
        ToastError: If `template` is "chat" and the tokenizer has no chat template.
    """
    if uses_chat_template(tokenizer, template):
        return f"Turns are written with the tokenizer's chat template (dataset.template={template})."
    if template == "stanford":
        return "Turns are written in the words of Stanford Alpaca (dataset.template=stanford)."
    user, assistant = (TURN_HEADINGS[role].strip() for role in ("user", "assistant"))
    why = "; the tokenizer has no chat template" if template == "auto" else ""
    return f"Turns are written under the headings '{user}' and '{assistant}' (dataset.template={template}{why})."


def format_prompt(turns: Sequence[Turn], tokenizer: Any, template: str) -> str:
    """Return the text before the next answer of the assistant.

    Raises:
        ChatTemplateError: If the chat template rejects the turns.
    """
    return format_turns(turns, tokenizer, template, prompt=True)


def format_turns(turns: Sequence[Turn], tokenizer: Any, template: str, prompt: bool = False) -> str:
    """Return turns as text; with `prompt`, up to where the next answer begins.

    Raises:
        ChatTemplateError: If the chat template rejects the turns.
    """
    if uses_chat_template(tokenizer, template):
        return format_chat(turns, tokenizer, prompt)
    return (_format_stanford if template == "stanford" else _format_plain)(turns, tokenizer, prompt)


def format_chat(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    """Format turns with the chat template.

    If it rejects or omits system turns, they are added to the user's. If it rejects answers before the first question,
    they are left out.
    """
    from jinja2 import TemplateSyntaxError  # only chat templates need jinja2, and every model imports this module

    if all(turn.role == "tools" for turn in turns):
        raise ChatTemplateError(
            "The conversation has no message before its first answer.",
            "A chat template formats no prompt without one.",
            "Add a question, or use dataset.template=plain.",
            code="text.refused-by-chat-template",
        )
    first_error: Exception | None = None
    formatted: str | None = None
    system = [turn.text.strip() for turn in turns if turn.role == "system"]
    attempts = [turns, merge_system_turns(turns)]
    attempts += [drop_opening_answers(attempt) for attempt in attempts if count_opening_answers(attempt)]
    for attempt in attempts:
        messages, tools = to_messages(attempt)
        try:
            source = fix_date(get_chat_template(tokenizer, tools))
            text = tokenizer.apply_chat_template(
                messages, tools=tools or None, chat_template=source, tokenize=False, add_generation_prompt=prompt
            )
        except ChatTemplateError:
            raise
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                "The chat template of this tokenizer is damaged.",
                f"{_describe_template_file(tokenizer)}, line {error.lineno} of the template: {error.message}",
                "Download the file again, or use dataset.template=plain.",
                code="text.damaged-chat-template",
            ) from error
        except Exception as error:  # a chat template is a program of somebody else
            first_error = first_error or error
            continue
        if (omitted := _find_omitted(messages, tools, text)) is not None:
            raise ChatTemplateError(
                f"The chat template of this tokenizer does not write {omitted}.",
                "The model would learn from a conversation without it.",
                "Use a model whose chat template supports tools, or dataset.template=plain.",
                code="text.omitted-by-chat-template",
            )
        if all(part in text for part in system):
            return text
        formatted = formatted or text
    if formatted is not None:
        return formatted
    raise ChatTemplateError(
        "The chat template of this tokenizer rejects the conversation.",
        f"{type(first_error).__name__}: {' '.join(str(first_error).split())[:300]}",
        "Change the turns, or use dataset.template=plain.",
        code="text.refused-by-chat-template",
    )


def get_chat_template(tokenizer: Any, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the source of the chat template.

    Of several, it is the one named `tool_use` for a conversation with tools, if there is one, and `default` otherwise.

    Raises:
        ChatTemplateError: There are several, and none is the default, or it is not text.
    """
    try:
        source = tokenizer.get_chat_template(tools=list(tools) or None)
    except Exception as error:  # transformers raises several types
        why = " ".join(str(error).split())[:300]
    else:
        if isinstance(source, str):
            return source
        why = f"It is of the type {type(source).__name__}, not a text."
    raise ChatTemplateError(
        "This tokenizer has no chat template to use by default.",
        why,
        f"Name one 'default' in {_describe_template_file(tokenizer)}, or use dataset.template=plain.",
        code="text.no-default-chat-template",
    )


def _find_omitted(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str) -> str | None:
    """Return what a formatted conversation lacks of its tools, calls of tools and reasoning; None if it has all."""
    for tool in tools:
        if tool["function"]["name"] not in text:
            return f"the tool '{tool['function']['name']}'"
    for message in messages:
        calls = message.get("tool_calls", ())
        if message["role"] != "tool" and not calls:
            continue
        for call in calls:
            if call["function"]["name"] not in text:
                return f"the call of the tool '{call['function']['name']}'"
        content = message["content"].strip()
        if content not in text and dump_json(content)[1:-1] not in text:
            return "the answer of a tool" if message["role"] == "tool" else "the text beside the call of a tool"
    last = messages[-1] if messages else {}
    thoughts = (last.get(name, "") for name in ("reasoning_content", "thinking"))
    return None if all(thought.strip() in text for thought in thoughts) else "the reasoning of an answer"


def _describe_template_file(tokenizer: Any) -> str:
    """Return the file that holds the chat template of a tokenizer; both names that it may have if that is unknown."""
    folder, names = Path(tokenizer.name_or_path), ("chat_template.jinja", "tokenizer_config.json")
    found = next((str(folder / name) for name in names if (folder / name).is_file()), "")
    return found or f"{' or '.join(names)} of '{tokenizer.name_or_path}'"


def merge_system_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Prepend system turns to the next user turn, for chat templates without a system role."""
    merged: list[Turn] = []
    system: list[str] = []
    for turn in turns:
        if turn.role == "system":
            system.append(turn.text)
        elif turn.role == "user" and system:
            merged.append(replace(turn, text="\n\n".join([*system, turn.text])))
            system = []
        else:
            merged.append(turn)
    return merged


def drop_opening_answers(turns: Sequence[Turn]) -> list[Turn]:
    """Return turns without the answers before the first question, if nothing but tools is before them."""
    opening = count_opening_answers(turns)
    messages = [turn for turn in turns if turn.role != "tools"]
    return [*(turn for turn in turns if turn.role == "tools"), *messages[opening:]] if opening else list(turns)


def count_opening_answers(turns: Sequence[Turn]) -> int:
    """Return how many answers a conversation begins with: no prompt asks for them."""
    messages = (turn for turn in turns if turn.role != "tools")
    return sum(1 for _ in takewhile(lambda turn: turn.role == "assistant", messages))


def accepts_opening_answers(tokenizer: Any, template: str) -> bool:
    """Return whether a format writes answers before the first question."""
    try:
        return _OPENING[0].text in format_turns(_OPENING, tokenizer, template)
    except ChatTemplateError:
        return False


_OPENING = (Turn("assistant", "opening"), Turn("user", "1"))


def fix_date(chat_template: str) -> str:
    """Return a chat template that writes `_TEMPLATE_DAY` if the given one writes the current date."""
    return _DATE_MACRO + chat_template if "strftime_now" in chat_template else chat_template


def _format_plain(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    ends = {"assistant": _get_end_text(tokenizer)}
    text = "".join(
        f"{TURN_HEADINGS[turn.role]}{_write_calls(turn)}{ends.get(turn.role, chr(10) * 2)}" for turn in turns
    )
    return text + TURN_HEADINGS["assistant"] if prompt else text


def _write_calls(turn: Turn) -> str:
    """Return the text of a turn, and the tools that it calls as JSON text."""
    calls = turn.extra.get("tool_calls")
    return "\n\n".join(part for part in (turn.whole, dump_json(calls) if calls else "") if part)


def _format_stanford(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    """Format turns as Stanford Alpaca does: an answer follows its heading without a line break."""
    if any(turn.role in ("tool", "tools") or turn.fields for turn in turns):
        raise ChatTemplateError(
            "The format of Stanford Alpaca has no tools.",
            what_to_do="Use dataset.template=plain, or chat.",
            code="text.omitted-by-chat-template",
        )
    text = STANFORD_PREAMBLES[any(turn.material for turn in turns)]
    for turn in turns:
        if turn.role == "assistant":
            text += f"### Response:{turn.text}{_get_end_text(tokenizer)}"
        else:
            material = f"### Input:\n{turn.material}\n\n" if turn.material else ""
            text += f"{TURN_HEADINGS[turn.role]}{turn.text}\n\n{material}"
    return f"{text}### Response:" if prompt else text


def _get_end_text(tokenizer: Any) -> str:
    return tokenizer.eos_token or "\n\n"
