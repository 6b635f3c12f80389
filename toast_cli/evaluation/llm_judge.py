"""The paper's judge protocol for language models (section 4.3): a strong model scores answers to a questions file.

Answers and judgements are kept line by line beside the run as they come, so whatever stops a long session loses
nothing: the next one asks only for what is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from toast_cli.data.text.conversations import Turn
from toast_cli.data.text.json_lines import read_json_lines
from toast_cli.storage.checksums import append_checksummed_line, read_checksummed_lines
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.model.generation import TextGenerator

ANSWER_TEMPERATURE = 0.7
"""Of the answers (appendix A.3)."""

MAX_JUDGE_ATTEMPTS = 3
"""How often a judge is asked whose replies hold no score."""

JUDGE_PROMPT = (
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
class JudgeReply:
    """One reply of a judge: its words as they came, the score in them, and why there is none."""

    text: str
    score: float | None
    why: str = ""


@dataclass(frozen=True)
class Judge:
    """The model that judges, and its address: any endpoint that speaks OpenAI's chat protocol."""

    model: str
    url: str | None = None
    retries: int = 5

    def to_dict(self) -> dict[str, Any]:
        """Return what a judgement depends on besides question and answer: endpoint, model and prompt."""
        return {"judge": self.model, "url": self.url, "task": JUDGE_PROMPT}

    def request_replies(self, question: str, answer: str) -> Iterator[JudgeReply]:
        """Ask the judge until a reply holds a score, at most `MAX_JUDGE_ATTEMPTS` times, and yield every reply.

        Raises:
            ToastError: the endpoint cannot be reached or refuses, after all retries.
        """
        try:
            from openai import OpenAI, OpenAIError
        except ImportError as error:
            raise ToastError(
                "The judge needs the openai client.",
                what_to_do='pip install "openai>=1.60".',
                code="judge.missing-package",
            ) from error
        prompt = f"[Question]\n{question}\n\n[Answer]\n{answer}"
        messages: list[Any] = [{"role": "system", "content": JUDGE_PROMPT}, {"role": "user", "content": prompt}]
        key = os.environ.get("OPENAI_API_KEY") or (self.url and "none")  # most local servers want no key
        for _ in range(MAX_JUDGE_ATTEMPTS):
            try:
                client = OpenAI(api_key=key, base_url=self.url, max_retries=self.retries)
                # As it came: what servers and proxies call a success is not always a completion.
                raw = client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages, temperature=0.0
                )
            except (OpenAIError, ValueError) as error:  # a malformed address is a ValueError or the client's own
                raise ToastError(
                    f"The judge '{self.model}' could not be asked.",
                    f"{type(error).__name__}: {error}",
                    "Check OPENAI_API_KEY and --judge-url, then run again: what was judged is kept.",
                    code="judge.not-reachable",
                ) from error
            reply = parse_judge_reply(raw.http_response.text)
            yield reply
            if reply.score is not None:
                return


def parse_judge_reply(body: str) -> JudgeReply:
    """Parse the body of a successful response, which need not be a completion at all."""
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        return JudgeReply(body, None, "the response is no JSON")
    try:
        words = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        error = response.get("error") if isinstance(response, dict) else None
        return JudgeReply(body, None, f"the response is an error: {error}" if error else "the response holds no reply")
    if not isinstance(words, str):
        return JudgeReply(body, None, "the reply is no text")
    score = parse_judge_score(words)
    return JudgeReply(words, score, "" if score is not None else "the reply holds no score from 1 to 10")


