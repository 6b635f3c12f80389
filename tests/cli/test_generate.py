"""`toast generate`: system messages, sampling, files of prompts with their answers, and interrupted runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from tests.cli.conftest import toast
from tests.language import instructions, make_model, write_json
from toast_cli.cli.app import app

SHORT = ["--max-new-tokens", "6"]


@pytest.fixture
def chat_model(tmp_path: Path) -> list[str]:
    """A model that writes other letters after every prompt, and no special token."""
    folder = make_model(tmp_path / "chat", chat=True)
    model = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():
        model.get_input_embeddings().weight[:6] = 0  # tied to the output layer: their logits are 0
    model.save_pretrained(folder)
    return ["--backbone", f"llama:{folder}"]


def test_a_system_message_comes_before_conversations_that_have_none(here: Path, chat_model: list[str]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    (here / "prompts.jsonl").write_text(
        "\n".join(json.dumps(entry) for entry in ({"prompt": "Hello"}, {"messages": messages}, "Hello"))
    )
    said = toast("generate", *chat_model, *SHORT, "--prompts", "prompts.jsonl", "--system", "Be long.", "--json")
    assert said.code == 0, said.err
    long, brief, other = (line["answer"] for line in json.loads(said.out))
    alone = json.loads(toast("generate", *chat_model, *SHORT, "Hello", "--system", "Be long.", "--json").out)["answer"]
    plain = json.loads(toast("generate", *chat_model, *SHORT, "Hello", "--json").out)["answer"]
    assert long == other == alone and len({long, brief, plain}) == 3
    toast("generate", *chat_model, "Hello", "--system", "x", "--raw").fails(2, error="cli.conflicting-options")
    toast("generate", *chat_model, "Hello", "--system", " ").fails(2, error="text.empty-prompt")
    untrained = ["--backbone", f"llama:{make_model(here / 'plain')}"]
    toast("generate", *untrained, "Hello", "--system", "x").fails(2, error="text.no-chat-template")


def test_answers_are_written_with_their_entries(here: Path, chat_model: list[str]) -> None:
    entries = [{"id": 7, "prompt": "Hello"}, {"instruction": "Say <b>", "output": "no"}]
    (here / "prompts.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    asked = ["generate", *chat_model, *SHORT, "--prompts", "prompts.jsonl"]
    said = toast(*asked, "--out", "out/answers.jsonl")
    assert said.code == 0 and "2 answers" in said.out
    answers = [line["answer"] for line in json.loads(toast(*asked, "--json").out)]
    lines = [json.loads(line) for line in (here / "out/answers.jsonl").read_text().splitlines()]
    assert lines == [{**entry, "answer": answer} for entry, answer in zip(entries, answers, strict=True)]
    toast(*asked, "--out", "out/answers.jsonl").fails(2, error="disk.already-exists")
    toast("generate", *chat_model, "Hello", "--out", "x.jsonl").fails(2, error="cli.missing-option")


def test_top_k_and_the_repetition_penalty_reach_the_sampler(chat_model: list[str]) -> None:
    def answer(*settings: str) -> str:
        said = toast("generate", *chat_model, "--max-new-tokens", "24", "--json", "Hello", *settings)
        assert said.code == 0, said.err
        return json.loads(said.out)["answer"]

    greedy = answer()
    assert answer("--temperature", "1", "--top-k", "1") == greedy != answer("--temperature", "1", "--top-k", "0")
    penalized = answer("--repetition-penalty", "100")
    assert len(set(penalized)) > len(set(greedy))
    toast("generate", *chat_model, "Hello", "--top-k", "5").fails(2, error="cli.missing-option")


def test_words_are_emphasized_alone_in_files_and_in_a_chat(here: Path, text_run: Path) -> None:
    ask = ["generate", "--run", text_run, *SHORT, "--emphasize"]
    alone = toast(*ask, "yes", "Say yes, 3.", "--json")
    assert alone.code == 0, alone.err
    (here / "prompts.txt").write_text("Say yes, 3.\nAnd now, would you please say yes?")
    several = toast(*ask, "yes", "--prompts", "prompts.txt", "--json")
    assert json.loads(several.out)[0]["answer"] == json.loads(alone.out)["answer"]
    plain = toast(*ask[:-1], "--alpha", "0", "Say yes, 3.", "--json")
    silent = toast(*ask, "yes", "--alpha", "0", "Say yes, 3.", "--json")
    assert json.loads(silent.out) == json.loads(plain.out), "without signals, xi has no effect"
    for texts, error in ((["No"], "text.not-in-prompt"), ([""], "text.empty-emphasis")):
        toast(*ask, *texts, "Say yes, 3.").fails(2, error=error)
    (here / "prompts.txt").write_text("Say yes, 3.\nSay no, 4.")
    refused = toast(*ask, "yes", "--prompts", "prompts.txt", "--out", "out.jsonl")
    refused.fails(2, error="text.not-in-prompt")
    assert "Prompt 2" in refused.err and not (here / "out.jsonl").exists()
    lines = ["Say no.", "Say yes, 3.", "/save kept.jsonl", "", ""]
    said = CliRunner().invoke(app, [*map(str, ask), "yes", "--interactive"], input="\n".join(lines))
    assert said.exit_code == 0 and "does not contain 'yes'" in said.stderr
    kept = json.loads((here / "kept.jsonl").read_text())["messages"]
    assert kept[0]["content"] == "Say yes, 3." and kept[1]["content"] == json.loads(alone.out)["answer"]


def test_a_long_conversation_rolls_and_is_saved(here: Path, chat_model: list[str]) -> None:
    lines = ["a" * 116, "b" * 116, '"""c', 'd"""', "/save kept.jsonl"]
    said = CliRunner().invoke(
        app, ["generate", *chat_model, *SHORT, "--interactive"], input="\n".join([*lines, "", ""])
    )
    assert said.exit_code == 0, said.stderr
    assert "does not read the first 2 turns" in said.stderr
    messages = json.loads((here / "kept.jsonl").read_text())["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == [*lines[:2], "c\nd"]
    alone = toast("generate", *chat_model, *SHORT, lines[0], "--json")
    assert messages[1]["content"] == json.loads(alone.out)["answer"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and the same run as it was when its last epoch ended."""
    home = tmp_path_factory.mktemp("runs")
    data = write_json(home / "data.json", instructions(20))
    chosen = ["--backbone", f"llama:{make_model(home / 'model')}", "--dataset", f"alpaca:{data}"]
    settings = ["training.epochs=2", "training.batch_size=4", "training.lr=0.05", "training.ema=0.5"]
    said = toast("tune", *chosen, "--method", "toast-lite", "--output-dir", home / "whole", *settings)
    assert said.code == 0, said.err
    shutil.copytree(home / "whole", home / "cut")
    shutil.rmtree(home / "cut/adapter")
    (home / "cut/results.json").unlink()
    return home / "whole", home / "cut"


