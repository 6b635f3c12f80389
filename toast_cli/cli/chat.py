"""A conversation in the terminal: multi-line messages, a rolling window over long conversations, and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import format_json, number_names

if TYPE_CHECKING:
    from toast_cli.data.text.turns import Turn

QUOTES = '"""'
"""Mark before the first and after the last line of a message of several lines."""
SAVED_NAME = "chat"
"""Name of a saved conversation without a name, before `.jsonl`."""
GREETING = "An empty line or Ctrl-D ends the chat; /help lists the commands."
HELP = f"""{QUOTES} begins and ends a message of several lines.
/save [FILE] writes the conversation as one JSON line, which --prompts and the data set messages:FILE read.
/help prints this. An empty line or Ctrl-D ends the chat."""
ROOM_SHARE = 4
"""An answer gets at least the inverse of this share of the model's positions, if it may be that long."""


class ChatSession:
    """A conversation, which `run` reads from the terminal until it ends.

    Args:
        answer: a function from the turns that the model reads to its answer, which it also prints.
        count_tokens: a function from turns to the number of tokens of their prompt.
        window: the number of positions of the model; None if it has no limit.
        new_tokens: the largest number of tokens of an answer.
        system: the text of a system turn, or None.
    """

    def __init__(
        self,
        answer: Callable[[list[Turn]], str],
        count_tokens: Callable[[Sequence[Turn]], int],
        window: int | None,
        new_tokens: int,
        system: str | None = None,
    ) -> None:
        from toast_cli.data.text.turns import add_system_turn

        self.turns = add_system_turn([], system)
        """All turns, also those that the model no longer reads."""
        self._answer, self._count_tokens = answer, count_tokens
        self._longest = None if window is None else window - min(new_tokens, window // ROOM_SHARE)
        self._left_out = 0

    def run(self) -> None:
        """Answer messages and follow commands until an empty line or the end of the input."""
        from toast_cli.cli.find_run import print_message
        from toast_cli.cli.output.console import print_error

        print_message(GREETING)
        while (message := read_message()).strip():
            try:
                if message.split(maxsplit=1)[0] in ("/save", "/help") or is_unknown_command(message):
                    self._follow(message)
                else:
                    self._add_exchange(message)
            except ToastError as error:  # the conversation so far is kept
                print_error(error)

    def _add_exchange(self, message: str) -> None:
        """Answer a message. If that fails or is interrupted, neither it nor a part of an answer is kept."""
        from toast_cli.cli.find_run import print_message
        from toast_cli.data.text.turns import Turn

        turns = [*self.turns, Turn("user", message)]
        try:
            answer = self._answer(self._drop_oldest(turns))
        except KeyboardInterrupt:
            print_message("")
            print_message("Interrupted. The message was left out of the conversation.")
            return
        self.turns = [*turns, Turn("assistant", answer)]

    def _drop_oldest(self, turns: list[Turn]) -> list[Turn]:
        """Return the turns without the oldest exchanges, so that prompt and answer fit into the model's positions.

        The system turn and the last message remain.
        """
        from toast_cli.cli.find_run import print_message

        kept = turns
        while self._longest is not None and self._count_tokens(kept) > self._longest:
            starts = [place for place, turn in enumerate(kept) if turn.role == "user"]
            if len(starts) == 1:
                break
            kept = [*kept[: starts[0]], *kept[starts[1] :]]
        left_out = len(turns) - len(kept)
        if left_out > self._left_out:
            print_message(
                f"The conversation no longer fits into the model: it does not read the first {left_out} turns any more."
            )
        self._left_out = left_out
        return kept

    def _follow(self, line: str) -> None:
        """Follow a command.

        Raises:
            UsageError: there is no such command, nothing to save, or the file exists.
            ToastError: the file cannot be written.
        """
        from toast_cli.cli.find_run import print_message

        command, *rest = line.split(maxsplit=1)
        if command == "/save":
            print_message(f"Saved: {save_conversation(self.turns, Path(rest[0]) if rest else None)}")
            return
        if command != "/help":
            print_message(f"Unknown command '{command}'.")
        for each in HELP.splitlines():
            print_message(each)


def is_unknown_command(message: str) -> bool:
    """Return whether a message is a single word after a slash, such as a mistyped command, and not a path."""
    return message.startswith("/") and message[1:].isalpha()


def read_message() -> str:
    """Return a message from standard input, without blanks around it; empty at its end.

    Lines between two marks of three quotation marks are one message.
    """
    first = _read_line("> ")
    if first is None:
        return ""
    if not first.startswith(QUOTES):
        return first.strip()
    return "\n".join(_read_quoted(first.removeprefix(QUOTES))).strip("\n")


def _read_quoted(line: str | None) -> Iterator[str]:
    """Yield the lines up to the closing mark or the end of the input; `line` follows the opening mark."""
    while line is not None:
        if line.rstrip().endswith(QUOTES):
            yield line.rstrip().removesuffix(QUOTES)
            return
        yield line
        line = _read_line("... ")


def _read_line(sign: str) -> str | None:
    typer.echo(sign, nl=False, err=True)  # stdout has only the answers
    try:
        return input()
    except EOFError:
        return None


def save_conversation(turns: Sequence[Turn], path: Path | None) -> Path:
    """Write a conversation to a JSON Lines file, in the format of `messages`, and return its path.

    Args:
        turns: the conversation.
        path: the file; None for a free name in the current folder.

    Raises:
        UsageError: the conversation has no answer yet, or the file exists.
        ToastError: the file cannot be written.
    """
    from toast_cli.data.text.turns import to_messages
    from toast_cli.utils.files import write_text

    if not any(turn.role == "assistant" for turn in turns):
        raise UsageError("There is nothing to save yet.", code="text.empty-prompt")
    file = path or next(free for name in number_names(SAVED_NAME) if not (free := Path(f"{name}.jsonl")).exists())
    if file.exists():
        raise UsageError(f"{file} exists already.", what_to_do="Choose another name.", code="disk.already-exists")
    messages, _ = to_messages(turns)
    record: dict[str, Any] = {"messages": messages}
    write_text(file, format_json(record) + "\n")
    return file
