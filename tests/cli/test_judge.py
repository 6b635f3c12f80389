"""The paper's judge protocol, against a small server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Said, toast

QUESTIONS = [
    {"question_id": 1, "category": "writing", "text": "Say yes, 1."},
    {"question_id": 2, "category": "writing", "text": "Say yes, 2."},
    {"question_id": 3, "category": "maths", "text": "Say yes, 3."},
]


@dataclass
class Server:
    """What the judge was asked, and what it will reply next: a text, a status code, or the bytes of a whole body."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    replies: list[str | int | bytes] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = state.replies.pop(0) if state.replies else '{"score": 5, "why": "middling"}'
            code = reply if isinstance(reply, int) else 200
            message = {"role": "assistant", "content": "" if isinstance(reply, bytes) else reply}
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "j"}
            body = json.dumps(
                {**whole, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            ).encode()
            body = reply if isinstance(reply, bytes) else body
            self.send_response(code)
            self.send_header("Content-Type", "text/html" if body.startswith(b"<") else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_run: Path) -> Path:
    return shutil.copytree(text_run, tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / f"{tmp_path.name}.jsonl"  # of its own for every test, so that none finds another's answers
    path.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    return path


def judge(questions: Path, server: Server, *runs: Path) -> Said:
    named = [word for run in runs for word in ("--run", str(run))]
    return toast(
        "eval", "--judge", questions, "--judge-url", server.url, "--judge-model", "j", *named,
        "--max-new-tokens", "6", "--json",
    )  # fmt: skip


def kept(run: Path, questions: Path, name: str) -> list[dict[str, Any]]:
    lines = (run / "judge" / questions.stem / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_answer_is_scored_and_averaged_by_category(run: Path, questions: Path, server: Server) -> None:
    server.replies = ['{"score": 9, "why": "fine"}', 'Well: {"score": 4, "why": "thin"}', '{"score": 2}']
    said = judge(questions, server, run)
    assert said.code == 0, said.err
    assert json.loads(said.out) == {str(run): {"writing": 6.5, "maths": 2.0, "overall": 5.0}}
    answers = kept(run, questions, "answers.jsonl")
    assert [line["temperature"] for line in answers] == [0.7] * 3
    for answer, asked, question in zip(answers, server.asked, QUESTIONS, strict=True):
        shown = asked["messages"][-1]["content"]
        assert question["text"] in shown and answer["answer"] in shown
    table = toast("eval", "--judge", questions, "--judge-url", server.url, "--judge-model", "j", "--run", run,
                  "--max-new-tokens", "6")  # fmt: skip
    assert "writing" in table.out and "6.50" in table.out


def test_a_judge_that_fails_for_a_moment_is_asked_again(run: Path, questions: Path, server: Server) -> None:
    server.replies = [500, 429, '{"score": 7}']
    said = judge(questions, server, run)
    assert said.code == 0, said.err
    assert len(server.asked) == 5


def test_a_reply_without_a_score_is_asked_again_and_then_said(run: Path, questions: Path, server: Server) -> None:
    server.replies = ["I cannot say.", '{"score": 11}', '{"score": 8}', "no", "no", "no"]
    said = judge(questions, server, run)
    assert said.code == 0, said.err
    assert json.loads(said.out)[str(run)] == {"writing": 8.0, "maths": 5.0, "overall": 6.5}
    assert "returned no score for 1 of 3 answers" in " ".join(said.err.split())
    lines = kept(run, questions, "judgements.jsonl")
    assert [(line["question_id"], line["reply"], line["score"]) for line in lines[:3]] == [
        (1, "I cannot say.", None),
        (1, '{"score": 11}', None),
        (1, '{"score": 8}', 8.0),
    ]
    assert [line["reply"] for line in lines if line["question_id"] == 2] == ["no"] * 3, "every reply is kept"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"choices": []}', "the response holds no reply"),
        (b"null", "the response holds no reply"),
        (b'{"choices": [{"message": {"content": null}}]}', "the reply is not a string"),
        (b'{"error": {"message": "overloaded"}}', "the response is an error: {'message': 'overloaded'}"),
        (b"<html>Bad gateway</html>", "the response is not JSON"),
        (b'{"choices": [', "the response is not JSON"),
    ],
)
def test_a_response_that_is_no_completion_is_asked_again_and_recorded(
    run: Path, questions: Path, server: Server, body: bytes, why: str
) -> None:
    server.replies = [body, '{"score": 8}', body, body, body]
    said = judge(questions, server, run)
    assert said.code == 0, said.err
    assert json.loads(said.out)[str(run)] == {"writing": 8.0, "maths": 5.0, "overall": 6.5}
    assert f"1 of 3 answers, which are excluded: question 2 ({why})" in " ".join(said.err.split())
    lines = kept(run, questions, "judgements.jsonl")
    assert [line["why"] for line in lines] == [why, "", why, why, why, ""]
    assert lines[0]["reply"] == body.decode() or why == "the reply is not a string"


