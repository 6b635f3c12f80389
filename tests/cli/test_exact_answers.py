"""`toast eval --answers`: a language model's own answers to the prompts of a data set, compared with those of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.cli.conftest import toast
from tests.language import instructions, make_model, write_json

SHORT = ["--max-new-tokens", "6"]


@pytest.fixture
def talkative_run(here: Path) -> Path:
    """A run of a model that writes other letters after every prompt, and no special token."""
    folder = make_model(here / "model", chat=True)
    model = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():
        model.get_input_embeddings().weight[:6] = 0  # tied to the output layer: their logits are 0
    model.save_pretrained(folder)
    data = write_json(here / "train.json", instructions(20))
    chosen = ["--backbone", str(folder), "--dataset", f"alpaca:{data}", "--method", "lora", "--lr", "1e-9"]
    said = toast("tune", *chosen, "training.max_steps=1", "task.end_tokens=frozen", "--output-dir", here / "run")
    assert said.code == 0, said.err
    return here / "run"


def test_answers_equal_to_those_of_the_model_are_exact(here: Path, talkative_run: Path) -> None:
    questions = [f"Say yes, {number}." for number in range(4)]
    (here / "prompts.txt").write_text("\n".join(questions))
    said = toast("generate", "--run", talkative_run, *SHORT, "--prompts", "prompts.txt", "--json")
    own = [each["answer"] for each in json.loads(said.out)]
    assert len(set(own)) == 4 and all(text.strip() for text in own)
    # Two of four references are what the model answers by itself.
    references = [own[0], f" {own[1]}\n", own[2] + "!", "never this"]
    entries = [{"instruction": question, "output": text} for question, text in zip(questions, references, strict=True)]
    data = write_json(here / "new.json", entries)
    out = here / "numbers.json"
    asked = ["eval", "--run", talkative_run, "--dataset", f"alpaca:{data}", "--answers", *SHORT]
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