def test_an_interrupted_run_answers_with_its_last_checkpoint(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    whole, cut = interrupted
    results = json.loads((whole / "results.json").read_text())
    assert results["selected_epoch"] == 2, "the last checkpoint is that of the finished run"
    ask = ["generate", "Say yes, 3.", "--max-new-tokens", "8", "--json", "--run"]
    said = toast(*ask, cut)
    assert said.code == 0, said.err
    assert "has not finished: using its last checkpoint, after epoch 2 of 2" in " ".join(said.err.split())
    assert json.loads(said.out) == json.loads(toast(*ask, whole).out)
    from toast_cli.evaluation.open_run import RunRequest, open_run

    models = [open_run(RunRequest(run, interrupted=True, device="cpu")).model for run in (whole, cut)]
    own, theirs = (model.state_dict() for model in models)
    assert own.keys() == theirs.keys() and all(own[name].equal(theirs[name]) for name in own)
    toast("eval", "--run", cut).fails(2, error="run.unfinished")

    early = shutil.copytree(cut, tmp_path / "early")
    shutil.rmtree(early / "checkpoints")
    toast(*ask, early).fails(2, error="run.unfinished")
    damaged = shutil.copytree(cut, tmp_path / "damaged")
    for file in damaged.glob("checkpoints/*last*/model.safetensors"):
        file.write_bytes(b"no")
    toast(*ask, damaged).fails(1, error="checkpoint.damaged")