def test_a_damaged_judgement_is_said_and_asked_again(run: Path, questions: Path, server: Server) -> None:
    server.replies = ['{"score": 9}', '{"score": 4}', '{"score": 2}']
    judge(questions, server, run)
    file = run / "judge" / questions.stem / "judgements.jsonl"
    before, asked = file.read_text(), len(server.asked)
    file.write_text(before.replace('"score": 2.0', '"score": 8.0'))
    assert file.read_text() != before
    server.replies = ['{"score": 2}']
    said = judge(questions, server, run)
    assert said.code == 0, said.err
    assert len(server.asked) == asked + 1
    assert "dropped 1 damaged or truncated line" in " ".join(said.err.split())
    assert json.loads(said.out)[str(run)]["overall"] == 5.0


def test_what_one_judge_said_is_not_taken_for_anothers(run: Path, questions: Path, server: Server) -> None:
    judge(questions, server, run)
    judge(questions, server, run)
    assert len(server.asked) == 3
    named = ["--run", str(run), "--max-new-tokens", "6", "--json"]
    other = server.url.replace("127.0.0.1", "localhost")
    toast("eval", "--judge", questions, "--judge-url", other, "--judge-model", "j", *named)
    assert len(server.asked) == 6, "another endpoint may serve another model by the same name"
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("toast_cli.evaluation.llm_judge.JUDGE_PROMPT", "Grade it otherwise.")
        judge(questions, server, run)
    assert len(server.asked) == 9, "what was asked for has changed"


