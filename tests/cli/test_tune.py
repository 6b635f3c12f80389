"""`toast tune` and what can be done with its runs: evaluate, look, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.cli.conftest import TINY_DEMO, MakePictures, toast, toast_in_new_process
from toast_cli.export import verification_worker
from toast_cli.storage.run_folder import LOCK_FILE
from toast_cli.training import loop
from toast_cli.utils.errors import ToastError


@pytest.fixture
def finished(lite_run: Path) -> Path:
    """One finished run of TOAST-Lite on the demo, to be read by many tests."""
    return lite_run


@pytest.fixture(scope="module")
def own_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the demo's backbone after a run that trained all of them, as one file."""
    folder = tmp_path_factory.mktemp("own")
    said = toast("tune", "--method", "full", "--output-dir", folder / "base", "--device", "cpu", *TINY_DEMO)
    assert said.code == 0, said.err
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
        said = toast("export", "--run", folder / "base", "--what", "backbone", "--out", folder / "own.safetensors")
    assert said.code == 0, said.err
    return folder / "own.safetensors"


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_without_arguments_it_is_the_demo(here: Path) -> None:
    said = toast("tune", "--dry-run", *TINY_DEMO)
    assert said.code == 0
    assert "Recipe: demo/toast" in said.err
    first, *_, recipe = said.out.split("\n\n")
    assert len(first.splitlines()) <= 9 and first.startswith("samples:") and "first batch" in first
    assert recipe.startswith("backbone:") and "images:" in recipe, "the recipe comes last"
    assert "name: vit_demo" in said.out and "first batch: image [20, 3, 64, 64]" in said.out
    assert "× the plain backbone's" in said.out
    assert not list(here.iterdir()), "a dry run writes nothing"


def test_a_run_folder_holds_everything_about_the_run(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "adapter", "results.json",
        "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png",
    }  # fmt: skip
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {
        "start",
        "last",
        ".last.old",
        "best",
        ".lock",
    }
    assert {path.name for path in (finished / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "frozen_start.safetensors", "README.md",
    }  # fmt: skip
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "epoch", "step", "step", "epoch"]
    assert results(finished)["test"]["images"] == 20
    assert json.loads((finished / "environment.json").read_text())["versions"]["torch"]


def test_no_file_of_a_run_is_a_pickle(finished: Path) -> None:
    assert {path.suffix or path.name for path in finished.rglob("*") if path.is_file()} <= {
        LOCK_FILE,
        ".yaml",
        ".json",
        ".jsonl",
        ".safetensors",
        ".md",
        ".csv",
        ".png",
    }


