"""Formatting of conversations as text, and training labels for the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.data.text.conversation_split import Turn
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

TURN_HEADINGS = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response:\n"}
"""Headings of the turns in the plain template."""

STANFORD_PREAMBLES = {
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
    False: "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
}
"""Preambles of Stanford Alpaca, with and without an input. Models tuned with them expect exactly this text."""


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


def tokenize_conversation(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[tuple[list[int], list[int]]]:
    """Return the token ids and labels of a conversation, one pair per training sample.

    Labels are `IGNORE_INDEX` outside the answers of the assistant. Every answer follows the same prompt as during
    generation, and prompt and answer are tokenized separately, also as during generation.

    A conversation usually gives one sample. Some chat templates format earlier turns differently once others follow;
    for example, they drop the reasoning in earlier answers. If the prompt of an answer does not continue the text so
    far, the answer starts a new sample, with the turns before it as its prompt.

    Raises:
        ChatTemplateError: If the chat template rejects the turns, or its generation prompt is not the prefix of a
            formatted answer.
    """
    chat = uses_chat_template(tokenizer, template)
    samples: list[tuple[list[int], list[int]]] = []
    before: str | None = None

    def write(text: str, learned: bool) -> None:
        ids, labels = samples[-1]
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
                "The chat template of this tokenizer does not begin answers with its generation prompt.",
                "Prompt and answer cannot be separated.",
                "Use dataset.template=plain.",
                code="text.inconsistent-chat-template",
            )
        if before is None or not head.startswith(before):
            start = [] if chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            samples.append((start, [IGNORE_INDEX] * len(start)))
            before = ""
        write(head[len(before) :], learned=False)
        write(whole[len(head) :], learned=True)
        before = whole
    return samples


def _format_turns(turns: Sequence[Turn], tokenizer: Any, template: str, prompt: bool = False) -> str:
    if uses_chat_template(tokenizer, template):
        return _format_chat(turns, tokenizer, prompt)
    return (_format_stanford if template == "stanford" else _format_plain)(turns, tokenizer, prompt)


def prepend_bos(ids: list[int], tokenizer: Any) -> list[int]:
    """Return `ids` with the BOS token of the tokenizer, if it has one and `ids` does not start with it."""
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _format_chat(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    from jinja2 import TemplateError

    first_error = None
    for attempt in (turns, merge_system_turns(turns)):
        messages = [{"role": turn.role, "content": turn.whole} for turn in attempt]
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            first_error = first_error or error
    raise ChatTemplateError(
        "The chat template of this tokenizer rejects the conversation.",
        f"{type(first_error).__name__}: {first_error}",
        "Change the turns, or use dataset.template=plain.",
        code="text.refused-by-chat-template",
    )


def merge_system_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Prepend system turns to the next user turn, for chat templates without a system role."""
    merged: list[Turn] = []
    system: list[str] = []
    for turn in turns:
        if turn.role == "system":
            system.append(turn.text)
        elif turn.role == "user" and system:
            merged.append(Turn("user", "\n\n".join([*system, turn.text]), turn.material))
            system = []
        else:
            merged.append(turn)
    return merged


def _format_plain(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    ends = {"assistant": _get_end_text(tokenizer)}
    text = "".join(f"{TURN_HEADINGS[turn.role]}{turn.whole}{ends.get(turn.role, chr(10) * 2)}" for turn in turns)
    return text + TURN_HEADINGS["assistant"] if prompt else text


def _format_stanford(turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    """Format turns as Stanford Alpaca does: an answer follows its heading without a line break."""
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
