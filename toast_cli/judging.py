"""The paper's judge protocol for language models (section 4.3): a strong model scores answers to a questions file.

Answers and judgements are kept line by line beside the run as they come, so whatever stops a long session loses
nothing: the next one asks only for what is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from toast_cli.data.text import Turn
from toast_cli.errors import ToastError, UsageError
from toast_cli.storage.atomic import append_line

if TYPE_CHECKING:
    from toast_cli.generation import Writer

TEMPERATURE = 0.7
"""Of the answers (appendix A.3)."""

ATTEMPTS = 3
"""How often a judge is asked whose replies hold no score."""

TASK = (
    "You grade answers given by an assistant. Weigh how helpful, how relevant, how accurate and how detailed the "
    "answer is, and give one whole number from 1 (worst) to 10 (best) for all of it together. "
    'Reply with JSON and nothing else: {"score": NUMBER, "why": "one or two sentences"}'
)


@dataclass(frozen=True)
class Question:
    """One line of a questions file in Vicuna's layout."""

    question_id: int | str
    category: str
    text: str


@dataclass(frozen=True)
class Judge:
    """Whom to ask, and how: any endpoint that speaks OpenAI's chat protocol."""

    model: str
    url: str | None = None
    retries: int = 5

    def score(self, question: str, answer: str) -> dict[str, Any]:
        """The score of one answer and the judge's words; `score` is None where no reply held one.

        Raises:
            ToastError: the endpoint cannot be reached or refuses, after all retries.
        """
        try:
            from openai import OpenAI, OpenAIError
        except ImportError as error:
            raise ToastError(
                "The judge needs the openai client.", what_to_do="pip install 'toast-cli[judge]'."
            ) from error
        said = f"[Question]\n{question}\n\n[Answer]\n{answer}"
        messages: list[Any] = [{"role": "system", "content": TASK}, {"role": "user", "content": said}]
        reply = ""
        try:
            key = os.environ.get("OPENAI_API_KEY") or (self.url and "none")  # most local servers want no key
            client = OpenAI(api_key=key, base_url=self.url, max_retries=self.retries)
            for _ in range(ATTEMPTS):
                choice = client.chat.completions.create(model=self.model, messages=messages, temperature=0.0).choices[0]
                reply = choice.message.content or ""
                if (score := read_score(reply)) is not None:
                    return {"score": score, "reply": reply}
        except OpenAIError as error:
            raise ToastError(
                f"The judge '{self.model}' could not be asked.",
                f"{type(error).__name__}: {error}",
                "Check OPENAI_API_KEY and --judge-url, then run again: what was judged is kept.",
            ) from error
        return {"score": None, "reply": reply}


def read_score(reply: str) -> float | None:
    """The number from 1 to 10 under "score" in a reply, wherever in it the JSON stands; None where there is none."""
    found = re.search(r'"score"\s*:\s*"?(\d+(?:\.\d+)?)', reply)
    score = float(found.group(1)) if found else 0.0
    return score if 1 <= score <= 10 else None


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON-lines file.

    Raises:
        UsageError: there is no such file.
        ToastError: a line is not a question, or an id occurs twice.
    """
    if not path.is_file():
        raise UsageError(f"There is no questions file {path}.", what_to_do="Check --judge.")
    questions: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            questions.append(Question(raw["question_id"], str(raw.get("category", "all")), str(raw["text"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ToastError(
                f"{path}, line {number} is not a question.",
                f"{type(error).__name__}: {error}",
                "Every line is a JSON object with question_id, category and text.",
            ) from error
    if not questions or len({question.question_id for question in questions}) < len(questions):
        raise ToastError(f"{path} holds {'an id twice' if questions else 'no question'}.")
    return questions


def answer_all(
    writer: Writer, questions: Sequence[Question], path: Path, seed: int, max_new_tokens: int
) -> Iterator[tuple[Question, str]]:
    """Every question with its answer, in order; those in the file are kept, new ones are added to it."""
    import torch

    asked = {"temperature": TEMPERATURE, "max_new_tokens": max_new_tokens, "seed": seed}
    kept = {line["question_id"]: line["answer"] for line in _lines(path, questions) if asked.items() <= line.items()}
    for number, question in enumerate(questions):
        if question.question_id in kept:
            yield question, kept[question.question_id]
            continue
        torch.manual_seed(seed + number)  # each has its own, so that an interrupted session goes on as it would have
        answer = writer.answer(
            [Turn("user", question.text)], do_sample=True, temperature=TEMPERATURE, max_new_tokens=max_new_tokens
        )
        append_line(path, {**vars(question), "answer": answer, **asked})
        yield question, answer


def judge_all(
    judge: Judge, answers: Iterable[tuple[Question, str]], path: Path
) -> Iterator[tuple[Question, float | None]]:
    """Every question with its answer's score; what this judge already gave to the very same answer is kept.

    The score is None where the judge gave none in all its attempts.
    """
    answers = list(answers)
    kept = {
        (line["question_id"], line["answer"]): line["score"]
        for line in _lines(path, [question for question, _ in answers])
        if line["judge"] == judge.model and line["score"] is not None
    }
    for question, answer in answers:
        if (question.question_id, answer) not in kept:
            judged = judge.score(question.text, answer)
            append_line(path, {**vars(question), "answer": answer, "judge": judge.model, **judged})
            kept[question.question_id, answer] = judged["score"]
        yield question, kept[question.question_id, answer]


def by_category(scores: Sequence[tuple[Question, float | None]]) -> dict[str, float | None]:
    """Mean score of every category in the order of the questions, and of all of them under "overall" (table 3)."""
    found: dict[str, list[float]] = {name: [] for name in (*(question.category for question, _ in scores), "overall")}
    for question, score in scores:
        if score is not None:
            found[question.category].append(score)
            found["overall"].append(score)
    return {category: fmean(values) if values else None for category, values in found.items()}


def _lines(path: Path, questions: Iterable[Question]) -> list[dict[str, Any]]:
    """What an earlier session kept about these very questions; a line that it did not finish is passed over."""
    if not path.is_file():
        return []
    asked = {question.question_id: question.text for question in questions}
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            kept = json.loads(line)
        except ValueError:
            continue
        if asked.get(kept["question_id"]) == kept["text"]:
            lines.append(kept)
    return lines
