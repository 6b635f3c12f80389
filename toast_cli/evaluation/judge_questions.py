"""The questions of the judge protocol, read from a JSON-lines file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toast_cli.data.text.json_lines import read_json_lines
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class Question:
    """A line of a questions file in the format of Vicuna."""

    question_id: int | str
    category: str
    text: str


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
                what_to_do="Write each line as a JSON object with question_id (a unique number or string), category "
                "and text.",
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
    for name in ("question_id", "text"):
        if name not in raw:
            raise ValueError(f"it has no {name}")
    number, category, text = raw["question_id"], raw.get("category", "all"), raw["text"]
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise ValueError("its question_id is not an integer or a string")
    if not isinstance(category, str):
        raise ValueError("its category is not a string")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("its text is empty" if isinstance(text, str) else "its text is not a string")
    return Question(number, category, text)