def test_the_adapter_holds_only_what_was_trained(finished: Path) -> None:
    with safe_open(finished / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        numbers = sum(file.get_tensor(name).numel() for name in names)
    assert not any(name.startswith("adapted.network.") or "base_layer" in name for name in names)
    assert numbers == results(finished)["trained_parameters"]


def test_evaluating_again_in_a_new_process_gives_the_same_numbers(finished: Path, here: Path) -> None:
    said = toast_in_new_process("eval", "--run", finished, "--json", "--out", here / "numbers.json")
    assert said.code == 0, said.err
    again, first = json.loads(said.out)["test"], results(finished)["test"]
    assert again["accuracy"] == first["accuracy"]
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert again["attention_share"]["pass_two"] == pytest.approx(first["attention_share"]["pass_two"], rel=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(here: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        short = ["--output-dir", name, "--device", "cpu", *TINY_DEMO, "training.epochs=1"]
        said = toast("tune", "--method", "toast", "--seed", seed, *short)
        assert said.code == 0, said.err
    a, b, c = ((here / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.usefixtures("quickly")
def test_runs_without_a_named_folder_get_one_each_and_the_newest_is_used_and_said(here: Path) -> None:
    for _ in range(2):
        assert toast("tune", "--method", "linear", "--device", "cpu", *TINY_DEMO).code == 0
    runs = sorted(path.name for path in (here / "runs").iterdir())
    assert runs == ["demo-vit_demo-linear-seed0", "demo-vit_demo-linear-seed0-2"]
    said = toast("export", "--format", "safetensors")
    assert said.code == 0 and "Newest run: runs/demo-vit_demo-linear-seed0-2" in said.err
    assert (here / "runs" / runs[1] / "export" / f"{runs[1]}-adapter.safetensors").is_file()


@pytest.mark.usefixtures("quickly")
def test_an_exported_model_needs_no_other_file(finished: Path, here: Path) -> None:
    assert toast("export", "--run", finished, "--what", "full", "--out", here / "model.safetensors").code == 0
    said = toast_in_new_process("eval", "--run", here / "model.safetensors", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["test"]["loss"] == pytest.approx(results(finished)["test"]["loss"], rel=1e-6)


def test_an_export_is_never_written_over(finished: Path, here: Path) -> None:
    (here / "mine.safetensors").write_text("precious")
    toast("export", "--run", finished, "--out", here / "mine.safetensors").fails(
        2, "--force", error="disk.already-exists"
    )
    assert (here / "mine.safetensors").read_text() == "precious"


def test_a_backbone_trained_by_toast_can_be_exported_and_given_to_weights(here: Path, own_backbone: Path) -> None:
    said = toast("tune", "--weights", own_backbone, "--method", "linear", "--output-dir", "on-it", *TINY_DEMO)
    assert said.code == 0, said.err


def test_a_picture_is_drawn_of_a_file_and_of_a_test_image(finished: Path, here: Path) -> None:
    Image.new("RGB", (200, 120), "teal").save("img.jpg")
    said = toast("visualize-attention", "img.jpg", "--run", finished, "--out", here)
    assert said.code == 0, said.err
    with Image.open(here / "img.png") as figure:
        assert figure.width > figure.height > 300
    said = toast("visualize-attention", "--test-image", "2", "--run", finished, "--out", here, "--json")
    assert said.code == 0, said.err
    (shown,) = json.loads(said.out)
    inside = shown["views"][0]["share_inside"]
    assert (here / "test-2.png").is_file() and 0 < inside["pass_one"] < 1 and 0 < inside["pass_two"] < 1


def test_without_a_run_the_plain_backbone_is_shown_and_that_is_said(here: Path) -> None:
    Image.new("RGB", (80, 80), "teal").save("img.jpg")
    said = toast("visualize-attention", "img.jpg")
    assert said.code == 0, said.err
    assert "plain backbone vit_demo" in said.err
    assert (here / "attention" / "img.png").is_file()


def test_a_folder_of_photographs_is_learnt(here: Path, pictures: MakePictures) -> None:
    root = pictures(dark=12, light=12)
    said = toast(
        "tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}", "--method", "linear", "--output-dir", "run",
        "images.resize=64", "images.augment=flip", "training.epochs=12", "training.lr=0.05",
        "training.batch_size=8", "training.warmup_epochs=0", "training.optimizer=adamw",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert results(here / "run")["test"]["accuracy"] == 1.0


def test_another_image_size_and_shape_is_trained_shown_and_evaluated_alike(here: Path) -> None:
    options = ["--method", "toast", "--output-dir", "wide", "backbone.image_size=[64, 96]", *TINY_DEMO]
    said = toast("tune", "--dry-run", *options)
    assert "first batch: image [20, 3, 64, 96]" in said.out, said.err
    said = toast("tune", *options)
    assert said.code == 0, said.err
    said = toast("eval", "--run", "wide", "--json")
    assert json.loads(said.out)["test"] == results(here / "wide")["test"]
    assert toast("visualize-attention", "--test-image", "0", "--run", "wide", "--out", "seen").code == 0
    assert list((here / "seen").iterdir())


def fail_with_a_full_disk(*_: Any) -> None:
    raise ToastError("No space left on device.", code="disk.cannot-write")


class TestWrongInput:
    """One clear message, the right exit code, nothing half-written."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--backbone", "vit_dmo"], ["no backbone 'vit_dmo'", "Did you mean 'vit_demo'?"]),
            (["--dataset", "cubb"], ["no data set 'cubb'", "Did you mean 'cub'?"]),
            (["--method", "tost"], ["'tost'", "Did you mean 'toast'?"]),
            (["training.epoch=3"], ["training.epoch", "epochs"]),
            (["training.epochs=none"], ["training.epochs", "none"]),
            (["training.optimizer=adamv"], ["adamv", "adam"]),
            (["--device", "gpu"], ["Unknown device 'gpu'"]),
            (["--recipe", "demo/tost"], ["demo/tost", "demo/toast"]),
            (["--backbone", "vit:vit_tny_patch16_224"], ["timm has no model", "vit_tiny_patch16_224"]),
            (["--weights", "nowhere.safetensors"], ["no weights file nowhere.safetensors"]),
        ],
    )
    def test_is_named_with_the_nearest_right_one(self, here: Path, arguments: list[str], words: list[str]) -> None:
        toast("tune", *arguments, *TINY_DEMO[:3]).fails(2, *words)
        assert not (here / "runs").exists()

    def test_an_unknown_recipe_key_is_named_with_its_line(self, here: Path) -> None:
        Path("mine.yaml").write_text(
            "backbone: vit_demo\ndataset: demo\nmethod: toast\ntraining:\n  leraning_rate: 1\n"
        )
        toast("tune", "--recipe", "mine.yaml").fails(2, "mine.yaml:5", "leraning_rate")

    def test_absent_data_says_what_to_put_where(self, here: Path) -> None:
        said = toast("tune", "--backbone", "vit_b16", "--dataset", "cub", "--method", "toast-lite")
        said.fails(said.code, "CUB_200_2011", "images.txt", "--data-dir")
        assert said.code in (1, 2) and "fgvc/cub-vit_b16-toast-lite" in said.err

    def test_absent_weights_say_how_to_get_them(self, here: Path, pictures: MakePictures) -> None:
        root = pictures(cat=3, dog=3)
        said = toast("tune", "--backbone", "vit_t16", "--dataset", f"folder:{root}")
        said.fails(1, "deit_tiny_patch16_224", "--weights FILE", "safetensors, .pth or .npz", "--weights none")

    def test_an_existing_run_folder_is_left_alone(self, here: Path) -> None:
        (here / "run").mkdir()
        (here / "run" / "notes.txt").write_text("precious")
        toast("tune", "--output-dir", "run", *TINY_DEMO).fails(2, "--output-dir", error="disk.already-exists")
        assert [path.name for path in (here / "run").iterdir()] == ["notes.txt"]
        (here / "run" / "recipe.yaml").write_text("begun: true")
        toast("tune", "--output-dir", "run", *TINY_DEMO).fails(2, "--resume run", error="disk.already-exists")

    @pytest.mark.parametrize("output_dir", [None, "deep/run", "empty"])
    def test_a_run_that_fails_before_its_first_step_leaves_no_folder(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str | None
    ) -> None:
        (here / "empty").mkdir()
        where = [] if output_dir is None else ["--output-dir", output_dir]
        monkeypatch.setattr(loop, "make_scheduler", fail_with_a_full_disk)
        said = toast("tune", *TINY_DEMO, *where)
        said.fails(1, "No space", error="disk.cannot-write")
        assert "Nothing was trained" in said.err
        assert [path.name for path in here.rglob("*")] == ["empty"]

    def test_a_run_that_fails_later_keeps_its_folder(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop.TrainingLoop, "validate", fail_with_a_full_disk)
        said = toast("tune", *TINY_DEMO, "--output-dir", "run")
        said.fails(1, "No space", error="disk.cannot-write")
        assert "Nothing was trained" not in said.err and (here / "run" / "recipe.yaml").is_file()

    def test_an_empty_or_missing_folder_is_named(self, here: Path) -> None:
        (here / "empty").mkdir()
        for name in ("empty", "missing"):
            said = toast("tune", "--backbone", "vit_demo", "--dataset", f"folder:{name}")
            assert said.code in (1, 2)
            said.fails(said.code, name)

    def test_a_class_missing_from_train_is_named(self, here: Path, pictures: MakePictures) -> None:
        root = pictures(**{"train": 0})
        for split, name in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "owl")):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (70, 70)).save(root / split / name / f"{number}.png")
        said = toast("tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}")
        said.fails(said.code, "owl")
        assert said.code in (1, 2)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_unreadable_image_is_named(self, here: Path, pictures: MakePictures, workers: int) -> None:
        root = pictures(cat=6, dog=6)
        for path in (root / "cat").iterdir():
            path.write_bytes(path.read_bytes()[:200])
        said = toast(
            "tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}",
            "images.resize=64", f"training.workers={workers}",
        )  # fmt: skip
        said.fails(1, "cat/2.png", error="image.unreadable")

    def test_unreadable_images_are_counted_and_listed_where_they_may_be_skipped(
        self, here: Path, pictures: MakePictures
    ) -> None:
        root = pictures(cat=9, dog=9)
        bad = sorted((root / "cat").iterdir())[:4]
        for path in bad:
            path.write_bytes(path.read_bytes()[:200])
        said = toast(
            "tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}", "--method", "linear",
            "--output-dir", "run", "images.resize=64", "images.on_error=skip", "training.epochs=1",
        )  # fmt: skip
        assert said.code == 0, said.err
        results = json.loads((here / "run/results.json").read_text())
        skipped = {name for found in results["skipped"].values() for name in found}
        assert skipped == {f"cat/{path.name}" for path in bad}
        test = results["skipped"].get("test", {})
        assert results["test"]["images"] == results["samples"]["test"] - len(test)
        assert "could not be read and were skipped" in " ".join(said.err.split())

    def test_weights_of_another_backbone_are_refused(
        self, here: Path, pictures: MakePictures, own_backbone: Path
    ) -> None:
        root = pictures(cat=3, dog=3)
        toast("tune", "--backbone", "vit:test_vit", "--weights", own_backbone, "--dataset", f"folder:{root}").fails(
            1, "own.safetensors does not hold the weights of 'test_vit'"
        )

    def test_a_pickle_that_would_run_code_is_refused(self, here: Path, pictures: MakePictures) -> None:
        import torch

        class Attack:
            def __reduce__(self) -> tuple:
                return (Path.touch, (Path("ran"),))

        torch.save({"state_dict": Attack()}, "evil.pth")
        root = pictures(cat=3, dog=3)
        toast("tune", "--backbone", "vit:test_vit", "--weights", "evil.pth", "--dataset", f"folder:{root}").fails(
            1, "evil.pth was not loaded"
        )
        assert not Path("ran").exists()

    def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_good_checkpoint(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from toast_cli.tasks.classification import Classification

        loss, calls = Classification.loss, []

        def loss_that_breaks(self: Classification, logits: Any, batch: Any) -> Any:
            # Training batches alone: validation has no gradients, the memory is told from one and two samples.
            if logits.requires_grad and len(logits) > 2:
                calls.append(1)
            return loss(self, logits, batch) * (float("nan") if len(calls) == 3 else 1.0)

        monkeypatch.setattr(Classification, "loss", loss_that_breaks)
        toast("tune", "--output-dir", "run", *TINY_DEMO).fails(
            1, "became nan at step 3 (epoch 2)", "run/checkpoints/last (epoch 1, step 2)"
        )
        assert json.loads((here / "run/checkpoints/last/state.json").read_text())["at"]["epochs"] == 1
        with safe_open(here / "run/checkpoints/last/model.safetensors", framework="pt") as file:
            assert all(file.get_tensor(name).isfinite().all() for name in list(file.keys()))
        assert not (here / "run" / "results.json").exists()
        toast("eval", "--run", "run").fails(2, error="run.unfinished")

    def test_a_damaged_adapter_is_refused(self, finished: Path, here: Path) -> None:
        shutil.copytree(finished, here / "copy")
        file = here / "copy" / "adapter" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        toast("eval", "--run", "copy").fails(1, "adapter_model.safetensors", "damaged")

    def test_an_adapter_is_not_put_on_other_weights(self, finished: Path, own_backbone: Path) -> None:
        toast("eval", "--run", finished, "--weights", own_backbone).fails(1, "other weights of 'vit_demo'")

    def test_data_with_other_classes_is_refused(self, finished: Path, here: Path, pictures: MakePictures) -> None:
        root = pictures(cat=6, dog=6)
        toast("eval", "--run", finished, "--dataset", f"folder:{root}").fails(
            1, "classes", "only in the data: cat, dog"
        )


@pytest.mark.parametrize("method", [pytest.param("toast", marks=pytest.mark.slow), "toast-lite"])
@pytest.mark.usefixtures("quickly")
def test_a_convnext_is_tuned_and_found_again_even_from_random_weights(here: Path, method: str) -> None:
    run = here / "run"
    small = ["--backbone", "convnext:test_convnext", "--weights", "none", "--method", method]
    assert toast("tune", *small, "--output-dir", run, *TINY_DEMO).code == 0
    again = toast_in_new_process("eval", "--run", run, "--json")
    assert again.code == 0, again.err
    recorded = json.loads((run / "results.json").read_text())
    assert json.loads(again.out)["test"]["accuracy"] == recorded["test"]["accuracy"]
    assert toast("export", "--run", run, "--out", here / "whole.safetensors").code == 0
    said = toast("visualize-attention", "--run", run, "--test-image", "0", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)[0]["views"][0]["kind"] == "feature energy"


def test_short_options_set_fields_of_training(here: Path) -> None:
    words = ["tune", "--epochs", "3", "--lr", "1e-3", "--batch-size", "7", "--workers", "1", "--dry-run", "--json"]
    said = toast(*words, "--device", "cpu")
    assert said.code == 0, said.err
    training = json.loads(said.out)["recipe"]["training"]
    assert [training[name] for name in ("epochs", "lr", "batch_size", "workers")] == [3, 0.001, 7, 1]
    toast("tune", "--lr", "0.1", "training.lr=0.2").fails(2, "same field", error="cli.conflicting-options")
    toast("pretune", "--batch-size", "4", "training.batch_size=4").fails(2, error="cli.conflicting-options")
    toast("tune", "--epochs", "1.5").fails(2, "from --epochs", error="recipe.wrong-type")


def test_a_dry_run_says_what_is_chosen_later(here: Path) -> None:
    said = toast("tune", "--lr", "auto", "--batch-size", "auto", "--device", "cpu", "--dry-run")
    assert said.code == 0, said.err
    for words in ("lr: auto", "training.lr=auto: chosen when", "training.batch_size=auto: chosen when", "workers: 0"):
        assert words in said.out
    assert not (here / "runs").exists()


def test_the_range_test_is_drawn(here: Path) -> None:
    said = toast(
        "tune",
        "--method",
        "linear",
        "--lr",
        "auto",
        "--device",
        "cpu",
        *TINY_DEMO,
        "training.batch_size=4",
        "--output-dir",
        "run",
    )
    assert said.code == 0, said.err
    assert (here / "run" / "lr_range.png").read_bytes().startswith(b"\x89PNG")
