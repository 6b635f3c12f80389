"""Formatting of conversations as text, and training labels for the answers."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from itertools import groupby, takewhile
from operator import ne
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from toast_cli.data.text.control_tokens import ControlTokens, find_control_tokens
from toast_cli.data.text.turns import Turn, dump_json, to_messages
from toast_cli.utils.constants import IGNORE_INDEX
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


def format_prompt(turns: Sequence[Turn], tokenizer: Any, template: str) -> str:
    """Return the text before the next answer of the assistant.

    Raises:
        ChatTemplateError: If the chat template rejects the turns.
    """
    return _format_turns(turns, tokenizer, template, prompt=True)


def encode_prompt(turns: Sequence[Turn], tokenizer: Any, template: str | None) -> list[int]:
    """Return the token ids before the next answer: the tokens that precede it in `tokenize_conversation`.

    If `template` is None, the text of the last turn is encoded as it is, as the start of a document.

    Raises:
        ChatTemplateError: If the chat template rejects the turns.
    """
    if template is None:
        return encode_documents([turns[-1].whole], tokenizer)[0]
    ids, _ = _encode_turns(turns, tokenizer, template, prompt=True)[-1]
    return ids


def encode_documents(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of texts, each with the begin token of the tokenizer, if it has one, before it.

    Control tokens that the texts spell are encoded as ordinary text.
    """
    controls = get_control_tokens(tokenizer, None)
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return [
        _add_begin(
            controls.encode(controls.break_spelled(text), tokenizer) if controls.is_spelled_in(text) else ids, tokenizer
        )
        for text, ids in zip(texts, encoded, strict=True)
    ]


def get_control_tokens(tokenizer: Any, template: str | None) -> ControlTokens:
    """Return the tokens that only the format may write: special tokens, and others with which it separates turns.

    Args:
        tokenizer: the tokenizer of a language model.
        template: the format of conversations; None for documents.
    """
    chat = template is not None and uses_chat_template(tokenizer, template)
    return _find_control_tokens(tokenizer, str(tokenizer.chat_template) if chat else "")


@lru_cache(maxsize=4)
def _find_control_tokens(tokenizer: Any, chat_template: str) -> ControlTokens:
    written = ""
    if chat_template:
        with suppress(ChatTemplateError):  # special tokens are known without it
            written = _format_chat(_PROBE[:3], tokenizer, prompt=False)
    return find_control_tokens(tokenizer, written, chat_template)


def _add_begin(ids: list[int], tokenizer: Any) -> list[int]:
    begin = tokenizer.bos_token_id
    return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


