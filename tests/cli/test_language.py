"""Language models on the command line: tuned, measured, found again, and talked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import toast, toast_in_new_process
from tests.language import instructions, make_model, write_json
from toast_cli.cli.app import app

SHORT = ["training.epochs=2", "training.batch_size=4", "training.accumulate=2", "training.lr=0.02"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_json(tmp_path / "data.json", instructions(40))


@pytest.mark.parametrize(
    "method", ["toast", *(pytest.param(other, marks=pytest.mark.slow) for other in ("toast-lite", "full"))]
)
@pytest.mark.usefixtures("quickly")
def test_a_language_model_is_tuned_and_found_again(here: Path, model: Path, data: Path, method: str) -> None:
    run = here / "run"
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", method]
    said = toast("tune", *chosen, "--output-dir", run, *SHORT)
    assert said.code == 0, said.err
    recorded = json.loads((run / "results.json").read_text())
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train"]["loss"] for line in epochs if line["kind"] == "epoch"]
    assert losses[-1] < losses[0]
    assert epochs[0]["kind"] == "start" and epochs[0]["validation"] == recorded["validation_before"]
    assert f"{recorded['validation_before']['perplexity']:.3f}" in said.out
    assert recorded["validation_before"]["loss"] > recorded["validation"]["loss"]
    assert any("still falling" in warning for warning in recorded["warnings"])
    again = toast_in_new_process("eval", "--run", run, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["test"]["loss"] == pytest.approx(recorded["test"]["loss"], rel=1e-5)
    assert toast("export", "--run", run, "--what", "full", "--out", here / "full.safetensors").code == 0
    whole = toast("eval", "--run", here / "full.safetensors", "--json")
    assert json.loads(whole.out)["test"]["loss"] == pytest.approx(recorded["test"]["loss"], rel=1e-5)
    assert f"toast generate --interactive --run {run}" in said.out and "toast predict" not in said.out
    cut = toast("generate", "--run", run, "Say yes, 3.", "--max-new-tokens", "1")
    assert "The answer was cut at the limit of new tokens (--max-new-tokens 1)." in cut.err
    streamed = toast("generate", "--run", run, "Say yes, 3.", "--max-new-tokens", "5")
    assert streamed.code == 0, streamed.err
    at_once = toast("generate", "--run", run, "Say yes, 3.", "--max-new-tokens", "5", "--json")
    assert streamed.out == json.loads(at_once.out)["answer"] + "\n"


def test_sharegpt_is_tuned_with_the_chat_template_packed_and_checkpointed(here: Path) -> None:
    model = make_model(here / "model", chat=True)
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    data = write_json(here / "talk.json", [{"conversations": said * 2}] * 30)
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"sharegpt:{data}", "--method", "toast"]
    packing = ["dataset.packing=true", "dataset.max_tokens=128", "training.checkpoint_gradients=true"]
    done = toast("tune", *chosen, "--output-dir", here / "run", *SHORT, *packing)
    assert done.code == 0, done.err
    assert "Packed into" in done.err


def test_what_is_cut_and_what_is_left_out_is_said(here: Path, model: Path) -> None:
    long = [{"instruction": "a" * 300, "output": "b"}, {"instruction": "a", "output": "b" * 300}]
    data = write_json(here / "data.json", [*instructions(20), *long * 5])
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", "toast"]
    said = toast("tune", *chosen, "--dry-run", "dataset.test_fraction=0", "dataset.val_fraction=0")
    assert said.code == 0, said.err
    limit = toast(
        "tune", *chosen, "--dry-run", "dataset.test_fraction=0", "dataset.val_fraction=0", "dataset.max_tokens=128"
    )
    assert "10 of 30 texts were truncated to 128 tokens (dataset.max_tokens); the longest has " in limit.out
    assert "5 of 30 texts were left out" in limit.out
    assert "10 of 30 texts were truncated to 256 tokens (the positions that the model reads)" in said.out


def test_nothing_left_to_learn_is_an_error_before_a_run_folder_is_made(here: Path, model: Path, data: Path) -> None:
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}"]
    toast("tune", *chosen, "--output-dir", here / "run", "dataset.max_tokens=8").fails(
        1, "8 tokens", error="text.nothing-to-learn"
    )
    assert not (here / "run").exists()


def test_a_linear_head_has_nothing_to_train_on_a_language_model(model: Path, data: Path, here: Path) -> None:
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", "linear"]
    toast("tune", *chosen, "--output-dir", here / "run").fails(2, error="method.trains-nothing")


def test_images_and_texts_are_not_mixed_up(model: Path, data: Path, here: Path) -> None:
    toast("tune", "--backbone", f"llama:{model}", "--dataset", "demo").fails(2, error="backbone.not-for-images")
    toast("tune", "--backbone", "vit_demo", "--dataset", f"alpaca:{data}").fails(2, error="task.not-a-language-model")
    toast("generate", "--backbone", "vit_demo", "hello").fails(2, error="task.not-a-language-model")


def test_a_plain_model_continues_a_prompt_and_a_seed_repeats_a_draw(here: Path, model: Path) -> None:
    drawn = ["--backbone", f"llama:{model}", "--temperature", "1", "--max-new-tokens", "12", "--json"]
    first, second, other = (
        json.loads(toast("generate", *drawn, "--seed", seed, "Hello").out)["answer"] for seed in ("1", "1", "2")
    )
    assert first == second != other


def test_what_a_prompt_leaves_no_room_for_is_said_before(here: Path, model: Path) -> None:
    plain = ["generate", "--backbone", f"llama:{model}", "--raw"]
    toast(*plain, "").fails(2, error="text.empty-prompt")
    toast(*plain, "a" * 300).fails(2, "301 tokens", "256", error="text.prompt-too-long")
    said = toast(*plain, "a" * 250, "--max-new-tokens", "20")
    assert said.code == 0 and "limited to 5 tokens instead of 20" in " ".join(said.err.split())
    assert "limited to" not in toast(*plain, "a" * 200, "--max-new-tokens", "5").err


def test_a_file_of_prompts_is_answered_several_at_a_time_as_one_by_one(here: Path, model: Path) -> None:
    plain = ["generate", "--backbone", f"llama:{model}", "--max-new-tokens", "6"]
    prompts = ["Hello", "A much longer prompt than the first", "Bye", "Hm"]
    (here / "prompts.txt").write_text("\n".join([*prompts[:2], "", *prompts[2:]]) + "\n")
    several = ["--prompts", here / "prompts.txt", "--batch-size", "3"]
    said = toast(*plain, *several, "--json")
    assert said.code == 0, said.err
    alone = [json.loads(toast(*plain, prompt, "--json").out) for prompt in prompts]
    assert json.loads(said.out) == alone and len({each["answer"] for each in alone}) > 1
    assert toast(*plain, *several).out.startswith(f"> {prompts[0]}\n{alone[0]['answer']}\n\n> {prompts[1]}\n")
    (here / "blank.txt").write_text("\n \n")
    toast(*plain, "--prompts", here / "blank.txt").fails(1, "blank.txt", error="text.no-prompts")
    toast(*plain, "--prompts", here / "nothing.txt").fails(1, "nothing.txt", error="data.unreadable-file")
    toast(*plain, "--prompts", here / "blank.txt", "Hello").fails(2, error="cli.choose-one")


def test_a_talk_puts_answers_alone_on_stdout(here: Path, model: Path) -> None:
    talk = ["--backbone", f"llama:{model}", "--max-new-tokens", "3"]
    said = CliRunner().invoke(app, ["generate", *talk, "--interactive"], input="Hello\nBye\n\n")
    assert said.exit_code == 0, said.stderr
    assert said.stderr.count("> ") == 3 and not said.stdout.startswith("> ")
    alone = toast("generate", *talk, "Hello").out
    assert said.stdout.startswith(alone)


def test_an_unreachable_model_says_how_to_get_it(here: Path) -> None:
    said = toast("generate", "--backbone", "llama:nobody/nothing", "Hello")
    said.fails(1, "--weights FOLDER", error="weights.cannot-download")
