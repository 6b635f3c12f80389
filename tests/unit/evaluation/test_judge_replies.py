"""The judge's replies: the score at the end, requests in parallel, and questions of several turns."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from toast_cli.cli.commands.eval_judge import make_judge
from toast_cli.evaluation.judge_questions import Question, QuestionTurn, read_questions
from toast_cli.evaluation.llm_judge import Judge, JudgeReply, average_by_category, judge_answers, parse_judge_score
from toast_cli.utils.errors import ToastError


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 7, "why": "fine"}', 7),
        ('A {"score": 3} would be unfair. {"why": "fine", "score": 8}', 8),
        ('<think>Perhaps {"score": 2}?</think>{"score": "9"}', 9),
        ('<think>Perhaps {"score": 2}?</think>I cannot say.', None),
        ('<think>Perhaps {"score": 2}, or', None),
        ('{"score": 6} No: {"score": 11}', None),
        ('{"score": 6} No: {"score": -4}', None),
        ('{"score": 8.5}', 8.5),
    ],
)
def test_the_score_is_the_last_one_of_the_verdict(reply: str, score: float | None) -> None:
    assert parse_judge_score(reply) == score


class ScriptedJudge(Judge):
    """A judge whose scores are the first word of an answer. It counts how many requests are under way at once."""

    def __init__(self, wait_for: int = 1) -> None:
        super().__init__("scripted")
        self.__dict__["barrier"] = threading.Barrier(wait_for)
        self.__dict__["asked"] = []

    def request_replies(self, turn: QuestionTurn, answer: str) -> Iterator[JudgeReply]:
        self.asked.append((turn.number, turn.exchanges, answer))
        self.barrier.wait(timeout=10)  # passes only if that many requests are under way
        if answer == "fail":
            raise ToastError("The judge is gone.", code="judge.not-reachable")
        yield JudgeReply(answer, float(answer.split()[0]))


def ask(*answers: str) -> list[tuple[QuestionTurn, str]]:
    return [(QuestionTurn(Question(place, "all", ("Hi?",))), answer) for place, answer in enumerate(answers)]


def test_parallel_requests_keep_the_order_and_every_reply(tmp_path: Path) -> None:
    judge = ScriptedJudge(wait_for=3)
    scored = list(judge_answers(judge, ask(*"345678"), tmp_path / "j.jsonl", parallel=3))
    assert [reply.score for _, reply in scored] == [3, 4, 5, 6, 7, 8]
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert sorted(line["score"] for line in lines) == [3, 4, 5, 6, 7, 8]
    again = list(judge_answers(judge, ask(*"345678"), tmp_path / "j.jsonl", parallel=3))
    assert again == [(turn, JudgeReply(reply.text, reply.score)) for turn, reply in scored] and len(judge.asked) == 6


def test_a_failing_request_ends_the_session_and_keeps_what_has_arrived(tmp_path: Path) -> None:
    judge = ScriptedJudge()
    with pytest.raises(ToastError, match="gone"):
        list(judge_answers(judge, ask("3", "fail", "5", "6"), tmp_path / "j.jsonl"))
    assert [answer for *_, answer in judge.asked] == ["3", "fail"], "nothing is requested after a failure"
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1


def test_a_reply_without_a_temperature_is_one_of_an_earlier_version(tmp_path: Path) -> None:
    judge = ScriptedJudge()
    (turn, answer), *_ = asked = ask("3")
    old = {**turn.to_dict(), "answer": answer, **judge.to_dict(), "score": 9.0, "reply": "9", "why": ""}
    del old["temperature"]
    (tmp_path / "j.jsonl").write_text(json.dumps(old) + "\n")
    assert [reply.score for _, reply in judge_answers(judge, asked, tmp_path / "j.jsonl")] == [9.0]
    other = ScriptedJudge()
    other.__dict__["temperature"] = None
    assert [reply.score for _, reply in judge_answers(other, asked, tmp_path / "j.jsonl")] == [3.0]


def test_turns_are_questions_after_the_earlier_answers(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}\n')
    (question,) = read_questions(file)
    assert question == Question(81, "writing", ("Write.", "Rewrite."))
    asked = [(QuestionTurn(question), "4"), (QuestionTurn(question, 2, ("4",)), "8")]
    judge = ScriptedJudge()
    scored = list(judge_answers(judge, asked, tmp_path / "j.jsonl"))
    assert judge.asked == [(1, [], "4"), (2, [("Write.", "4")], "8")]
    assert average_by_category(scored) == {"writing": 6.0, "turn 1": 4.0, "turn 2": 8.0, "overall": 6.0}
    other = [(QuestionTurn(question), "4"), (QuestionTurn(question, 2, ("5",)), "8")]
    list(judge_answers(judge, other, tmp_path / "j.jsonl"))
    assert len(judge.asked) == 3, "the same answer after another one is judged again"
    for line, why in (
        ('{"question_id": 1, "turns": []}', "its turns are not a list of texts"),
        ('{"question_id": 1, "turns": ["a", " "]}', "one of its turns is empty"),
        ('{"question_id": 1, "turns": ["a", 2]}', "one of its turns is not a string"),
        ('{"question_id": 1}', "it has no text and no turns"),
    ):
        file.write_text(line)
        with pytest.raises(ToastError, match=why):
            read_questions(file)


def test_a_judge_without_a_model_or_a_temperature() -> None:
    assert make_judge(None, None, "0") == Judge("gpt-4")
    assert make_judge(None, "http://127.0.0.1:1", "none") == Judge(None, "http://127.0.0.1:1", temperature=None)
    for wrong in ("warm", "-1", "nan"):
        with pytest.raises(ToastError) as error:
            make_judge(None, None, wrong)
        assert error.value.code == "cli.invalid-value"
