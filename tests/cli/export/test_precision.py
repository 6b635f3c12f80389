"""Exports in every precision: held against the run stored so, and what rounding changes is told and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import toast
from toast_cli.export import verification, verification_worker
from toast_cli.export.verification_inputs import RANDOM_COUNT, REAL_COUNT
from toast_cli.storage.load_model import load_model


@pytest.fixture
def run(lite_run: Path) -> Path:
    """A finished run of TOAST-Lite, of which half is trained and half frozen, on the demo."""
    return lite_run


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are checked in this process, and timed once."""
    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
    monkeypatch.setattr(verification_worker, "TIMING_REPEATS", 1)


TYPES = ("float32", "float16", "bfloat16")
FILES = [
    ["--format", form, "--what", part, *fold, "--dtype", dtype]
    for form, part in (("safetensors", "adapter"), ("safetensors", "full"), ("hf", "full"))
    for fold, dtype in (*(([], dtype) for dtype in TYPES), (["--fold"], "bfloat16"))
]
GRAPHS = [
    pytest.param(["--format", form, "--dtype", dtype], marks=pytest.mark.slow)
    for form, dtype in [*(("torch-export", dtype) for dtype in TYPES), ("onnx", "float32"), ("onnx", "float16")]
]


@pytest.mark.parametrize("words", [*FILES, *GRAPHS], ids=" ".join)
def test_an_export_passes_its_own_check_in_every_precision(here: Path, run: Path, words: list[str]) -> None:
    said = toast("export", "--run", run, *words, "--out", here / "out" / "x", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["compared_on"] == {"random": RANDOM_COUNT, "real": REAL_COUNT}
    assert bool(told["rounding"]) == bool(told["same_top"]) == (told["dtype"] != "float32")
    if told["rounding"]:
        assert 1e-6 < told["rounding"]["real.logits"] < 0.05 and told["same_top"]["real"] > 0.5
        (report,) = (here / "out").rglob("export_report.json")
        (kept,) = json.loads(report.read_text()).values()
        assert {name: kept[name] for name in ("rounding", "same_top")} == {
            name: told[name] for name in ("rounding", "same_top")
        }


def test_what_rounding_changes_is_measured_against_the_run_as_it_is(here: Path, run: Path) -> None:
    said = toast("export", "--run", run, "--what", "full", "--dtype", "bfloat16", "--out", here / "a", "--json")
    ours, theirs = load_model(run).model, load_model(here / "a.safetensors").model
    torch.manual_seed(0)
    image = ours.backbone.example(RANDOM_COUNT)
    with torch.no_grad():
        off = theirs(image) - ours(image)
    assert json.loads(said.out)["rounding"]["random.logits"] == pytest.approx(float(off.abs().max()), rel=1e-4)


def test_rounding_that_moves_an_output_too_far_leaves_no_file(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[Any] = ["export", "--run", run, "--dtype", "bfloat16", "--out", here / "out" / "x"]
    said = toast(*words)
    assert said.code == 0 and "Rounding to bfloat16" in said.out and "top-1 prediction is unchanged" in said.out
    assert f"{REAL_COUNT} real and {RANDOM_COUNT} random inputs" in said.out
    monkeypatch.setattr(verification, "MAX_ROUNDING_ULPS", 1e-4)
    toast(*words, "--force").fails(1, "--dtype float32", error="export.outputs-differ")


def test_other_answers_are_warned_of(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_compute_top1_agreement", lambda *_: 0.75)
    said = toast("export", "--run", run, "--dtype", "float16", "--out", here / "x")
    assert said.code == 0 and "Warning: float16 changes" in said.err and "25.0% of the real inputs" in said.err
    assert "Warning" not in toast("export", "--run", run, "--out", here / "y").err


def test_the_likeliest_class_is_counted_where_the_mask_says() -> None:
    ours = torch.eye(4)[None]
    theirs = ours[:, [0, 1, 3, 2]]
    assert verification._compute_top1_agreement(theirs, ours, -1, None) == 0.5
    assert verification._compute_top1_agreement(theirs, ours, -1, torch.tensor([[1, 1, 1, 0]])) == pytest.approx(2 / 3)
    assert verification._compute_top1_agreement(theirs, ours, 1, None) == 0.5


def test_every_stage_is_told_as_it_begins(here: Path, run: Path) -> None:
    said = toast("export", "--run", run, "--format", "onnx", "--dtype", "float16", "--out", here / "x", "--json")
    assert said.code == 0, said.err
    order = ("Computing the outputs", "Writing x.onnx", "Tracing", "Converting", "Loading it", "Comparing")
    assert sorted(order, key=said.err.index) == list(order)
    json.loads(said.out)


@pytest.mark.parametrize("dtype", TYPES[::2])
def test_an_adapter_comes_out_of_a_whole_file(here: Path, run: Path, dtype: str) -> None:
    assert toast("export", "--run", run, "--what", "full", "--out", here / "whole").code == 0
    said = toast("export", "--run", here / "whole.safetensors", "--dtype", dtype, "--out", here / "adapter")
    assert said.code == 0, said.err
    whole, adapter = (here / f"{name}.safetensors" for name in ("whole", "adapter"))
    assert adapter.stat().st_size < whole.stat().st_size / 2 and not load_model(adapter).config.whole
