"""Every method from the command line: tuned, measured again by a new process, exported, and drawn where it can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TINY_DEMO, toast, toast_in_new_process
from tests.language import instructions, make_model, write_json

BASELINES = ["lora", "peft:ia3", "vpt", "vpt method.deep=false"]
VARIANTS = ["toast method.feedback=early", "toast-lite method.feedback=late"]


def tune(out: Path, words: str, *options: str | Path) -> dict[str, Any]:
    method, *more = words.split()
    done = toast("tune", "--method", method, "--output-dir", out, *options, *more)
    assert done.code == 0, done.err
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("words", [*BASELINES, *VARIANTS])
@pytest.mark.usefixtures("quickly")
def test_a_run_comes_back_with_the_same_numbers(here: Path, words: str) -> None:
    recorded = tune(here / "run", words, *TINY_DEMO, "training.lr=0.01")
    again = toast("eval", "--run", here / "run", "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    for numbers in (found["test"], recorded["test"]):
        numbers |= numbers.pop("attention_share")
        numbers |= dict(zip(("low", "high"), numbers.pop("accuracy_interval"), strict=True))
    assert found["test"] == pytest.approx(recorded["test"], rel=1e-5)
    assert found["trained_parameters"] == recorded["trained_parameters"]
    assert toast("export", "--run", here / "run", "--what", "full", "--out", "full.safetensors").code == 0
    assert toast("visualize-attention", "--test-image", "0", "--run", here / "run").code == 0


@pytest.mark.usefixtures("quickly")
def test_low_rank_factors_are_worked_into_an_exported_backbone(here: Path) -> None:
    tuned = tune(here / "run", "lora", *TINY_DEMO, "training.lr=0.01", "training.epochs=4")
    assert toast("export", "--run", here / "run", "--what", "backbone", "--out", "lora.safetensors").code == 0
    whole = tune(here / "linear", "linear", *TINY_DEMO, "--weights", "lora.safetensors", "training.lr=1e-9")
    stock = tune(here / "stock", "linear", *TINY_DEMO, "training.lr=1e-9")
    assert whole["test"]["loss"] != pytest.approx(stock["test"]["loss"])
    assert tuned["total_parameters"] > whole["total_parameters"]


@pytest.mark.usefixtures("quickly")
def test_a_language_model_takes_low_rank_factors_and_its_weights_come_out_in_one_file(here: Path) -> None:
    model, data = make_model(here / "model"), write_json(here / "data.json", instructions(40))
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}"]
    more = ["training.lr=0.02", "training.epochs=2"]
    recorded = tune(here / "run", "lora", *chosen, *more)
    assert json.loads(toast_in_new_process("eval", "--run", here / "run", "--json").out)["test"] == pytest.approx(
        recorded["test"], rel=1e-5
    )
    assert toast("export", "--run", here / "run", "--what", "backbone", "--out", "all.safetensors").code == 0
    answers = [
        toast("generate", *named, "Say yes, 1.", "--max-new-tokens", "6", "--raw").out
        for named in (["--run", here / "run"], ["--backbone", f"llama:{model}", "--weights", "all.safetensors"])
    ]
    assert answers[0] == answers[1]
    toast("generate", "--backbone", f"llama:{model}", "--weights", "none.safetensors", "x").fails(
        2, "none.safetensors", error="weights.missing-file"
    )
    toast("export", "--run", here / "run", "--out", "adapter.safetensors")
    toast("generate", "--backbone", f"llama:{model}", "--weights", "adapter.safetensors", "x").fails(1, "does not hold")


def test_a_path_frozen_at_zero_is_refused_before_anything_is_written(here: Path) -> None:
    chosen = ["--method", "toast", "method.channel_selection=off", "init_from=null", *TINY_DEMO]
    for words in ([*chosen, "--dry-run"], chosen):
        toast("tune", *words).fails(2, "leaves it at zero", "--init-from")
    (here / "mine.yaml").write_text(
        "backbone: vit_demo\ndataset: demo\nmethod: {name: toast, channel_selection: off}\n"
    )
    toast("recipes", "validate", "mine.yaml").fails(2, "leaves it at zero")
    assert [each.name for each in here.iterdir()] == ["mine.yaml"]


def test_what_a_backbone_cannot_take_is_refused_with_what_it_can(here: Path) -> None:
    model = make_model(here / "model")
    data = write_json(here / "data.json", instructions(20))
    toast("tune", "--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", "vpt").fails(
        2, "full, linear, lora, peft:KIND, toast, toast-lite", error="method.not-a-vit"
    )
    toast("tune", "--method", "peft:dorra").fails(2, "'peft:dorra'", "dora", error="method.unknown-peft-kind")
    toast("tune", "--method", "peft:lora", "method.options.rank=3").fails(
        2, "method.options.rank", "rank", error="method.unknown-peft-option"
    )
    toast("tune", "--method", "peft").fails(2, "method.kind")
    toast("tune", "--method", "lora", 'method.targets=["nothing"]').fails(
        2, "lora", "nothing", error="method.peft-not-injected"
    )
    assert not (here / "runs").exists()