def tokenize_conversation(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[tuple[list[int], list[int]]]:
    """Return the token ids and labels of a conversation, one pair per training sample.

    Labels are `IGNORE_INDEX` outside the answers of the assistant that are trained. Every answer follows the tokens of
    `encode_prompt`. A text begins with what the chat template writes, which is what models with one were trained on.
    The other formats begin with the begin token of the tokenizer, if it has one. Prompts and answers are tokenized one
    by one, because a model generates from the tokens of a prompt, not from its text. Control tokens that a turn spells
    are encoded as ordinary text: they neither end a turn nor begin one.

    A conversation usually gives one sample. Some chat templates format earlier turns differently once others follow;
    for example, they drop the reasoning in earlier answers. If the prompt of an answer does not continue the text so
    far, the answer starts a new sample, with the turns before it as its prompt.

    Raises:
        ChatTemplateError: If the chat template rejects the turns, or its generation prompt is not the prefix of a
            formatted answer.
    """
    samples = _encode_turns(turns, tokenizer, template, prompt=False)
    return [sample for sample in samples if _has_target(sample)]


def _has_target(sample: tuple[list[int], list[int]]) -> bool:
    return sample[1].count(IGNORE_INDEX) < len(sample[1])


@dataclass(frozen=True)
class Segment:
    """A piece of a formatted conversation that is encoded by itself: a prompt or an answer.

    Attributes:
        text: its text, with `BREAK` in control tokens that turns spell.
        before: the text of the sample before it.
        context: the text that it was encoded after; that of the begin token, if nothing is before it.
        ids: its tokens.
        turns: the turns up to its end.
    """

    text: str
    before: str
    context: str
    ids: list[int]
    turns: tuple[Turn, ...]


def split_into_segments(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[list[Segment]]:
    """Return the segments of every sample of `tokenize_conversation`, whose tokens are those of the sample in order.

    Raises:
        ChatTemplateError: see `tokenize_conversation`.
    """
    segments: list[list[Segment]] = []
    samples = _encode_turns(turns, tokenizer, template, prompt=False, segments=segments)
    return [found for sample, found in zip(samples, segments, strict=True) if _has_target(sample)]


def _encode_turns(
    turns: Sequence[Turn],
    tokenizer: Any,
    template: str,
    prompt: bool,
    segments: list[list[Segment]] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Return the samples of a conversation; with `prompt`, the last one ends before the next answer.

    The segments of every sample are added to `segments`.
    """
    chat = uses_chat_template(tokenizer, template)
    controls = get_control_tokens(tokenizer, template)
    begin = "" if chat else tokenizer.bos_token or ""
    turns = [
        replace(
            turn,
            text=controls.break_spelled(turn.text),
            material=controls.break_spelled(turn.material),
            fields=controls.break_spelled(turn.fields),
        )
        for turn in turns
    ]
    samples: list[tuple[list[int], list[int]]] = []
    before: str | None = None

    def add_segment(text: str, earlier: str, context: str, ids: list[int], end: int) -> None:
        if segments is not None:
            segments[-1].append(Segment(text, earlier, context, ids, tuple(turns[:end])))

    def write_prompt(head: str, end: int) -> None:
        if before is not None and head.startswith(before):
            ids, labels = samples[-1]
            new = controls.encode(head[len(before) :], tokenizer, before)
            add_segment(head[len(before) :], before, before, new, end)
        else:
            samples.append(([], []))
            if segments is not None:
                segments.append([])
            ids, labels = samples[-1]
            new = controls.encode(head, tokenizer, begin)
            new = _add_begin(new, tokenizer) if begin else new
            add_segment(head, "", begin, new, end)
        ids.extend(new)
        labels.extend([IGNORE_INDEX] * len(new))

    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        try:
            head = format_prompt(turns[:index], tokenizer, template)
            whole = _format_turns(turns[: index + 1], tokenizer, template)
            if not whole.startswith(head):
                raise ChatTemplateError(
                    "The chat template of this tokenizer does not begin answers with its generation prompt.",
                    "Prompt and answer cannot be separated.",
                    "Use dataset.template=plain.",
                    code="text.inconsistent-chat-template",
                )
        except ChatTemplateError:
            if not prompt:
                raise
            before = None  # cannot be trained on, but the template may still format the whole conversation
            continue
        write_prompt(head, index)
        answer = controls.encode(whole[len(head) :], tokenizer, head)
        add_segment(whole[len(head) :], head, head, answer, index + 1)
        samples[-1][0].extend(answer)
        samples[-1][1].extend(answer if turn.trained else [IGNORE_INDEX] * len(answer))
        before = whole
    if prompt:
        write_prompt(format_prompt(turns, tokenizer, template), len(turns))
    return samples


_PROBE = (Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3"), Turn("assistant", "4"))
"""A conversation that shows how a format ends answers."""


def set_chat_template(tokenizer: Any, template: str | None) -> Any:
    """Return a tokenizer whose chat template is the format of the run; the given one if it has that already."""
    if template is None:
        return tokenizer
    if uses_chat_template(tokenizer, template):
        own = _get_chat_template(tokenizer)
        if (chosen := _fix_date(own)) == own:
            return tokenizer
    else:
        chosen = JINJA_TEMPLATES["stanford" if template == "stanford" else "plain"]
    exported = deepcopy(tokenizer)
    exported.chat_template = chosen
    return exported


def find_end_tokens(tokenizer: Any, template: str) -> frozenset[int]:
    """Return the tokens with which the format ends an answer in training, so that generation can stop at them.

    They are empty if it ends answers with ordinary text, or rejects a plain conversation.
    """
    try:
        samples = tokenize_conversation(_PROBE, tokenizer, template)
    except ChatTemplateError:
        return frozenset()
    markers = get_marker_tokens(tokenizer)
    endings = (
        list_end_markers(answer, tokenizer, markers) for _, labels in samples for answer in split_answers(labels)
    )
    return frozenset(ending[0] for ending in endings if ending)


def find_end_text(tokenizer: Any, template: str | None) -> str | None:
    """Return the text with which the format ends an answer; None if that is a token, or nothing but blanks.

    A tokenizer without the tokens of its chat template, such as one to which a template was added, spells them.
    """
    if template is None or find_end_tokens(tokenizer, template):
        return None
    try:
        answers = [
            _format_turns(_PROBE[: number + 1], tokenizer, template).removeprefix(
                format_prompt(_PROBE[:number], tokenizer, template)
            )
            for number in (1, 3)
        ]
    except ChatTemplateError:
        return None
    first, second = (reversed(answer) for answer in answers)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(character for character, _ in common)[::-1].strip() or None


def split_answers(labels: Sequence[int]) -> list[list[int]]:
    """Return the learned tokens of every answer."""
    return [list(run) for learned, run in groupby(labels, partial(ne, IGNORE_INDEX)) if learned]


def list_end_markers(answer: Sequence[int], tokenizer: Any, markers: Container[int]) -> list[int]:
    """Return the tokens of `markers` after the text of an answer, in their order."""
    ending = takewhile(lambda token: token in markers or not tokenizer.decode([token]).strip(), reversed(answer))
    return [token for token in ending if token in markers][::-1]


def get_marker_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the special and added tokens of a tokenizer, which ordinary text does not contain."""
    return frozenset((*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder))


def _format_turns(turns: Sequence[Turn], tokenizer: Any, template: str, prompt: bool = False) -> str:
    if uses_chat_template(tokenizer, template):
        return _format_chat(turns, tokenizer, prompt)
    return (_format_stanford if template == "stanford" else _format_plain)(turns, tokenizer, prompt)


def _format_chat(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    """Format turns with the chat template. If it rejects or omits system turns, they are added to the user's."""
    first_error: Exception | None = None
    formatted: str | None = None
    system = [turn.text.strip() for turn in turns if turn.role == "system"]
    for attempt in (turns, merge_system_turns(turns)):
        messages, tools = to_messages(attempt)
        try:
            source = _fix_date(_get_chat_template(tokenizer))
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


def _get_chat_template(tokenizer: Any) -> str:
    """Return the source of the chat template; of several, the one named `default`.

    Raises:
        ChatTemplateError: There are several, and none is the default, or it is not text.
    """
    try:
        source = tokenizer.get_chat_template()
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


def _fix_date(chat_template: str) -> str:
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
