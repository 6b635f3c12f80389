"""The paper's judge protocol for language models (section 4.3): a strong model scores answers to a questions file.

Each answer and judgement is written to a file beside the run as soon as it arrives. An interrupted session loses
nothing, and the next one requests only what is missing.
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

from toast_cli.data.text.turns import Turn
from toast_cli.evaluation.judge_questions import Question
from toast_cli.storage.checksums import append_checksummed_line, read_checksummed_lines
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.model.generation import TextGenerator

ANSWER_TEMPERATURE = 0.7
"""Sampling temperature of the answers (appendix A.3)."""

MAX_JUDGE_ATTEMPTS = 3
"""Number of requests for one answer, if the replies hold no score."""

JUDGE_PROMPT = (
    "You grade answers given by an assistant. Weigh how helpful, how relevant, how accurate and how detailed the "
    "answer is, and give one whole number from 1 (worst) to 10 (best) for all of it together. "
    'Reply with JSON and nothing else: {"score": NUMBER, "why": "one or two sentences"}'
)


@dataclass(frozen=True)
class JudgeReply:
    """A reply of the judge: its unmodified text, the score in it, and the reason if there is no score."""

    text: str
    score: float | None
    why: str = ""


@dataclass(frozen=True)
class Judge:
    """A judge model at an endpoint with OpenAI's chat API."""

    model: str
    url: str | None = None
    retries: int = 5

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of a judgement: model, endpoint and prompt."""
        return {"judge": self.model, "url": self.url, "task": JUDGE_PROMPT}

    def request_replies(self, question: str, answer: str) -> Iterator[JudgeReply]:
        """Yield the judge's replies until one holds a score, at most `MAX_JUDGE_ATTEMPTS`.

        Raises:
            ToastError: the endpoint cannot be reached or refuses the request, after all retries.
        """
        try:
            from openai import OpenAI, OpenAIError
        except ImportError as error:
            raise ToastError(
                "The judge needs the package openai.",
                what_to_do='pip install "openai>=1.60".',
                code="cli.missing-package",
            ) from error
        prompt = f"[Question]\n{question}\n\n[Answer]\n{answer}"
        messages: list[Any] = [{"role": "system", "content": JUDGE_PROMPT}, {"role": "user", "content": prompt}]
        key = os.environ.get("OPENAI_API_KEY") or (self.url and "none")  # most local servers need no key
        for _ in range(MAX_JUDGE_ATTEMPTS):
            try:
                client = OpenAI(api_key=key, base_url=self.url, max_retries=self.retries)
                # The raw response, because a successful response of servers and proxies is not always a completion.
                raw = client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages, temperature=0.0
                )
            except (OpenAIError, ValueError) as error:  # a malformed address is a ValueError or the client's own
                raise ToastError(
                    f"The request to the judge '{self.model}' failed.",
                    f"{type(error).__name__}: {error}",
                    "Check OPENAI_API_KEY and --judge-url, then run again. Finished judgements are kept.",
                    code="judge.not-reachable",
                ) from error
            reply = parse_judge_reply(raw.http_response.text)
            yield reply
            if reply.score is not None:
                return


def parse_judge_reply(body: str) -> JudgeReply:
    """Parse the body of a successful response, which may not be a completion."""
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        return JudgeReply(body, None, "the response is not JSON")
    try:
        text = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        error = response.get("error") if isinstance(response, dict) else None
        return JudgeReply(body, None, f"the response is an error: {error}" if error else "the response holds no reply")
    if not isinstance(text, str):
        return JudgeReply(body, None, "the reply is not a string")
    score = parse_judge_score(text)
    return JudgeReply(text, score, "" if score is not None else "the reply holds no score from 1 to 10")


def parse_judge_score(reply: str) -> float | None:
    """Return the value of "score" in a reply, if it is from 1 to 10; else None. Text around the JSON is ignored."""
    match = re.search(r'"score"\s*:\s*"?(\d+(?:\.\d+)?)', reply)
    score = float(match.group(1)) if match else 0.0
    return score if 1 <= score <= 10 else None


def answer_questions(
    writer: Callable[[], TextGenerator],
    questions: Sequence[Question],
    path: Path,
    seed: int,
    max_new_tokens: int,
    weights: str | None = None,
) -> Iterator[tuple[Question, str]]:
    """Yield every question with its answer, in order; reuse the answers in the file, and append new ones.

    Args:
        writer: loads the model; called once, and only if an answer is missing.
        questions: the questions.
        path: the file of answers.
        seed: the seed of sampling.
        max_new_tokens: the largest length of an answer.
        weights: the weights that replace those of the recipe, if any; recorded with the answers.
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
        torch.manual_seed(seed + number)  # one seed per question, so that a resumed session gives the same answers
        answer = loaded.answer(
            [Turn("user", question.text)], do_sample=True, temperature=ANSWER_TEMPERATURE, max_new_tokens=max_new_tokens
        )
        append_checksummed_line(path, {**vars(question), "answer": answer, **settings})
        yield question, answer


def judge_answers(
    judge: Judge, answers: Iterable[tuple[Question, str]], path: Path
) -> Iterator[tuple[Question, JudgeReply]]:
    """Yield every question with the judge's last reply to its answer; append all replies to the file.

    A score in the file of the same judge for the same answer is reused. The last reply has no score if all attempts
    failed.
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
    """Return the mean score of each category, in the order of the questions, and of all as "overall" (table 3)."""
    scores_by_category: dict[str, list[float]] = {
        name: [] for name in (*(question.category for question, _ in scores), "overall")
    }
    for question, reply in scores:
        if reply.score is not None:
            scores_by_category[question.category].append(reply.score)
            scores_by_category["overall"].append(reply.score)
    return {category: fmean(values) if values else None for category, values in scores_by_category.items()}


def _read_matching_lines(path: Path, questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Return the lines of a file that belong to these questions with the same texts."""
    if not path.is_file():
        return []
    texts = {question.question_id: question.text for question in questions}
    kept = read_checksummed_lines(path, "Remove the file; its contents are then requested again.")
    return [line for line in kept if texts.get(line["question_id"]) == line["text"]]