def test_no_model_is_loaded_where_every_answer_is_kept(
    run: Path, questions: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judge(questions, server, run)
    monkeypatch.setattr("toast_cli.cli.commands.eval_judge.load_writer", lambda *_: pytest.fail("a model was loaded"))
    assert judge(questions, server, run).out == first.out


def test_an_interrupted_session_goes_on_where_it_stopped(run: Path, questions: Path, server: Server) -> None:
    server.replies = ['{"score": 9}', 401]
    judge(questions, server, run).fails(1, "--judge-url", error="judge.not-reachable")
    answers = kept(run, questions, "answers.jsonl")
    (run / "judge" / questions.stem / "answers.jsonl").open("a").write('{"question_id": 1, "cut sho')
    said = judge(questions, server, run)
    assert said.code == 0, said.err
    assert json.loads(said.out)[str(run)] == {"writing": 7.0, "maths": 5.0, "overall": pytest.approx(19 / 3)}
    assert len(server.asked) == 4, "the first answer was judged once, the second tried twice"
    for asked, line in zip(server.asked, [answers[0], answers[1], answers[1], answers[2]], strict=True):
        assert line["answer"] in asked["messages"][-1]["content"]
    judge(questions, server, run)
    assert len(server.asked) == 4


def test_an_answer_does_not_depend_on_where_a_session_was_cut(run: Path, questions: Path, server: Server) -> None:
    judge(questions, server, run)
    whole = kept(run, questions, "answers.jsonl")
    path = run / "judge" / questions.stem / "answers.jsonl"
    path.write_text(json.dumps(whole[0]) + "\n" + json.dumps(whole[1])[:-9])
    judge(questions, server, run)
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole


@pytest.mark.usefixtures("quickly")
def test_several_runs_are_rows_of_one_table(run: Path, questions: Path, server: Server, tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    assert toast("export", "--run", run, "--what", "full", "--out", whole).code == 0
    said = judge(questions, server, run, whole)
    assert said.code == 0, said.err
    assert set(json.loads(said.out)) == {str(run), str(whole)}
    assert (tmp_path / "whole.safetensors.judge" / questions.stem / "judgements.jsonl").is_file()


def test_wrong_questions_are_said(run: Path, server: Server, tmp_path: Path) -> None:
    judge(tmp_path / "none.jsonl", server, run).fails(2, "none.jsonl", error="data.missing-file")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question_id": 1, "text": "Fine."}\n{"question_id": 2}\n')
    judge(bad, server, run).fails(1, "Line 2", error="judge.invalid-question")
    bad.write_text('{"question_id": 1, "text": "a"}\n{"question_id": 1, "text": "b"}\n')
    judge(bad, server, run).fails(1, "Line 2", "question_id 1", error="judge.invalid-question")
    for line, why in [
        (b'{"question_id": [1], "text": "a"}', "its question_id is not an integer"),
        (b'{"question_id": 2, "text": 5}', "its text is not a string"),
        (b'{"question_id": 2, "text": " "}', "its text is empty"),
        (b'{"question_id": 2, "category": [], "text": "a"}', "its category is not a string"),
        (b"[1, 2]", "it is not an object"),
        (b'{"question_id": 2, "text": "caf\xe9"}', "Line 2 is not UTF-8 text"),
        (b'{"question_id": 2', "Line 2 is not valid JSON"),
    ]:
        bad.write_bytes(b'{"question_id": 1, "text": "Fine."}\n' + line)
        judge(bad, server, run).fails(1, why)
    toast("eval", "--run", run, "--run", run).fails(2, "toast compare", error="cli.too-many-runs")
    assert not server.asked


def test_a_judge_may_have_no_model_and_no_temperature(run: Path, questions: Path, server: Server) -> None:
    asked = ["eval", "--judge", questions, "--judge-url", server.url, "--run", run, "--max-new-tokens", "6"]
    assert toast(*asked).code == 0
    assert "model" not in server.asked[0] and server.asked[0]["temperature"] == 0
    assert toast(*asked, "--judge-temperature", "none").code == 0
    assert len(server.asked) == 6 and "temperature" not in server.asked[-1], "another setting is another judgement"
    toast(*asked, "--judge-temperature", "hot").fails(2, error="cli.invalid-value")


def test_questions_of_several_turns_are_answered_and_judged_turn_by_turn(
    run: Path, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "mt_bench.jsonl"
    file.write_text('{"question_id": 81, "category": "writing", "turns": ["Say yes, 1.", "Again."], "reference": []}')
    server.replies = ['<think>{"score": 1}</think>{"score": 4}', '{"score": 8}']
    said = toast("eval", "--judge", file, "--judge-url", server.url, "--judge-model", "j", "--run", run,
                 "--max-new-tokens", "6", "--parallel", "2", "--json")  # fmt: skip
    assert said.code == 0, said.err
    scores = json.loads(said.out)[str(run)]
    assert scores["overall"] == 6.0 and {scores["turn 1"], scores["turn 2"]} == {4.0, 8.0}
    first, second = kept(run, file, "answers.jsonl")
    assert second["earlier"] == [["Say yes, 1.", first["answer"]]] and second["turn"] == 2
    later = next(asked for asked in server.asked if "Grade its last answer" in asked["messages"][0]["content"])
    shown = later["messages"][1]["content"]
    assert shown.index("Say yes, 1.") < shown.index("Again.") and shown.endswith(second["answer"])
