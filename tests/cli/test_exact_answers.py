"""`toast eval --answers`: a language model's own answers to the prompts of a data set, compared with those of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import toast
from tests.language import write_json

SHORT = ["--max-new-tokens", "6"]


def test_answers_equal_to_those_of_the_model_are_exact(here: Path, text_run: Path) -> None:
    questions = [f"Say yes, {number}." for number in range(4)]
    (here / "prompts.txt").write_text("\n".join(questions))
    said = toast("generate", "--run", text_run, *SHORT, "--prompts", "prompts.txt", "--json")
    own = [each["answer"] for each in json.loads(said.out)]
    # Two of four references are what the model answers by itself.
    references = [own[0], f" {own[1]}\n", own[2] + "!", "never this"]
    entries = [{"instruction": question, "output": text} for question, text in zip(questions, references, strict=True)]
    data = write_json(here / "new.json", entries)
    out = here / "numbers.json"
    asked = ["eval", "--run", text_run, "--dataset", f"alpaca:{data}", "--answers", *SHORT]
    said = toast(*asked, "--out", out, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)["exact_answers"]
    assert (found["exact"], found["answers"], found["left_out"]) == (2, 4, 0)
    lines = [json.loads(line) for line in (here / "numbers-answers" / "answers.jsonl").read_text().splitlines()]
    assert [line["exact"] for line in lines] == [False, False, True, True], "those that differ come first"
    assert {line["prompt"][0]["content"]: line["answer"] for line in lines} == dict(zip(questions, own, strict=True))
    shown = toast(*asked, "--out", out)
    assert "exact answers, all" in shown.out and "50.0% of 4 [15.0, 85.0]" in shown.out
    assert "new.json: 4 texts, all of them (split " in shown.err and " train" not in shown.err


def test_answers_are_those_of_conversations(here: Path, text_run: Path, linear_run: Path) -> None:
    (here / "words.txt").write_text("One text.\nAnother text.\n")
    asked = ["eval", "--run", text_run, "--answers"]
    toast(*asked, "--dataset", f"text:{here / 'words.txt'}").fails(2, "--answers", error="data.not-texts")
    toast(*asked, "--sweep").fails(2, error="cli.conflicting-options")
    toast("eval", "--run", linear_run, "--answers").fails(2, "--answers", error="data.not-texts")
