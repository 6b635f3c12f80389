"""Segmentation as a user types it: tune, measure, look, export, load; with a ViT, a ConvNeXt, and two processes."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import toast_cli
from tests.cli.conftest import toast
from tests.cli.test_processes import TORCHRUN, two_forks, two_processes
from toast_cli.utils.errors import UsageError

SHORT = ["task.width=16", "training.epochs=1", "training.batch_size=4", "training.warmup_epochs=0", "--device", "cpu"]
SIZES = ((90, 70), (70, 100), (64, 64), (80, 66), (120, 70))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of three sizes beside class maps: a dark half, a light half, and a border without a class."""
    root = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 9), ("val", 3), ("test", 5)):
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            classes = np.zeros((height, width), np.uint8)
            classes[:, width // 2 :] = 1
            noise = np.random.default_rng(number).integers(0, 60, (height, width, 3))
            pixels = noise + 150 * classes[..., None]
            classes[0] = 255
            for folder, array, ending in (("images", pixels.astype(np.uint8), "jpg"), ("masks", classes, "png")):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / folder / split / f"{number}.{ending}")
    (root / "classes.txt").write_text("dark\nlight\n")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST with early feedback on the demo's scenes."""
    run = tmp_path_factory.mktemp("finished") / "run"
    few = ["dataset.train_images=12", "dataset.val_images=4", "dataset.test_images=6"]
    said = toast("tune", "--dataset", "demo-segmentation", "--output-dir", run, *SHORT, *few)
    assert said.code == 0, said.err
    assert "mean IoU, test" in said.out
    return run


