"""What an export is held against before it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.conftest import toast
from toast_cli.export import verification_worker


def test_an_export_beyond_tolerance_fails_and_leaves_no_file(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(job: Path) -> None:
        verification_worker.open_and_run_export(job)
        out = job.parent / "real.out.safetensors"
        save_file({name: tensor + 0.01 for name, tensor in load_file(out).items()}, out)

    monkeypatch.setattr(verification_worker, "run_in_new_process", spoil)
    for form in ("safetensors", "hf"):
        toast("export", "--run", run, "--format", form, "--out", here / "out" / "x").fails(1, "real.logits", "0.01")
    assert list((here / "out").iterdir()) == []


def spoiling(monkeypatch: pytest.MonkeyPatch, output: str, by: float) -> None:
    """From now on an export's outputs are off by so much of their largest number."""

    def spoil(job: Path) -> None:
        verification_worker.open_and_run_export(job)
        out = job.parent / "real.out.safetensors"
        tensors = load_file(out)
        tensors[output] = tensors[output] + by * tensors[output].abs().max()
        save_file(tensors, out)

    monkeypatch.setattr(verification_worker, "run_in_new_process", spoil)


def test_outputs_that_are_no_numbers_are_a_failure(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiling(monkeypatch, "logits", float("nan"))
    toast("export", "--run", run, "--out", here / "out" / "x").fails(1, "real.logits", "nan")
    assert list((here / "out").iterdir()) == []


def test_a_map_is_held_to_its_own_unit(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of a hundred patches is about a hundredth: a thousandth of that is far below what logits may be off."""
    spoiling(monkeypatch, "attention_last", 1e-3)
    said = toast("export", "--run", run, "--format", "torch-export", "--maps", "--out", here / "out" / "x")
    said.fails(1, "real.attention_last")
    assert list((here / "out").iterdir()) == []


@pytest.mark.parametrize("form", [["safetensors", "--what", "full"], ["torch-export"], ["hf", "--fold"]])
def test_half_precision_is_no_leeway_for_being_wrong(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    words = ["export", "--run", run, "--dtype", "bfloat16", "--format", *form, "--out", here / "out" / "x"]
    spoiling(monkeypatch, "logits", 0.05)  # a tenth of what bfloat16 itself may cost a deep network
    toast(*words).fails(1, "real.logits")
    assert list((here / "out").iterdir()) == []
    spoiling(monkeypatch, "logits", 0.0)
    assert toast(*words).code == 0
    (report,) = (here / "out").rglob("export_report.json")
    (told,) = json.loads(report.read_text()).values()
    assert 0 < told["rounding"]["real.logits"] < 0.1 and told["differences"]["real.logits"] < 1e-5


@pytest.mark.usefixtures("quickly")
def test_what_an_export_could_not_be_compared_on_is_said(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", here / "a.safetensors").code == 0
    tensors = load_file(here / "a.safetensors")
    with safe_open(here / "a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["toast"])
        del config["sha256"]
    config["recipe"]["dataset"] = {"name": "folder", "path": str(here / "gone")}
    save_file(tensors, here / "b.safetensors", {"toast": json.dumps(config)})
    said = toast("export", "--run", here / "b.safetensors", "--format", "safetensors", "--out", here / "c.safetensors")
    assert said.code == 0 and "Not compared on real inputs" in said.out


def test_what_the_other_process_says_is_told_whole(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the other process opens is cut short: it says so in its own words, and they are passed on."""
    hand_over = verification_worker.run_in_new_process

    def spoil(job: Path) -> None:
        path = Path(json.loads(job.read_text())["path"])
        path.write_bytes(path.read_bytes()[:-100])
        hand_over(job)

    monkeypatch.setattr(verification_worker, "run_in_new_process", spoil)
    said = toast("export", "--run", run, "--out", here / "out" / "x.safetensors")
    said.fails(1, "is missing or damaged", error="export.cannot-open")
    assert list((here / "out").iterdir()) == []
