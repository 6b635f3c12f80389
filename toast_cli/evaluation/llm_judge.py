"""The paper's judge protocol for language models (section 4.3): a strong model scores answers to a questions file.

Each answer and judgement is written to a file beside the run as soon as it arrives. An interrupted session loses
nothing, and the next one requests only what is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from toast_cli.data.text.turns import Turn, dump_json
from toast_cli.evaluation.judge_questions import Question, QuestionTurn
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
LAST_ANSWER_PROMPT = " The conversation has several turns. Grade its last answer alone, in view of the turns before it."
"""Further words of the prompt about an answer to a later turn of a question."""

JUDGE_TEMPERATURE = 0.0
"""Sampling temperature of the judge, unless another one or none is requested."""

REASONING_END = "</think>"
"""Tag after the reasoning of models that write it into the reply. Scores before it are not the judge's verdict."""


@dataclass(frozen=True)
class JudgeReply:
    """A reply of the judge: its unmodified text, the score in it, and the reason if there is no score."""

    text: str
    score: float | None
    why: str = ""


@dataclass(frozen=True)
class Judge:
    """A judge model at an endpoint with OpenAI's chat API.

    Attributes:
        model: the name of the model; None leaves it out of requests, for a server of a single model.
        url: the address of the API; None is OpenAI's.
        retries: the number of retries of a failing request.
        temperature: the temperature of sampling; None leaves it out, for models that refuse one.
    """

    model: str | None
    url: str | None = None
    retries: int = 5
    temperature: float | None = JUDGE_TEMPERATURE

    def to_dict(self, turn: int = 1) -> dict[str, Any]:
        """Return the settings of a judgement of a turn: model, endpoint, prompt and temperature."""
        return {"judge": self.model, "url": self.url, "task": get_judge_prompt(turn), "temperature": self.temperature}

    def describe(self) -> str:
        """Return the name of the judge in messages."""
        return self.model or f"the model at {self.url}"

    def request_replies(self, turn: QuestionTurn, answer: str) -> Iterator[JudgeReply]:
        """Yield the judge's replies until one holds a score, at most `MAX_JUDGE_ATTEMPTS`.

        Raises:
            ToastError: the endpoint cannot be reached or refuses the request, after all retries.
        """
        try:
            from openai import NOT_GIVEN, OpenAI, OpenAIError
        except ImportError as error:
            raise ToastError(
                "The judge needs the package openai.",
                what_to_do='pip install "openai>=1.60".',
                code="cli.missing-package",
            ) from error
        exchanges = [*turn.exchanges, (turn.text, answer)]
        prompt = "\n\n".join(f"[Question]\n{text}\n\n[Answer]\n{reply}" for text, reply in exchanges)
        messages: list[Any] = [
            {"role": "system", "content": get_judge_prompt(turn.number)},
            {"role": "user", "content": prompt},
        ]
        model: Any = NOT_GIVEN if self.model is None else self.model
        temperature: Any = NOT_GIVEN if self.temperature is None else self.temperature
        key = os.environ.get("OPENAI_API_KEY") or (self.url and "none")  # most local servers need no key
        for _ in range(MAX_JUDGE_ATTEMPTS):
            try:
                client = OpenAI(api_key=key, base_url=self.url, max_retries=self.retries)
                # The raw response, because a successful response of servers and proxies is not always a completion.
                raw = client.chat.completions.with_raw_response.create(
                    model=model, messages=messages, temperature=temperature
                )
            except (OpenAIError, ValueError) as error:  # a malformed address is a ValueError or the client's own
                refused = "temperature" in str(error) and self.temperature is not None
                raise ToastError(
                    f"The request to the judge '{self.describe()}' failed.",
                    f"{type(error).__name__}: {error}",
                    "Use --judge-temperature none, which leaves the temperature out."
                    if refused
                    else "Check OPENAI_API_KEY, --judge-url and --judge-model, then run again. Finished judgements are "
                    "kept.",
                    code="judge.not-reachable",
                ) from error
            reply = parse_judge_reply(raw.http_response.text)
            yield reply
            if reply.score is not None:
                return


def get_judge_prompt(turn: int) -> str:
    """Return the system prompt of the judge for the answer to a turn, from 1."""
    return JUDGE_PROMPT if turn == 1 else JUDGE_PROMPT + LAST_ANSWER_PROMPT


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
    """Return the last value of "score" in a reply, if it is from 1 to 10; else None.

    Text around the JSON is ignored. Reasoning between `<think>` and `</think>` is no part of the reply, and a judge
    that considers several scores ends with its own.
    """
    _, _, verdict = reply.rpartition(REASONING_END)
    verdict, _, _ = verdict.partition(REASONING_END.replace("/", ""))  # reasoning that was cut off
    found = re.findall(r'"score"\s*:\s*"?(-?\d+(?:\.\d+)?)', verdict)
    score = float(found[-1]) if found else 0.0
    return score if 1 <= score <= 10 else None