@pytest.fixture(scope="module")
def convnext_run(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    """The same of a ConvNeXt with random weights on images of many sizes."""
    run = tmp_path_factory.mktemp("finished") / "run"
    backbone = ["--backbone", "convnext:test_convnext", "--weights", "none", "backbone.image_size=64"]
    chosen = ["--dataset", f"masks:{pairs}", "--method", "toast", "--output-dir", run]
    said = toast("tune", *backbone, *chosen, *SHORT)
    assert said.code == 0, said.err
    assert "Recipe: general/segmentation-toast" in said.err
    return run


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("which", ["run", "convnext_run"])
def test_a_run_is_measured_again_as_it_closed(which: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(which)
    closed = results(run)["test"]
    assert {"mean_iou", "pixel_accuracy", "class_accuracy", "iou", "loss", "images", "pixels"} <= closed.keys()
    found = json.loads(toast("eval", "--run", run, "--json").out)
    assert found["test"] == {**closed, "loss": pytest.approx(closed["loss"], rel=1e-5)}
    for folder in (run, Path(found["folder"])):
        rows = list(csv.DictReader((folder / "per_class.csv").open()))
        assert {row["class"]: row["iou"] and float(row["iou"]) for row in rows} == {
            name: "" if iou is None else pytest.approx(iou, abs=1e-6) for name, iou in closed["iou"].items()
        }
    told = toast("eval", "--run", run).out
    assert all(name in told for name in closed["iou"]), "a line for every class"


def test_python_labels_every_pixel_and_counts_as_eval_does(convnext_run: Path, pairs: Path) -> None:
    model = toast_cli.load(convnext_run)
    files = sorted((pairs / "images/test").iterdir())
    found = model.segment(files)
    hits = labelled = 0
    for file, classes in zip(files, found, strict=True):
        wanted = torch.from_numpy(np.asarray(Image.open(pairs / "masks/test" / f"{file.stem}.png")).copy())
        assert classes.shape == wanted.shape and int(classes.max()) < len(model.classes) == 2
        hits += int((classes == wanted)[wanted != 255].sum())
        labelled += int((wanted != 255).sum())
    assert labelled == results(convnext_run)["test"]["pixels"]
    assert hits / labelled == pytest.approx(results(convnext_run)["test"]["pixel_accuracy"], abs=1e-3)
    with pytest.raises(UsageError) as refused:
        model.predict(files[0])
    assert refused.value.code == "task.labels-pixels"


def test_the_picture_shows_predicted_and_labelled_classes(run: Path, tmp_path: Path) -> None:
    said = toast("visualize-attention", "--run", run, "--test-image", "2", "--out", tmp_path, "--json")
    assert said.code == 0, said.err
    (drawn,) = json.loads(said.out)
    (view,) = drawn["views"]
    assert view["pass_two"] is None and all("%" in view["segments"][name] for name in ("predicted", "labelled"))
    with Image.open(drawn["figure"]) as picture:
        assert picture.width > 2.5 * picture.height, "image, three maps and two panels of classes"


def test_the_picture_of_several_runs_shows_what_each_predicts_and_the_labels_once(run: Path) -> None:
    from toast_cli.model.recipe_data import open_data
    from toast_cli.storage.load_model import load_model
    from toast_cli.visualize.figure_panels import build_comparison_rows
    from toast_cli.visualize.view import AttentionViewer, compute_image_view

    loaded = load_model(run)
    viewers = [AttentionViewer(name, loaded.model, loaded.recipe.images, loaded.classes) for name in ("one", "two")]
    samples = [open_data(loaded.recipe).splits["test"].load(index) for index in (0, 1)]
    views = [[compute_image_view(viewer, sample) for viewer in viewers] for sample in samples]
    rows = build_comparison_rows(samples, views)
    for row, seen, sample in zip(rows, views, samples, strict=True):
        shown = [panel.segments for panel in row.panels]
        assert [segments is None for segments in shown] == [True, True, False, True, False, False]
        assert shown[2] is seen[0].segments["predicted"] and shown[4] is seen[1].segments["predicted"]
        assert shown[5] is not None and np.array_equal(shown[5].classes, sample.classes)
    classes = [replace(sample, classes=None) if sample is samples[1] else sample for sample in samples]
    views = [[compute_image_view(viewer, sample) for viewer in viewers] for sample in classes]
    assert [len(row.panels) for row in build_comparison_rows(classes, views)] == [5, 5], "no column with gaps"


def test_the_picture_shows_the_classes_of_the_whole_image(convnext_run: Path, pairs: Path, tmp_path: Path) -> None:
    from toast_cli.storage.load_model import load_model
    from toast_cli.visualize.view import AttentionViewer, compute_image_view, load_image_sample

    loaded = load_model(convnext_run)
    file = pairs / "images/test/1.jpg"  # taller than wide: the window sees its middle
    found = compute_image_view(
        AttentionViewer("a run", loaded.model, loaded.recipe.images, loaded.classes), load_image_sample(file)
    )
    assert found.window.height < 100
    classes = found.segments["predicted"].classes
    assert classes.shape == (100, 70) and np.array_equal(classes, toast_cli.load(convnext_run).segment(file)[0])


def test_eval_shows_whole_images_or_windows_as_it_is_told(convnext_run: Path) -> None:
    found = {}
    for way in ("slide", "whole"):
        said = toast("eval", "--run", convnext_run, "--evaluation", way, "--json")
        assert said.code == 0, said.err
        found[way] = json.loads(said.out)
        assert found[way]["evaluation"] == way
    assert found["slide"]["test"]["loss"] == pytest.approx(results(convnext_run)["test"]["loss"], rel=1e-5)
    assert found["whole"]["test"]["loss"] != pytest.approx(found["slide"]["test"]["loss"], rel=1e-4)
    assert found["whole"]["test"]["pixels"] == found["slide"]["test"]["pixels"]
    toast("eval", "--run", convnext_run, "--evaluation", "half").fails(2, "evaluation", "whole")


def test_many_classes_are_not_listed_but_where_they_are_is_said() -> None:
    from rich.console import Console

    from toast_cli.cli.output.run_summary import build_results_table

    iou = {f"class {number}": 0.5 for number in range(150)}
    metrics = {"mean_iou": 0.5, "images": 2, "pixel_accuracy": 0.7, "iou": iou}
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    console.print(build_results_table("a run", {"test": metrics}))
    told = console.export_text()
    assert "class 7" not in told and "IoU of 150 classes" in told and "results.json" in told and "--out" in told


@pytest.mark.parametrize("which", ["run", pytest.param("convnext_run", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("quickly")
def test_exports_prove_themselves_and_give_the_same_classes(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import onnxruntime

    run = request.getfixturevalue(which)
    for name, words in {"whole.safetensors": ["--what", "full"], "model.onnx": ["--format", "onnx"]}.items():
        said = toast("export", "--run", run, *words, "--out", tmp_path / name)
        assert said.code == 0, said.err
        report = json.loads((tmp_path / "export_report.json").read_text())[name]
        assert {"random.logits", "real.logits"} <= report["differences"].keys()
    model, exported = toast_cli.load(run), toast_cli.load(tmp_path / "whole.safetensors")
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        wanted = model(image)
    assert wanted.shape == (3, len(model.classes), 64, 64), "the auxiliary head is for training alone"
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8))
    assert torch.equal(exported.segment(photograph)[0], model.segment(photograph)[0])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_transformers_loads_an_exported_model_and_labels_pixels_with_it(run: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    said = toast("export", "--run", run, "--format", "hf", "--out", tmp_path / "hf")
    assert said.code == 0, said.err
    toast_cli.register()
    model, ours = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "hf"), toast_cli.load(run)
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "hf")(photograph, return_tensors="pt").pixel_values
    with torch.no_grad():
        found = model(pixel_values=pixels).logits
        torch.testing.assert_close(found, ours(pixels), rtol=1e-4, atol=1e-4)
    assert found.shape == (1, len(ours.classes), 64, 64), "the whole image, squeezed to the input size"
    assert model.config.id2label == dict(enumerate(ours.classes))


@pytest.mark.nightly
def test_two_processes_count_every_pixel_that_one_counts(tmp_path: Path, pairs: Path) -> None:
    words = ["--backbone", "vit_demo_3", "--dataset", f"masks:{pairs}", "--method", "linear", *SHORT]
    # Nine images in batches of four, and a last batch of which the second process has nothing. Weights do not move, so
    # that both label every pixel alike, and what is counted must be equal to the last digit.
    words += ["training.optimizer=momentum", "training.lr=1e-30", "training.eval_batch_size=2"]
    alone = toast("tune", *words, "--output-dir", tmp_path / "one")
    assert alone.code == 0, alone.err
    together = two_forks("tune", *words, "--output-dir", tmp_path / "two")
    assert together.code == 0, together.err
    for part in ("validation", "test"):
        one, two = results(tmp_path / "one")[part], results(tmp_path / "two")[part]
        assert (one["images"], one["pixels"]) == (two["images"], two["pixels"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert (two["mean_iou"], two["iou"]) == (one["mean_iou"], one["iou"])


@pytest.mark.slow
def test_a_model_divided_among_processes_is_trained_as_a_whole_one(tmp_path: Path, pairs: Path) -> None:
    words = ["tune", "--backbone", "vit_demo_3", "--dataset", f"masks:{pairs}", "--method", "toast", *SHORT]
    words += ["training.optimizer=momentum", "training.lr=0.1", "training.eval_batch_size=2", "task.evaluation=whole"]
    assert toast(*words, "--output-dir", tmp_path / "one").code == 0
    together = two_processes(TORCHRUN, *words, "--output-dir", tmp_path / "two", "training.shard=true")
    assert together.code == 0, together.err
    one, two = results(tmp_path / "one")["test"], results(tmp_path / "two")["test"]
    assert (one["images"], one["pixels"]) == (two["images"], two["pixels"])
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


class TestWhatIsWrongIsSaid:
    def test_a_class_map_that_does_not_fit_ends_the_run(self, pairs: Path, tmp_path: Path) -> None:
        root = tmp_path / "pairs"
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
            for file in sorted((pairs / part / "train").iterdir()):
                (root / part / file.name).write_bytes(file.read_bytes())
        (root / "classes.txt").write_text("dark\nlight\n")
        Image.new("L", (30, 20)).save(root / "masks/3.png")
        Image.new("L", SIZES[4], 7).save(root / "masks/4.png")
        checked = toast("data", "check", f"masks:{root}")
        assert checked.code == 1
        flat = " ".join(checked.out.split())
        assert f"3.jpg (The class map {root / 'masks/3.png'} does not match" in flat.replace("- ", "-")
        assert "30×20" in flat and "80×66" in flat
        assert "masks/4.png" in flat and "7 (8400 pixels)" in flat.replace(",", "")
        chosen = ["--backbone", "vit_demo_3", "--dataset", f"masks:{root}", "--method", "linear"]
        said = toast("tune", *chosen, "--output-dir", tmp_path / "run", *SHORT, "dataset.val_fraction=0")
        said.fails(1, "The class map", "masks/")

    @pytest.mark.parametrize(("dataset", "task"), [("demo", "segmentation"), ("demo-segmentation", "classification")])
    def test_a_task_that_is_not_for_these_data_is_refused(self, dataset: str, task: str, tmp_path: Path) -> None:
        said = toast("tune", "--dataset", dataset, f"task.name={task}", "--output-dir", tmp_path / "run")
        said.fails(
            2,
            f"task.name = '{task}'",
            f"{dataset} has a label for every pixel" if "seg" in dataset else f"{dataset} has none",
        )
        assert not (tmp_path / "run").exists()

    def test_a_missing_class_map_ends_it_before_anything_is_written(self, tmp_path: Path) -> None:
        for part in ("images", "masks"):
            (tmp_path / part).mkdir()
        for number in range(3):
            Image.new("RGB", (64, 64)).save(tmp_path / "images" / f"{number}.png")
        said = toast(
            "tune", "--backbone", "vit_demo_3", "--dataset", f"masks:{tmp_path}", "--output-dir", tmp_path / "run",
            "dataset.classes=[a,b]",
        )  # fmt: skip
        said.fails(1, "3 of 3 images", "have no class map", "0.png")
        assert not (tmp_path / "run").exists()


def test_pictures_of_data_show_the_classes_of_their_pixels(pairs: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        sheet = tmp_path / f"{split}.png"
        said = toast(
            "data",
            "show",
            f"masks:{pairs}",
            "--backbone",
            "vit_demo_3",
            "--images",
            "4",
            "--split",
            split,
            "--out",
            sheet,
        )
        assert said.code == 0, said.err
        with Image.open(sheet) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100  # type: ignore[arg-type]


def test_two_processes_write_the_class_maps_that_one_writes(here: Path, convnext_run: Path, pairs: Path) -> None:
    (here / "new").mkdir()
    for number in range(5):
        shutil.copy(pairs / "images" / "test" / f"{number}.jpg", here / "new")
    (here / "new" / "cut.jpg").write_bytes(b"no image")
    words = ["predict", here / "new", "--run", convnext_run, "--device", "cpu"]
    said = toast(*words)
    assert said.code == 0, said.err
    assert "5 of 6 images labelled, 1 could not be read" in said.err
    two = two_forks(*words, "--workers", "1", "--out", here / "two")
    assert two.code == 0, two.err
    files = {path.relative_to(here / "predictions") for path in (here / "predictions").rglob("*.*g")}
    assert len(files) == 10
    for file in (*files, "predictions.csv"):
        assert (here / "two" / file).read_bytes() == (here / "predictions" / file).read_bytes()
    toast(*words).fails(2, "--resume", error="disk.already-exists")
    features = toast(*words, "--features", here / "f.safetensors", "--json")
    assert features.code == 0, features.err
    assert json.loads(features.out)["vectors"] == 5
