"""Conversations in the terminal: messages of several lines, the rolling window, and commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from toast_cli.cli.chat import ChatSession
from toast_cli.data.text.prompts import read_prompts
from toast_cli.data.text.turns import Turn
from toast_cli.utils.errors import ToastError

Talk = Callable[..., tuple[list[list[Turn]], ChatSession]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """`talk(LINE, ...)` types lines, and returns what the model was asked to read. A token is a character."""

    def run(*lines: str, window: int | None = None, new_tokens: int = 8, system: str | None = None):
        typed, read = iter(lines), list[list[Turn]]()

        def type_line() -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        def answer(turns: list[Turn]) -> str:
            read.append(turns)
            if turns[-1].text == "break":
                raise KeyboardInterrupt
            if turns[-1].text == "fail":
                raise ToastError("It is too long.", code="text.prompt-too-long")
            return f"re: {turns[-1].text[:4]}"

        def count(turns: Sequence[Turn]) -> int:
            return sum(len(turn.text) for turn in turns)

        monkeypatch.setattr("builtins.input", type_line)
        session = ChatSession(answer, count, window, new_tokens, system)
        session.run()
        return read, session

    return run


def texts(turns: Sequence[Turn]) -> list[str]:
    return [turn.text for turn in turns]


def test_the_chat_says_at_its_start_how_it_ends(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk("")
    said = capsys.readouterr()
    assert "Ctrl-D ends the chat" in said.err and said.out == ""


def test_lines_between_quotation_marks_are_one_message(talk: Talk) -> None:
    read, _ = talk('"""def f():', "", '  return 1"""', '"""one"""', "two", "", "never read")
    assert [turns[-1].text for turns in read] == ["def f():\n\n  return 1", "one", "two"]
    assert texts(read[2]) == ["def f():\n\n  return 1", "re: def ", "one", "re: one", "two"]


def test_the_window_drops_the_oldest_exchanges_and_keeps_the_system_turn(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    read, session = talk("a" * 20, "b" * 20, "c" * 20, "d" * 40, "e" * 20, window=80, system="Be kind.")
    kept = [[text[:1] for text in texts(turns)] for turns in read]
    assert kept[0] == ["B", "a"]
    assert kept[1] == ["B", "a", "r", "b"]
    assert kept[2] == ["B", "b", "r", "c"], "8 + 28 + 28 + 20 characters do not leave room for 8 in 80"
    assert kept[3] == ["B", "d"] and kept[4] == ["B", "e"]
    assert "does not read the first 2 turns" in capsys.readouterr().err
    assert len(session.turns) == 11, "all turns are kept for /save"


def test_a_message_that_fails_or_is_interrupted_leaves_the_conversation_as_it_was(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    read, session = talk("hello", "fail", "break", "bye")
    assert texts(read[-1]) == ["hello", "re: hell", "bye"]
    assert texts(session.turns) == ["hello", "re: hell", "bye", "re: bye"]
    said = capsys.readouterr().err
    assert "It is too long." in said and "Interrupted" in said


def test_a_conversation_is_saved_as_prompts_and_data_read_it(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    talk("/save", "hello", "/save", "/save my chat.jsonl", "again", "/save", "/save chat.jsonl", "/sav", system="Be.")
    said = capsys.readouterr().err
    assert "nothing to save" in said and "chat.jsonl exists already" in said and "Unknown command '/sav'" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chat-2.jsonl", "chat.jsonl", "my chat.jsonl"]
    messages = json.loads((tmp_path / "chat-2.jsonl").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    (prompt,) = read_prompts(tmp_path / "chat-2.jsonl")
    assert texts(prompt.turns) == ["Be.", "hello", "re: hell", "again"]


def test_a_path_is_no_command(talk: Talk) -> None:
    read, _ = talk("/etc/hosts is what?", "/help")
    assert [turns[-1].text for turns in read] == ["/etc/hosts is what?"]