def answer_questions(
    writer: Callable[[], TextGenerator],
    questions: Sequence[Question],
    path: Path,
    seed: int,
    max_new_tokens: int,
    weights: str | None = None,
) -> Iterator[tuple[QuestionTurn, str]]:
    """Yield every turn of every question with its answer, in order; reuse the answers in the file, and append new ones.

    A later turn is answered after the earlier ones and their answers.

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
    kept = {_get_key(line): line["answer"] for line in _read_lines(path) if settings.items() <= line.items()}
    loaded: TextGenerator | None = None
    for number, question in enumerate(questions):
        answers: list[str] = []
        for turn in (QuestionTurn(question, place + 1, tuple(answers)) for place in range(len(question.turns))):
            if (answer := kept.get(_get_key(turn.to_dict()))) is None:
                loaded = loaded or writer()
                torch.manual_seed(seed + number)  # one per question, so that a resumed session gives the same answers
                earlier = [[Turn("user", text), Turn("assistant", reply)] for text, reply in turn.exchanges]
                answer = loaded.answer(
                    [*chain.from_iterable(earlier), Turn("user", turn.text)],
                    do_sample=True,
                    temperature=ANSWER_TEMPERATURE,
                    max_new_tokens=max_new_tokens,
                )
                append_checksummed_line(path, {**turn.to_dict(), "answer": answer, **settings})
            answers.append(answer)
            yield turn, answer


def judge_answers(
    judge: Judge, answers: Iterable[tuple[QuestionTurn, str]], path: Path, parallel: int = 1
) -> Iterator[tuple[QuestionTurn, JudgeReply]]:
    """Yield every turn with the judge's last reply to its answer; append all replies to the file.

    A score in the file of the same judge for the same answer is reused. The last reply has no score if all attempts
    failed. At most `parallel` requests are under way at once.

    Raises:
        ToastError: a request failed. No further one is begun, and the replies to those under way are kept.
    """
    answers = list(answers)
    kept = {
        (_get_key(line), line["answer"]): JudgeReply(line["reply"], line["score"])
        for line in _read_lines(path)
        # Lines of earlier versions have no temperature.
        if line["score"] is not None
        and judge.to_dict(line.get("turn", 1)).items() <= {"temperature": JUDGE_TEMPERATURE, **line}.items()
    }
    lock, failed = Lock(), Event()

    def request(turn: QuestionTurn, answer: str) -> JudgeReply:
        if failed.is_set():
            raise CancelledError
        try:
            for reply in judge.request_replies(turn, answer):
                verdict = {"score": reply.score, "reply": reply.text, "why": reply.why}
                with lock:
                    append_checksummed_line(
                        path, {**turn.to_dict(), "answer": answer, **judge.to_dict(turn.number), **verdict}
                    )
        except BaseException:
            failed.set()
            raise
        return reply

    with ThreadPoolExecutor(parallel) as threads:
        replies: dict[Any, Future[JudgeReply]] = {}
        for turn, answer in answers:
            key = (_get_key(turn.to_dict()), answer)
            if key not in kept and key not in replies:
                replies[key] = threads.submit(request, turn, answer)
        try:
            for turn, answer in answers:
                key = (_get_key(turn.to_dict()), answer)
                yield turn, kept[key] if key in kept else replies[key].result()
        except BaseException:
            failed.set()
            done, _ = wait(replies.values())
            errors = [error for each in done if (error := each.exception()) and not isinstance(error, CancelledError)]
            if errors:  # a request was cancelled because of another one
                raise errors[0] from None
            raise


def average_by_category(scores: Sequence[tuple[QuestionTurn, JudgeReply]]) -> dict[str, float | None]:
    """Return the mean score of each category, in the order of the questions, and of all as "overall" (table 3).

    If a question has several turns, the mean of each turn comes before that of all, as in MT-Bench.
    """
    turns = sorted({turn.number for turn, _ in scores})
    columns = [*(turn.question.category for turn, _ in scores), *(f"turn {each}" for each in turns if len(turns) > 1)]
    scores_by_column: dict[str, list[float]] = {name: [] for name in (*columns, "overall")}
    for turn, reply in scores:
        if reply.score is not None:
            for name in {turn.question.category, "overall", *([f"turn {turn.number}"] if len(turns) > 1 else [])}:
                scores_by_column[name].append(reply.score)
    return {name: fmean(values) if values else None for name, values in scores_by_column.items()}


def _get_key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a turn of a question in a stored line: its texts and the answers before it."""
    return line["question_id"], line["text"], line.get("turn", 1), dump_json(line.get("earlier", []))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; none if it does not exist."""
    hint = "Remove the file; its contents are then requested again."
    return list(read_checksummed_lines(path, hint)) if path.is_file() else []