def parse_judge_score(reply: str) -> float | None:
    """Return the number from 1 to 10 under "score" in a reply, wherever its JSON stands; None if there is none."""
    found = re.search(r'"score"\s*:\s*"?(\d+(?:\.\d+)?)', reply)
    score = float(found.group(1)) if found else 0.0
    return score if 1 <= score <= 10 else None


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a JSON-lines file.

    Raises:
        UsageError: there is no such file.
        ToastError: it is no JSON lines, a line is not a question, or an id occurs twice.
    """
    if not path.is_file():
        raise UsageError(f"There is no questions file {path}.", what_to_do="Check --judge.", code="judge.missing-file")
    questions: dict[int | str, Question] = {}
    for number, raw in read_json_lines(path):
        try:
            question = _parse_question(raw)
            if question.question_id in questions:
                raise ValueError(f"its question_id {question.question_id!r} occurs before")
        except ValueError as error:
            raise ToastError(
                f"{path}, line {number} is not a question: {error}.",
                what_to_do="Every line is a JSON object with question_id (a number or a text, once each), category "
                "and text.",
                code="judge.invalid-question",
            ) from error
        questions[question.question_id] = question
    if not questions:
        raise ToastError(f"{path} holds no question.", code="judge.no-questions")
    return list(questions.values())


def _parse_question(raw: Any) -> Question:
    """Return one line as a question; a ValueError says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError("it is no object")
    for name in ("question_id", "text"):
        if name not in raw:
            raise ValueError(f"there is no {name}")
    number, category, text = raw["question_id"], raw.get("category", "all"), raw["text"]
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise ValueError("its question_id is neither a whole number nor a text")
    if not isinstance(category, str):
        raise ValueError("its category is no text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("its text is empty" if isinstance(text, str) else "its text is no text")
    return Question(number, category, text)


def answer_questions(
    writer: Callable[[], TextGenerator],
    questions: Sequence[Question],
    path: Path,
    seed: int,
    max_new_tokens: int,
    weights: str | None = None,
) -> Iterator[tuple[Question, str]]:
    """Yield every question with its answer, in order; those in the file are kept, new ones are added to it.

    `writer` is called once, and only where an answer is missing; `weights` is what it takes in its recipe's place.
    """
    import torch

    settings = {"temperature": ANSWER_TEMPERATURE, "max_new_tokens": max_new_tokens, "seed": seed, "weights": weights}
    kept = {
        line["question_id"]: line["answer"]
        for line in _read_matching_lines(path, questions)
        if settings.items() <= line.items()
    }
    loaded: TextGenerator | None = None
    for number, question in enumerate(questions):
        if question.question_id in kept:
            yield question, kept[question.question_id]
            continue
        loaded = loaded or writer()
        torch.manual_seed(seed + number)  # each has its own, so that an interrupted session goes on as it would have
        answer = loaded.answer(
            [Turn("user", question.text)], do_sample=True, temperature=ANSWER_TEMPERATURE, max_new_tokens=max_new_tokens
        )
        append_checksummed_line(path, {**vars(question), "answer": answer, **settings})
        yield question, answer


def judge_answers(
    judge: Judge, answers: Iterable[tuple[Question, str]], path: Path
) -> Iterator[tuple[Question, JudgeReply]]:
    """Yield every question with the judge's last reply to its answer; the file keeps all replies, scored or not.

    What this judge already gave to the very same answer is not asked again. A reply without a score is the last of all
    attempts.
    """
    answers = list(answers)
    settings = judge.to_dict()
    kept = {
        (line["question_id"], line["answer"]): JudgeReply(line["reply"], line["score"])
        for line in _read_matching_lines(path, [question for question, _ in answers])
        if line["score"] is not None and settings.items() <= line.items()
    }
    for question, answer in answers:
        if (question.question_id, answer) not in kept:
            for reply in judge.request_replies(question.text, answer):
                verdict = {"score": reply.score, "reply": reply.text, "why": reply.why}
                append_checksummed_line(path, {**vars(question), "answer": answer, **settings, **verdict})
            kept[question.question_id, answer] = reply
        yield question, kept[question.question_id, answer]


def average_by_category(scores: Sequence[tuple[Question, JudgeReply]]) -> dict[str, float | None]:
    """Return the mean score of every category, in the order of the questions, and of all under "overall" (table 3)."""
    found: dict[str, list[float]] = {name: [] for name in (*(question.category for question, _ in scores), "overall")}
    for question, reply in scores:
        if reply.score is not None:
            found[question.category].append(reply.score)
            found["overall"].append(reply.score)
    return {category: fmean(values) if values else None for category, values in found.items()}


def _read_matching_lines(path: Path, questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Return what an earlier session kept about these very questions."""
    if not path.is_file():
        return []
    texts = {question.question_id: question.text for question in questions}
    kept = read_checksummed_lines(path, "Remove the file: what it held is asked for again.")
    return [line for line in kept if texts.get(line["question_id"]) == line["text"]]
