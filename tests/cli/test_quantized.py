"""A language model in 4 bits on the command line: planned, tuned, measured, asked, exported and continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.cli.conftest import toast
from tests.language import instructions, make_model, write_json


@pytest.mark.usefixtures("quickly")
def test_a_model_in_4_bits_is_planned_tuned_exported_and_continued(here: Path) -> None:
    model, data = make_model(here / "model"), write_json(here / "data.json", instructions(24))
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", "lora"]
    short = ["training.epochs=1", "training.batch_size=4", "training.lr=0.02"]
    said = toast("plan", "--backbone", f"llama:{model}", "--tokens", "30", "--json", "backbone.quantize=nf4")
    assert said.code == 0, said.err
    ways = {way["way"]: way for way in json.loads(said.out)["ways"]}
    plain = json.loads(toast("plan", "--backbone", f"llama:{model}", "--tokens", "30", "--json").out)["ways"]
    assert "8 or 4 bits" in ways["full"]["why"] or "nf4" in ways["full"]["why"]
    assert ways["TOAST"]["trained"] == plain[0]["trained"]
    packed = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert plain[0]["weights"] - ways["TOAST"]["weights"] == packed * 4 - packed // 2 - packed // 64 * 4
    run = here / "run"
    said = toast("tune", *chosen, "backbone.quantize=nf4", "--output-dir", run, *short)
    assert said.code == 0 and "14 linear layers are in nf4" in said.err, said.err
    loss = json.loads((run / "results.json").read_text())["test"]["loss"]
    assert json.loads((run / "results.json").read_text())["total_parameters"] > packed
    said = toast("eval", "--run", run, "--json")
    assert json.loads(said.out)["test"]["loss"] == pytest.approx(loss, rel=1e-5), said.err
    assert toast("generate", "--run", run, "Say yes, 3.", "--max-new-tokens", "3").code == 0
    for part in ("adapter", "full"):
        assert toast("export", "--run", run, "--what", part, "--out", here / f"{part}.safetensors").code == 0
        said = toast("eval", "--run", here / f"{part}.safetensors", "--json")
        assert json.loads(said.out)["test"]["loss"] == pytest.approx(loss, rel=1e-5), said.err
    assert toast("export", "--run", run, "--what", "backbone", "--out", here / "merged.safetensors").code == 0
    with safe_open(here / "merged.safetensors", "pt") as merged:
        assert merged.get_slice("model.layers.0.mlp.up_proj.weight").get_shape() == [48, 32]
        assert not [name for name in merged.keys() if "packed" in name]  # noqa: SIM118
    said = toast("export", "--run", run, "--format", "torch-export", "--out", here / "model.pt2")
    assert said.code == 0, said.err
    said = toast("tune", "--init-from", run, "--output-dir", here / "next", *short, "backbone.quantize=int8")
    assert said.code == 2 and "backbone in nf4, and this one is in int8" in said.err
    images = ["--backbone", "vit_demo", "--dataset", "demo", "--output-dir", here / "v"]
    said = toast("tune", *images, "backbone.quantize=nf4")
    assert said.code == 2 and "Only language models can be quantized" in said.err
    assert not (here / "next").exists() and not (here / "v").exists()
