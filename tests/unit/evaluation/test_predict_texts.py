"""Answers to prompts: every format, one row each, in order, continued, with broken prompts."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import toast
from tests.unit.evaluation.predicting import Interruption
from toast_cli.data.text.prompts import read_prompts
from toast_cli.data.text.turns import Turn
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.evaluation.prediction.predict import PredictionRequest, PredictionResult, predict_images
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError

SHORT = {"max_new_tokens": 6, "num_beams": 1, "do_sample": False}
LINES = ["Say yes, 3.", "A much longer prompt, which comes last in length.", "Ü?", "Say yes, 3.", "=1+1"]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("\n\n".join(LINES), encoding="utf-8")
    return Path("p.txt")


def predict(
    model: Path, *sources: str | Path, out: str = "t.jsonl", reporter: Reporter | None = None, **how: Any
) -> PredictionResult:
    chosen = {"batch_size": 2, "generation": SHORT, **how}
    request = PredictionRequest(RunRequest(model, device="cpu"), tuple(map(str, sources)), **chosen)
    return predict_images(request, Path(out), reporter or Reporter())


def read(path: str = "t.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_answers_are_those_of_generate_in_the_order_of_the_prompts(text_run: Path, prompts: Path) -> None:
    predict(text_run, prompts)
    generated = toast("generate", "--run", text_run, "--prompts", prompts, "--max-new-tokens", "6", "--json")
    rows = read()
    assert [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows] == json.loads(generated.out)
    assert [row["path"] for row in rows] == ["p.txt:1", "p.txt:3", "p.txt:5", "p.txt:7", "p.txt:9"]
    assert any(row["answer"] for row in rows) and all(row["error"] is None for row in rows)


def test_interrupted_answers_are_continued_and_changed_prompts_are_answered_anew(text_run: Path, prompts: Path) -> None:
    predict(text_run, prompts, out="whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        predict(text_run, prompts, reporter=Interruption(1))
    assert predict(text_run, prompts, resume=True).read == 3
    assert Path("t.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    with pytest.raises(UsageError) as refused:
        predict(text_run, prompts, resume=True, generation={**SHORT, "max_new_tokens": 7})
    assert refused.value.code == "resume.other-settings"
    prompts.write_text("\n\n".join(["Changed.", *LINES[1:]]), encoding="utf-8")
    assert predict(text_run, prompts, resume=True).read == 1
    assert [row["prompt"] for row in read()] == ["Changed.", *LINES[1:]]


def test_a_prompt_that_cannot_be_answered_costs_a_row(text_run: Path, prompts: Path) -> None:
    entries: list[Any] = ["Hi", {"prompt": "  "}, {"prompt": "x" * 2000}, {"other": 1}, 5]
    Path("p.json").write_text(json.dumps(entries))
    result = predict(text_run, "p.json", out="t.csv")
    with Path("t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, True, True, True, True]
    assert rows[0]["prompt"] == "Hi" and "other" in rows[3]["error"]
    assert len(result.summary.broken) == 4 and result.summary.images == 5


def test_prompts_of_every_format_are_read(tmp_path: Path) -> None:
    system, user, answer = Turn("system", "S"), Turn("user", "U"), Turn("assistant", "A")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    said = [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}]
    formats: list[tuple[Any, tuple[Turn, ...]]] = [
        ("U", (user,)),
        ({"prompt": "U", "answer": "A"}, (user,)),
        ({"prompt": messages}, (system, user)),
        ({"messages": [*messages, {"role": "assistant", "content": "A"}]}, (system, user)),
        ({"instruction": "U", "input": "I"}, (Turn("user", "U", "I"),)),
        ({"instruction": "U", "output": "A"}, (user,)),
        ({"conversations": said}, (user,)),
        ({"conversations": [*said, {"from": "human", "value": "U"}], "system": "S"}, (system, user, answer, user)),
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(entry) for entry, _ in formats))
    found = read_prompts(file)
    assert [prompt.turns for prompt in found] == [turns for _, turns in formats]
    assert json.loads(found[2].text) == messages and found[4].text == "U\n\nI"
    again = tmp_path / "again.json"
    again.write_text(json.dumps([{"messages": json.loads(found[7].text)}]))
    assert read_prompts(again)[0].turns == found[7].turns


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.csv", "p.parquet", "under-a-key.json", "p.ndjson", "p.txt.gz"])
def test_files_of_prompts_are_read_as_data_is(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": ""}, {"prompt": "two\nlines", "completion": "A"}]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    file = tmp_path / name
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(b"Hi\n\ntwo\n" if ".txt" in name else lines))
    elif name.endswith(".csv"):
        file.write_text('prompt,completion\nHi,\n"two\nlines",A\n', encoding="utf-8")
    elif name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_bytes(json.dumps({"data": rows, "version": 1}).encode() if "key" in name else lines)
    expected = ["Hi", "two" if ".txt" in name else "two\nlines"]
    assert [(prompt.text, prompt.error) for prompt in read_prompts(file)] == [(text, None) for text in expected]


def test_calls_of_tools_and_their_results_stay_before_the_answer(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    asked = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    told = [*asked, {"role": "tool", "content": "2", "name": "add"}]
    answered = [*told, {"role": "assistant", "content": "It is 2."}]
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"messages": talk} for talk in (asked, told, answered)]))
    called, resulted, whole = read_prompts(file)
    assert [turn.role for turn in called.turns] == ["user"], "a call is the answer that is asked for"
    assert [turn.role for turn in resulted.turns] == ["user", "assistant", "tool"] and resulted.turns[2].text == "2"
    assert whole.turns == resulted.turns and "add" in whole.turns[1].fields


def test_a_data_set_is_answered_without_its_answers(text_run: Path, prompts: Path) -> None:
    Path("talk.json").write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(8)]))
    predict(text_run, "alpaca:talk.json")
    assert sorted(row["prompt"] for row in read()) == [f"Say {n}." for n in range(8)]


@pytest.mark.parametrize(
    ("source", "how", "code"),
    [
        ("gone.txt", {}, "data.missing-source"),
        ("empty.txt", {}, "text.no-prompts"),
        ("p.txt", {"split": "test"}, "cli.conflicting-options"),
        ("p.txt", {"features": Path("f.safetensors")}, "task.answers-text"),
    ],
)
def test_what_is_no_source_is_refused_before_anything_is_written(
    source: str, how: dict[str, Any], code: str, text_run: Path, prompts: Path
) -> None:
    Path("empty.txt").write_text("\n")
    before = sorted(Path().rglob("*"))
    with pytest.raises(ToastError) as refused:
        predict(text_run, source, **how)
    assert refused.value.code == code
    assert sorted(Path().rglob("*")) == before
