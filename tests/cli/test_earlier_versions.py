"""Runs of earlier versions still evaluate, resume and export.

Version 0.1 called the weights of `vit_demo_3` by the name `vit_demo`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from tests.cli.conftest import ROOT, TINY_DEMO, toast
from toast_cli import registry
from toast_cli.cli.output.run_summary import build_results_table
from toast_cli.recipe.lookup import resolve_recorded_name
from toast_cli.recipe.parse import load_recipe
from toast_cli.storage.checksums import add_checksum
from toast_cli.storage.pretuned import ARTIFACT_CONFIG_FILE, FEEDBACK_FILE, read_artifact
from toast_cli.utils.files import write_json, write_tensors

FIXTURES = ROOT / "tests" / "fixtures"
EARLIER_RUNS = ("run_0_1", "run_0_2_lora", "run_0_2_toast_lite")
OLD_RUN = FIXTURES / "run_0_1"


@pytest.mark.parametrize("name", EARLIER_RUNS)
def test_a_finished_run_evaluates_to_the_accuracy_that_it_recorded(name: str, here: Path) -> None:
    recorded = json.loads((FIXTURES / name / "results.json").read_text())["test"]["accuracy"]
    said = toast("eval", "--run", FIXTURES / name, "--json", "--out", here / "numbers.json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["test"]["accuracy"] == recorded


@pytest.mark.parametrize("name", EARLIER_RUNS)
def test_the_results_of_a_run_are_shown_without_the_metrics_that_it_did_not_record(name: str) -> None:
    results = json.loads((FIXTURES / name / "results.json").read_text())
    console = Console(width=120)
    with console.capture() as capture:
        console.print(build_results_table(name, results))
    shown = " ".join(capture.get().split())
    assert f"│ balanced accuracy, test │ {results['test']['class_accuracy']:.2%} │" in shown
    assert "AUROC" not in shown and "Warning" not in shown


@pytest.mark.parametrize("name", EARLIER_RUNS)
def test_an_interrupted_run_resumes_to_the_weights_of_the_finished_one(name: str, here: Path) -> None:
    run = here / "run"
    shutil.copytree(FIXTURES / name, run)
    (run / "results.json").unlink()
    shutil.rmtree(run / "adapter")
    (run / "checkpoints" / ".last.old").rename(run / "checkpoints" / "last")
    said = toast("tune", "--resume", run)
    assert said.code == 0, said.err
    paths = (folder / "adapter" / "adapter_model.safetensors" for folder in (run, FIXTURES / name))
    resumed, finished = map(load_file, paths)
    for key, weight in finished.items():
        torch.testing.assert_close(resumed[key], weight, rtol=0, atol=1e-5)
    assert json.loads((run / "results.json").read_text())["backbone"] == "vit_demo_3"


@pytest.mark.parametrize("name", EARLIER_RUNS)
def test_a_finished_run_is_trained_for_longer_and_continued(name: str, here: Path) -> None:
    run = shutil.copytree(FIXTURES / name, here / "run")
    epochs = load_recipe(run / "recipe.yaml").training.epochs
    said = toast("tune", "--resume", run, f"training.epochs={epochs + 1}")
    assert said.code == 0, said.err
    assert json.loads((run / "results.json").read_text())["test_evaluations"] == 2
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == epochs + 1
    said = toast("tune", "--init-from", FIXTURES / name, "--output-dir", here / "next", "training.epochs=1")
    assert said.code == 0 and "Start: " in said.err, said.err


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", EARLIER_RUNS)
def test_a_finished_run_is_exported(name: str, here: Path) -> None:
    said = toast("export", "--run", FIXTURES / name, "--format", "safetensors", "--out", here / "exported")
    assert said.code == 0, said.err


def test_its_recipe_given_by_hand_means_the_same_backbone_and_says_so(here: Path) -> None:
    said = toast("tune", "--recipe", OLD_RUN / "recipe.yaml", "--dry-run")
    assert said.code == 0, said.err
    assert "is now called 'vit_demo_3'" in said.err and "name: vit_demo_3" in said.out
    chosen = toast("tune", "--recipe", OLD_RUN / "recipe.yaml", "--backbone", "vit_demo", "--dry-run")
    assert "name: vit_demo\n" in chosen.out and "now called" not in chosen.err


@pytest.mark.usefixtures("quickly")
def test_its_backbone_is_exported_under_the_present_name(here: Path) -> None:
    assert toast("export", "--run", OLD_RUN, "--what", "backbone", "--out", here / "w.safetensors").code == 0
    with safe_open(here / "w.safetensors", framework="pt") as file:
        assert file.metadata()["toast-backbone"] == "vit_demo_3"


def test_a_feedback_path_that_version_0_1_pre_tuned_still_starts_a_run(here: Path) -> None:
    shipped = registry.load_backbone_card("vit_demo_3").artifact
    lineage, tensors = read_artifact(shipped)
    write_tensors(here / "old" / FEEDBACK_FILE, tensors)
    old = replace(lineage, backbone="vit_demo", toast_version="0.1.0")
    write_json(here / "old" / ARTIFACT_CONFIG_FILE, add_checksum(asdict(old), [here / "old" / FEEDBACK_FILE]))
    assert read_artifact(here / "old")[0].backbone == "vit_demo_3"
    words = ["backbone=vit_demo_3", "--init-from", here / "old", "--output-dir", here / "run", *TINY_DEMO]
    said = toast("tune", *words)
    assert said.code == 0, said.err
    other = toast("tune", "--init-from", here / "old", "--output-dir", here / "no", *TINY_DEMO)
    other.fails(1, "those of 'vit_demo_3'")


@pytest.mark.parametrize(
    ("version", "name"), [("0.1.0", "vit_demo_3"), ("0.2.0", "vit_demo"), ("1.0", "vit_demo"), ("unknown", "vit_demo")]
)
def test_what_the_name_means_depends_on_the_version(version: str, name: str) -> None:
    assert resolve_recorded_name("vit_demo", version) == name
    assert resolve_recorded_name("vit_b16", version) == "vit_b16"
