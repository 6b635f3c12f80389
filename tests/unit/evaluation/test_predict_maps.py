"""Class maps of new images: files, names, shares, broken images, and what is there already."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import toast_cli
from tests.unit.evaluation.predicting import Interruption
from tests.unit.tasks.test_segmentation import CLASSES, model_of
from toast_cli.attention.predicted_classes import find_best_classes
from toast_cli.data.segmentation.dataset import read_class_map
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.evaluation.prediction.maps import assign_map_names
from toast_cli.evaluation.prediction.predict import PredictionRequest, PredictionResult, predict_images
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.map_color_scales import compute_class_palette


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation model with random weights, applied with a sliding window."""
    torch.manual_seed(0)
    built = model_of("linear", {"name": "vit_demo_3"})
    raw = {"backbone": "vit_demo_3", "dataset": "demo-segmentation", "method": "linear", "task": {"width": 16}}
    recipe = build_recipe(raw, {}, origin="a test")
    folder = tmp_path_factory.mktemp("model") / "adapter"
    config = build_adapter_config(built, recipe, CLASSES)
    save_adapter_folder(folder, built.get_trained_parameters(), {}, config, "")
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of several sizes with colliding names, one turned by its EXIF data, and broken ones."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, size in {"a/1.jpg": (90, 70), "b/1.jpg": (64, 80), "b/1.png": (70, 70), "b/ü =x.png": (120, 66)}.items():
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "a/1.jpg" else 1
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("photos", name), exif=exif)
    Path("photos/b/cut.jpg").write_bytes(Path("photos/a/1.jpg").read_bytes()[:400])
    Image.new("RGB", (1000, 2)).save("photos/thin.png")
    return Path("photos")


def predict(
    model: Path, *sources: str | Path, out: str = "out", reporter: Reporter | None = None, **how: Any
) -> PredictionResult:
    request = PredictionRequest(RunRequest(model, device="cpu"), tuple(map(str, sources)), **how)
    return predict_images(request, Path(out), reporter or Reporter())


def read(folder: str = "out") -> list[dict[str, str]]:
    with Path(folder, "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_maps_are_what_the_python_api_returns_at_the_size_of_each_image(model: Path, photos: Path) -> None:
    result = predict(model, photos, probabilities=True)
    rows = {row["path"]: row for row in read()}
    assert list(rows) == sorted(str(path) for path in photos.rglob("*.*"))
    assert {path for path, row in rows.items() if row["error"]} == {"photos/b/cut.jpg", "photos/thin.png"}
    assert result.summary.images == 6 and set(result.summary.broken) == {"photos/b/cut.jpg", "photos/thin.png"}
    loaded, palette = toast_cli.load(model), compute_class_palette(len(CLASSES))
    for path, row in rows.items():
        if row["error"]:
            assert row["map"] == row["class"] == ""
            continue
        expected = loaded.segment(path)[0].numpy()
        found = read_class_map(Path("out", row["map"]), len(CLASSES))  # as `masks:` reads it
        np.testing.assert_array_equal(found, expected)
        with Image.open(Path("out", row["map"])) as image, Image.open(Path("out", row["overlay"])) as overlay:
            assert image.mode == "P" and image.size == overlay.size == expected.shape[::-1]
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[expected])
        counts = np.bincount(expected.ravel(), minlength=len(CLASSES))
        assert row["class"] == CLASSES[counts.argmax()]
        assert float(row["share"]) == pytest.approx(counts.max() / expected.size, rel=1e-5)
        assert [float(row[f"share_of_{name}"]) for name in CLASSES] == pytest.approx(counts / expected.size, rel=1e-5)
    assert rows["photos/a/1.jpg"]["map"] == "maps/photos/a/1.png"
    assert Image.open("out/maps/photos/a/1.png").size == (70, 90)  # upright
    assert rows["photos/b/1.jpg"]["map"] == "maps/photos/b/1.png"
    assert rows["photos/b/1.png"]["map"] == "maps/photos/b/1-2.png"


def test_an_interrupted_folder_is_continued_and_takes_new_images(model: Path, photos: Path) -> None:
    predict(model, photos, out="whole")
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, reporter=Interruption(2))
    with pytest.raises(UsageError) as refused:
        predict(model, photos)
    assert refused.value.code == "disk.already-exists"
    assert predict(model, photos, resume=True).read == 4
    assert Path("out/predictions.csv").read_bytes() == Path("whole/predictions.csv").read_bytes()

    before = Path("out/maps/photos/b/1.png").read_bytes()
    Path("out/overlays/photos/a/1.jpg").unlink()
    Image.new("RGB", (70, 70)).save("photos/b/1.bmp")  # sorted before the others of its name
    assert predict(model, photos, resume=True).read == 4  # the new one, the one without overlay, and two broken ones
    assert Path("out/overlays/photos/a/1.jpg").is_file()
    assert Path("out/maps/photos/b/1.png").read_bytes() == before
    rows = {row["path"]: row["map"] for row in read() if not row["error"]}
    assert len(set(rows.values())) == len(rows) == 5 and rows["photos/b/1.jpg"] == "maps/photos/b/1.png"


@pytest.mark.parametrize(
    ("out", "code"), [("table.csv", "cli.invalid-value"), ("photos", "disk.already-exists")], ids=["table", "full"]
)
def test_what_is_no_folder_of_its_own_is_refused_before_anything_is_written(
    out: str, code: str, model: Path, photos: Path
) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UsageError) as refused:
        predict(model, photos, out=out)
    assert refused.value.code == code
    assert sorted(Path().rglob("*")) == before


def test_files_of_a_data_set_keep_their_names_apart(model: Path, photos: Path) -> None:
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            Path("pairs", folder, split).mkdir(parents=True)
            Image.new("RGB" if folder == "images" else "L", (64, 64)).save(Path("pairs", folder, split, "1.png"))
    Path("pairs/classes.txt").write_text("\n".join(CLASSES))
    predict(model, "masks:pairs")
    rows = read()
    assert [Path(row["path"]).parent.name for row in rows] == ["train", "val"]
    assert [row["map"] for row in rows] == ["maps/images/train/1.png", "maps/images/val/1.png"]


def test_names_mirror_the_folders_and_never_meet() -> None:
    names = ["../x/a.jpg", "x/A.jpg", "x/a.png", "photos.zip/b/c:d.jpg"]
    assert assign_map_names(names, {}) == ["x/a", "x/A-2", "x/a-3", "photos.zip/b/c-d"]
    assert assign_map_names(["x/a.jpg"], {"x/a.png": "maps/x/a.png"}) == ["x/a-2"]
    assert assign_map_names(["/home/me/p/a/1.jpg", "/home/me/p/b/1.jpg", "q/1.jpg"], {}) == ["p/a/1", "p/b/1", "q/1"]
    assert assign_map_names(["/1.jpg"], {}) == ["1"]


def test_the_best_classes_are_those_of_all_scores_at_once() -> None:
    scores = torch.randn(21, 5, 7, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(scores[None], size=(31, 40), mode="bilinear", align_corners=False)[0]
    assert torch.equal(find_best_classes(scores, (31, 40)), resized.argmax(0))
