"""The questions of the judge protocol, read from a JSON-lines file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toast_cli.data.text.json_lines import read_json_lines
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class Question:
    """A question to answer in one or several `turns`, in the formats of Vicuna (`text`) and FastChat (`turns`)."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class QuestionTurn:
    """A turn of a question, from 1, and the answers to the turns before it."""

    question: Question
    number: int = 1
    earlier: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text of the turn."""
        return self.question.turns[self.number - 1]

    @property
    def exchanges(self) -> list[tuple[str, str]]:
        """The turns before this one with their answers."""
        return list(zip(self.question.turns, self.earlier, strict=False))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a stored line. Those of the first turn are as earlier versions wrote them."""
        fields = {"question_id": self.question.question_id, "category": self.question.category, "text": self.text}
        return fields if self.number == 1 else {**fields, "turn": self.number, "earlier": self.exchanges}

    def describe(self) -> str:
        """Return the name of the turn in messages."""
        turn = f", turn {self.number}" if len(self.question.turns) > 1 else ""
        return f"question {self.question.question_id}{turn}"


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a JSON-lines file.

    Raises:
        UsageError: the file does not exist.
        ToastError: the file is not JSON lines, a line is not a question, or an id occurs twice.
    """
    if not path.is_file():
        raise UsageError(
            f"The questions file {path} does not exist.", what_to_do="Check --judge.", code="data.missing-file"
        )
    questions: dict[int | str, Question] = {}
    for number, raw in read_json_lines(path):
        try:
            question = _parse_question(raw)
            if question.question_id in questions:
                raise ValueError(f"its question_id {question.question_id!r} occurs twice")
        except ValueError as error:
            raise ToastError(
                f"Line {number} of {path} is not a question: {error}.",
                what_to_do="Write each line as a JSON object with question_id (a unique number or string), category, "
                "and text or turns (a list of texts).",
                code="judge.invalid-question",
            ) from error
        questions[question.question_id] = question
    if not questions:
        raise ToastError(f"The questions file {path} is empty.", code="judge.no-questions")
    return list(questions.values())


def _parse_question(raw: Any) -> Question:
    """Return a line as a question.

    Raises:
        ValueError: the line is not a question; the message gives the reason.
    """
    if not isinstance(raw, dict):
        raise ValueError("it is not an object")
    if "question_id" not in raw:
        raise ValueError("it has no question_id")
    number, category = raw["question_id"], raw.get("category", "all")
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise ValueError("its question_id is not an integer or a string")
    if not isinstance(category, str):
        raise ValueError("its category is not a string")
    return Question(number, category, tuple(_parse_turns(raw)))


def _parse_turns(raw: dict[str, Any]) -> list[str]:
    """Return the texts of a question: its `turns`, else its `text`.

    Raises:
        ValueError: there is none, or one is not a text.
    """
    if "turns" not in raw and "text" not in raw:
        raise ValueError("it has no text and no turns")
    turns, name = (raw["turns"], "one of its turns") if "turns" in raw else ([raw["text"]], "its text")
    if not isinstance(turns, list) or not turns:
        raise ValueError("its turns are not a list of texts")
    for text in turns:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is empty" if isinstance(text, str) else f"{name} is not a string")
    return turns
