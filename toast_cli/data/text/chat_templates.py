"""Conversations as the text a model reads, and which of its tokens are to be learned: the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.data.text.conversations import Turn
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

TURN_HEADINGS = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response:\n"}
"""What marks a turn where there is no chat template."""

STANFORD_PREAMBLES = {
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
    False: "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
}
"""The words of Stanford Alpaca's protocol, with and without an input; models tuned by it expect them to the letter."""


class ChatTemplateError(ToastError):
    """A conversation that the tokenizer's chat template cannot write."""


def uses_chat_template(tokenizer: Any, template: str) -> bool:
    """Whether turns are marked by the tokenizer's chat template.

    Raises:
        ToastError: it was asked for and there is none.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise ToastError(
            "This tokenizer has no chat template.",
            what_to_do="Use dataset.template=plain.",
            code="text.no-chat-template",
        )
    return template in ("auto", "chat") and bool(tokenizer.chat_template)


def format_prompt(turns: Sequence[Turn], tokenizer: Any, template: str) -> str:
    """Everything up to where the next answer begins.

    Raises:
        Unrendered: the chat template refuses the turns.
    """
    return _format_turns(turns, tokenizer, template, prompt=True)


def tokenize_conversation(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[tuple[list[int], list[int]]]:
    """Token ids of a conversation and their labels, which are `IGNORED` outside the assistant's answers.

    Every answer is learned after the very prompt that it is asked for with when the model writes, and tokenized by
    itself, as it is then. Mostly that is one sample for a whole conversation. A chat template that writes earlier turns
    otherwise once others follow (some drop what was thought before an answer) gives as many as are needed: an answer
    that the text so far does not lead up to begins a sample of its own, with the turns before it as its prompt.

    Raises:
        Unrendered: the chat template refuses the turns, or writes an answer otherwise than it asks for one.
    """
    chat = uses_chat_template(tokenizer, template)
    found: list[tuple[list[int], list[int]]] = []
    before: str | None = None

    def write(text: str, learned: bool) -> None:
        ids, labels = found[-1]
        new = tokenizer(text, add_special_tokens=False).input_ids
        ids.extend(new)
        labels.extend(new if learned else [IGNORE_INDEX] * len(new))

    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        head = format_prompt(turns[:index], tokenizer, template)
        whole = _format_turns(turns[: index + 1], tokenizer, template)
        if not whole.startswith(head):
            raise ChatTemplateError(
                "This tokenizer's chat template writes an answer otherwise than it asks for one.",
                what_to_do="Use dataset.template=plain.",
                code="text.inconsistent-chat-template",
            )
        if before is None or not head.startswith(before):
            start = [] if chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            found.append((start, [IGNORE_INDEX] * len(start)))
            before = ""
        write(head[len(before) :], learned=False)
        write(whole[len(head) :], learned=True)
        before = whole
    return found


def _format_turns(turns: Sequence[Turn], tokenizer: Any, template: str, prompt: bool = False) -> str:
    if uses_chat_template(tokenizer, template):
        return _format_chat(turns, tokenizer, prompt)
    return (_format_stanford if template == "stanford" else _format_plain)(turns, tokenizer, prompt)


def prepend_bos(ids: list[int], tokenizer: Any) -> list[int]:
    """A prompt's tokens behind the one that begins a text, where the tokenizer has one and it is not there yet."""
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _format_chat(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    from jinja2 import TemplateError

    refused = None
    for attempt in (turns, merge_system_turns(turns)):
        messages = [{"role": turn.role, "content": turn.whole} for turn in attempt]
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            refused = refused or error
    raise ChatTemplateError(
        "This tokenizer's chat template refuses the conversation.",
        f"It says: {refused}",
        "Change the turns, or use dataset.template=plain.",
        code="text.refused-by-chat-template",
    )


def merge_system_turns(turns: Sequence[Turn]) -> list[Turn]:
    """What the system said put before what the user says next, for templates that know no system."""
    found: list[Turn] = []
    said: list[str] = []
    for turn in turns:
        if turn.role == "system":
            said.append(turn.text)
        elif turn.role == "user" and said:
            found.append(Turn("user", "\n\n".join([*said, turn.text]), turn.material))
            said = []
        else:
            found.append(turn)
    return found


def _format_plain(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    ends = {"assistant": _get_end_text(tokenizer)}
    said = "".join(f"{TURN_HEADINGS[turn.role]}{turn.whole}{ends.get(turn.role, chr(10) * 2)}" for turn in turns)
    return said + TURN_HEADINGS["assistant"] if prompt else said


def _format_stanford(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    """Stanford Alpaca's form, in which an answer follows its heading at once."""
    said = STANFORD_PREAMBLES[any(turn.material for turn in turns)]
    for turn in turns:
        if turn.role == "assistant":
            said += f"### Response:{turn.text}{_get_end_text(tokenizer)}"
        else:
            material = f"### Input:\n{turn.material}\n\n" if turn.material else ""
            said += f"{TURN_HEADINGS[turn.role]}{turn.text}\n\n{material}"
    return f"{said}### Response:" if prompt else said


def _get_end_text(tokenizer: Any) -> str:
    return tokenizer.eos_token or "\n\n"
