"""Pre-tuning lowers what it should and leaves an artifact; tuning starts from it, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli import conftest
from tests.cli.conftest import MakePictures, toast
from tests.language import make_model
from toast_cli import registry
from toast_cli.recipe.parse import load_recipe
from toast_cli.storage.checkpoint import load_checkpoint
from toast_cli.storage.load_model import load_model
from toast_cli.training.session import prepare_session

TINY_DEMO = ["backbone=vit_demo_3", *conftest.TINY_DEMO]
"""Three levels are enough here."""
TINY = [
    "backbone=vit_demo_3",
    "dataset.train_images=60",
    "dataset.val_images=20",
    "training.batch_size=20",
    "training.epochs=4",
]
FAST = [*TINY, "training.lr=0.01", "training.warmup_epochs=0", "method.start=random"]


@pytest.fixture(scope="module")
def pretuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretuned") / "run"
    said = toast("pretune", "--output-dir", run, *FAST)
    assert said.code == 0, said.err
    assert "reconstruction loss, before" in said.out
    return run


def test_the_reconstruction_loss_falls_at_every_level_and_P_stays_the_identity(pretuned: Path) -> None:
    results = json.loads((pretuned / "results.json").read_text())
    assert list(results["before"]) == list(results["after"]) == ["1", "2", "3"]
    assert all(
        after < before for after, before in zip(results["after"].values(), results["before"].values(), strict=True)
    )
    epochs = [json.loads(line) for line in (pretuned / "metrics.jsonl").read_text().splitlines()]
    assert all(len(line["validation"]["reconstruction"]) == 3 for line in epochs if line["kind"] == "epoch")
    lineage = json.loads((pretuned / "artifact" / "artifact.json").read_text())
    assert lineage["results"]["split_hashes"] == results["split_hashes"] and results["split_hashes"]["train"]
    tensors = load_file(pretuned / "artifact" / "feedback.safetensors")
    assert set(tensors) == {"xi", "P", *(f"{side}.{level}" for side in "AB" for level in range(3))}
    assert torch.equal(tensors["P"], torch.eye(128))


@pytest.mark.parametrize("words", ["toast", "toast-lite", "toast method.feedback=late", "toast method.feedback=early"])
def test_tuning_starts_from_the_artifact(pretuned: Path, here: Path, words: str) -> None:
    method, *more = words.split()
    chosen = ["--method", method, "--init-from", pretuned, "--output-dir", here / "run", *TINY_DEMO, *more]
    said = toast("tune", *chosen, "training.lr=1e-12", "training.epochs=1")
    assert said.code == 0, said.err
    assert "pre-tuned on demo" in said.err
    other = next((kind for kind in ("late", "early") if kind in words), None)
    told = " ".join(said.err.split())
    assert (f"It was pre-tuned with full feedback. This run has {other} feedback" in told) is (other is not None)
    assert ("selects at an earlier level than xi and P were pre-tuned for" in told) is (other == "early")
    session = prepare_session(load_recipe(here / "run" / "recipe.yaml"))
    model = session.model
    load_checkpoint(here / "run" / "checkpoints", "last", model)
    trained = {name: weight for name, weight in model.get_trained_parameters().items() if ".A." in name or "xi" in name}
    artifact = load_file(pretuned / "artifact" / "feedback.safetensors")
    assert torch.allclose(trained["adapted.steering.selection.xi"], artifact["xi"], atol=1e-6)
    steering = model.adapted.steering
    assert steering is not None
    if method == "toast":
        for level, A_l in zip(steering.levels, steering.feedback.A, strict=True):
            assert torch.allclose(A_l.weight, artifact[f"A.{level}"], atol=1e-6)
    else:
        frozen = load_file(here / "run" / "adapter" / "frozen_start.safetensors")
        assert torch.equal(frozen["adapted.steering.feedback.A.0.base_layer.weight"], artifact["A.0"])


def test_levels_have_the_backbones_own_numbers_everywhere(here: Path) -> None:
    late = [*TINY_DEMO, "method.feedback=late"]
    assert "to levels 2-3 of 3" in toast("pretune", "--dry-run", *late).out
    said = toast("pretune", "--output-dir", here / "run", *late)
    assert said.code == 0, said.err
    results = json.loads((here / "run" / "results.json").read_text())
    line = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    found = (results["before"], results["after"], line["train"]["reconstruction"], line["validation"]["reconstruction"])
    assert [list(levels) for levels in found] == [["2", "3"]] * 4
    rows = [row.split()[1] for row in said.out.splitlines() if row.startswith("│")]
    assert rows == ["2", "3"]
    tensors = load_file(here / "run" / "artifact" / "feedback.safetensors")
    assert {"A.1", "A.2"} < set(tensors) and "A.0" not in tensors, "which count from 0, as programs do"


def test_least_squares_makes_an_artifact_without_gradients(here: Path) -> None:
    said = toast("pretune", "--least-squares", "--output-dir", here / "run", *TINY)
    assert said.code == 0, said.err
    assert not (here / "run" / "metrics.jsonl").exists() and "optimizer steps" not in said.err
    results = json.loads((here / "run" / "results.json").read_text())
    assert all(
        after < 0.5 * before
        for after, before in zip(results["after"].values(), results["before"].values(), strict=True)
    )
    assert toast("tune", "--init-from", here / "run", "--output-dir", here / "tuned", *TINY_DEMO).code == 0


def test_images_without_labels_will_do(here: Path, pictures: MakePictures) -> None:
    folder = pictures(cat=30, dog=30)
    chosen = ["--backbone", "vit_demo_3", "--dataset", f"images:{folder}", "--output-dir", here / "run"]
    fast = ["training.epochs=4", "training.batch_size=20", "training.accumulate=1", "training.lr=0.01"]
    for command in "pretune", "tune":
        toast(command, *chosen, *fast).fails(2, "pretuning.target=first-pass", error="data.missing-labels")
    said = toast("pretune", *chosen, *fast, "pretuning.target=first-pass")
    assert said.code == 0, said.err
    line = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert -1e-6 < line["validation"]["distance"] < 1  # one minus a cosine, which rounding may put above one
    results = json.loads((here / "run" / "results.json").read_text())
    assert all(
        after < before for after, before in zip(results["after"].values(), results["before"].values(), strict=True)
    )


def test_without_labels_the_task_embedding_stays_as_it_was_drawn(here: Path) -> None:
    """Distilled into it, it would come to be unlike every token, and no later tuning could bring it back."""
    chosen = ["pretuning.target=first-pass", "method.start=random", *TINY_DEMO, "training.lr=0.01"]
    dry = toast("pretune", "--dry-run", *chosen)
    assert "trainable parameters: 98,304 of" in dry.out, "A and B of three levels of width 128, and nothing else"
    said = toast("pretune", *chosen, "--output-dir", here / "run", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["trained_parameters"] == 6 * 128**2
    pretuned = load_file(here / "run" / "artifact" / "feedback.safetensors")
    drawn = load_file(here / "run" / "checkpoints" / "start" / "training.safetensors")
    assert pretuned["xi"].any() and any(torch.equal(pretuned["xi"], tensor) for tensor in drawn.values())


def test_what_it_began_from_is_measured_where_it_began(here: Path) -> None:
    chosen = ["--device", "cpu", *TINY_DEMO, "training.accumulate=1", "training.lr=1e-12"]
    assert toast("pretune", *chosen, "method.start=least-squares", "--output-dir", here / "run").code == 0
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["after"] == pytest.approx(results["before"], rel=1e-4)
    closed = toast("pretune", "--least-squares", *chosen, "--output-dir", here / "closed", "--json")
    assert closed.code == 0, closed.err
    drawn = json.loads(closed.out)["before"]
    assert all(before > 2 * after for before, after in zip(drawn.values(), results["before"].values(), strict=True))


def test_p_stays_the_identity_unless_pre_tuning_is_told_to_train_it(here: Path) -> None:
    recipe = ["--recipe", "demo/toast", "init_from=null", *TINY_DEMO]
    for name, words, fixed in (("fixed", ["method.train_P=true"], True), ("free", ["pretuning.train_P=true"], False)):
        assert toast("pretune", *recipe, *words, "--output-dir", here / name).code == 0
        P = load_file(here / name / "artifact" / "feedback.safetensors")["P"]
        assert torch.equal(P, torch.eye(len(P))) is fixed


def test_a_dry_run_shows_what_would_be_pre_tuned_and_writes_nothing(here: Path) -> None:
    said = toast("pretune", "--dry-run", *TINY_DEMO)
    assert said.code == 0, said.err
    assert "train_P: false" in said.out and "trainable parameters" in said.out
    assert list(here.iterdir()) == []
    toast("pretune", "--dry-run", "pretuning.target=first-pass", "pretuning.passes=both").fails(
        2, error="training.conflicting-options"
    )


def test_a_wrong_start_is_refused_before_anything_is_written(here: Path) -> None:
    for command in ("tune", "pretune"):
        toast(command, "--init-from", "nowhere", "--output-dir", here / "run", *TINY_DEMO).fails(
            2, "nowhere", error="artifact.missing"
        )
        assert not (here / "run").exists()


def test_the_loss_of_both_passes_can_be_averaged(here: Path) -> None:
    runs = []
    for passes in ("last", "both"):
        assert toast("pretune", "--output-dir", here / passes, *FAST, f"pretuning.passes={passes}").code == 0
        runs.append(json.loads((here / passes / "metrics.jsonl").read_text().splitlines()[-1])["train"]["loss"])
    assert runs[0] != runs[1]


def test_text_pretunes_a_language_model(here: Path) -> None:
    model = make_model(here / "model")
    (here / "text.txt").write_text("\n".join(f"Day {n} was fine." for n in range(200)))
    chosen = ["--recipe", "pretune/language", "--backbone", f"llama:{model}", "--dataset", f"text:{here / 'text.txt'}"]
    small = ["dataset.block_tokens=64", "training.batch_size=8", "training.accumulate=1", "training.lr=0.01"]
    small += ["method.start=random", "training.epochs=3", "dataset.val_fraction=0.2"]
    said = toast("pretune", *chosen, "--output-dir", here / "run", *small)
    assert said.code == 0, said.err
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["warnings"] == [], "the rate moves the weights by more than their spread"
    assert all(
        after < before for after, before in zip(results["after"].values(), results["before"].values(), strict=True)
    )


def test_a_start_that_does_not_fit_is_refused(pretuned: Path, here: Path) -> None:
    toast("tune", "--init-from", here, *TINY_DEMO).fails(2, "no pre-tuned artifact")
    toast("tune", "--method", "linear", "--init-from", pretuned, *TINY_DEMO).fails(2, "no feedback path")
    other = toast("tune", "--backbone", "vit_demo_3", "--weights", "none", "--init-from", pretuned, *TINY_DEMO)
    other.fails(1, "pre-tuned on other weights")
    toast("tune", "--recipe", "pretune/toast", *TINY).fails(2, "toast pretune", error="recipe.for-pretuning")
    toast("pretune", "--method", "toast-lite", *TINY).fails(2, "method.name=toast", error="method.no-feedback-path")
    toast("pretune", "method=linear", *TINY).fails(2, "method.name=toast", error="method.no-feedback-path")


def test_a_random_start_is_said_with_what_it_costs(here: Path) -> None:
    said = toast("tune", "--output-dir", here / "run", *TINY_DEMO, "method.start=random")
    assert "86.2 to 81.9" in " ".join(said.err.split()) and said.err.count("starts at random") == 1


def test_the_demos_backbone_brings_a_pre_tuned_feedback_path(here: Path) -> None:
    chosen = ["--init-from", "shipped", "--output-dir", here / "run", *TINY_DEMO, "training.lr=1e-12"]
    said = toast("tune", *chosen)
    assert said.code == 0 and "pre-tuned on demo" in said.err, said.err
    steering = load_model(here / "run").model.adapted.steering
    shipped = load_file(registry.load_backbone_card("vit_demo_3").artifact / "feedback.safetensors")
    assert steering is not None
    assert torch.allclose(steering.feedback.A[0].weight, shipped["A.0"], atol=1e-6)


def test_a_backbone_without_a_shipped_path_says_so(here: Path) -> None:
    chosen = ["--backbone", "vit:vit_tiny_patch16_224", "--weights", "none", "--dataset", "demo", *TINY[1:]]
    toast("tune", *chosen, "--init-from", "shipped").fails(2, "No pre-tuned feedback path comes with")
