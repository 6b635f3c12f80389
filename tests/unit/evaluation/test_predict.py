"""Prediction of new images: sources, rows, broken files, interrupted tables, and memory."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import toast_cli
from tests.layouts import put, tarred
from tests.peak import forget_peak, peak
from tests.scenes import demo_model, kept
from tests.unit.evaluation.predicting import Interruption
from toast_cli.data.images import file_formats
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.evaluation.prediction.answers import LabelAnswers, NumberAnswers
from toast_cli.evaluation.prediction.predict import PredictionRequest, PredictionResult, predict_images
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError

COUNT = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(demo_model("linear"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images in the current folder, one of them below it, and a file that is no image."""
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        put(Path("photos", "below" if number == 3 else "", f"{number} ü [x].jpg"), number)
    Path("photos/notes.txt").write_text("no image")
    return Path("photos")


def predict(
    model: Path, *sources: str | Path, out: str = "table.csv", reporter: Reporter | None = None, **how: Any
) -> PredictionResult:
    request = PredictionRequest(RunRequest(model, device="cpu"), tuple(map(str, sources)), **{"batch_size": 3, **how})
    return predict_images(request, Path(out), reporter or Reporter())


def read(path: str = "table.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Messages(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def report_message(self, text: str) -> None:
        self.texts.append(text)


def test_rows_hold_what_the_python_api_predicts_in_the_order_of_the_names(model: Path, photos: Path) -> None:
    messages = Messages()
    result = predict(model, photos, top=2, probabilities=True, reporter=messages)
    rows = read()
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    assert [row["path"] for row in rows] == paths
    loaded = toast_cli.load(model)
    for row, expected in zip(rows, loaded.predict(paths), strict=True):
        assert row["class"] == expected.label and row["error"] == ""
        assert float(row["probability"]) == pytest.approx(expected.probability, rel=1e-4)
        every = [float(row[f"p_{name}"]) for name in loaded.classes]
        assert every == pytest.approx(expected.probabilities.tolist(), rel=1e-4)
        assert float(row["probability_2"]) == sorted(every)[-2]
    assert result.summary.images == COUNT == sum(result.summary.labels.values())
    assert len(messages.texts) == 1 and "notes.txt" in messages.texts[0]
    assert json.loads(Path("table.csv.record.json").read_text())["images"] == COUNT
    assert not Path("table.csv.part").exists()


def test_every_kind_of_source_gives_the_same_answers(model: Path, photos: Path) -> None:
    predict(model, photos)
    expected = {Path(row["path"]).name: row["probability"] for row in read()}
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    contents = {name: (photos / name).read_bytes() for name in names}
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    tarred(Path("photos.tar"), contents)
    tarred(Path("shards/a-0.tar"), {name.replace("ü [x]", "x"): each for name, each in list(contents.items())[:4]})
    tarred(Path("shards/a-1.tar"), {name.replace("ü [x]", "x"): each for name, each in list(contents.items())[4:]})
    for name, label in (("list.csv", ",label"), ("photos/list.tsv", "")):
        lines = [f"photos/{each}{label.replace('label', 'cat')}" if label else each for each in names]
        Path(name).write_text("\n".join([f"path{label}", *lines]))
    for source in (
        "photos.zip",
        "photos.tar",
        "shards:shards",
        "list.csv",
        "photos/list.tsv",
        "photos/**/*",
        "images:photos",
    ):
        result = predict(model, source, out="other.csv")
        found = {Path(row["path"]).name.replace(" x", " ü [x]"): row["probability"] for row in read("other.csv")}
        assert found == expected, source
        assert result.summary.images == COUNT, source


def test_archives_and_shards_treat_what_cannot_be_read_as_a_folder_does(model: Path, photos: Path) -> None:
    contents = {
        "a.jpg": (photos / "0 ü [x].jpg").read_bytes(),
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "n.txt": b"n",
    }
    with zipfile.ZipFile("p.zip", "w") as archive:
        for name, content in contents.items():
            Path("p").mkdir(exist_ok=True)
            (Path("p") / name).write_bytes(content)
            archive.writestr(name, content)
    tarred(Path("p.tar"), contents)
    tarred(Path("shards/p-0.tar"), contents)
    found = []
    for source, place in (("p", "p"), ("p.zip", "p.zip"), ("p.tar", "p.tar"), ("shards:shards", "shards/p-0.tar")):
        messages = Messages()
        broken = predict(model, source, out="other.csv", reporter=messages).summary.broken
        ((path, reason),) = broken.items()
        assert path.endswith(f"{place}/phone.heic") and "pip install pillow-heif" in reason
        found.append((reason, [text.rpartition(place)[2] for text in messages.texts], len(read("other.csv"))))
    assert found == [(found[0][0], [": not read, no image suffix: 1 (n.txt)"], 2)] * 4


def test_an_image_of_several_sources_is_predicted_once(model: Path, photos: Path) -> None:
    first = photos / "5 ü [x].jpg"
    predict(model, first, photos, photos.resolve(), "photos/*.jpg", f"images:{photos}")
    paths = [row["path"] for row in read()]
    assert paths[0] == str(first) and len(paths) == COUNT and len(set(paths)) == COUNT


def test_broken_files_cost_a_row_each_wherever_they_are(model: Path, photos: Path) -> None:
    whole = (photos / "0 ü [x].jpg").read_bytes()
    broken = {
        "1 cut.jpg": whole[:300],
        "1 empty.png": b"",
        "2.heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "3.jpg": b"<html>",
    }
    for name, content in broken.items():  # four in a row: a whole batch of three
        (photos / name).write_bytes(content)
    Path("list.csv").write_text("path\nphotos/gone.jpg\n")
    result = predict(model, photos, "list.csv")
    rows = read()
    assert [row["path"] for row in rows] == [
        *sorted(str(path) for path in photos.rglob("*") if path.suffix in (".jpg", ".png", ".heic")),
        "photos/gone.jpg",
    ]
    assert {Path(row["path"]).name for row in rows if row["error"]} == {*broken, "gone.jpg"}
    assert all((row["class"] == "") == bool(row["error"]) for row in rows)
    assert list(result.summary.broken) == [row["path"] for row in rows if row["error"]]
    assert "pip install pillow-heif" in result.summary.broken["photos/2.heic"]
    assert result.summary.images == COUNT + 5


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_an_interrupted_table_is_continued_to_what_it_would_have_been(
    suffix: str, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "0 broken.jpg").write_bytes(b"")
    predict(model, photos, out=f"whole{suffix}")
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, out=f"cut{suffix}", reporter=Interruption(2))
    part = Path(f"cut{suffix}.part")
    assert not Path(f"cut{suffix}").exists()
    with pytest.raises(UsageError) as refused:
        predict(model, photos, out=f"cut{suffix}")
    assert refused.value.code == "resume.unfinished-table"
    part.write_bytes(part.read_bytes()[:-5])  # in the middle of a row

    result = predict(model, photos, out=f"cut{suffix}", resume=True)
    assert result.read == COUNT + 1 - 4  # six rows were there: one cut, one of a file that could not be read
    assert Path(f"cut{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    assert not part.exists()


def test_a_finished_table_takes_new_files_and_files_that_are_whole_now(model: Path, photos: Path) -> None:
    (photos / "0 broken.jpg").write_bytes(b"")
    predict(model, photos)
    before = read()
    put(photos / "0 broken.jpg", 50)
    put(Path("more/new.jpg"), 51)
    (photos / "6 ü [x].jpg").unlink()
    result = predict(model, photos, "more", resume=True)
    assert result.read == 2
    rows = read()
    assert rows[0] == before[-2] and rows[0]["path"] == "photos/6 ü [x].jpg"  # no longer in the folder, and kept
    assert [row["path"] for row in rows[1:]] == [*sorted(map(str, photos.rglob("*.jpg"))), "more/new.jpg"]
    assert all(row["error"] == "" for row in rows)
    assert [row for row in rows[1:] if row in before] == [row for row in before[1:] if row != before[-2]]


def test_a_table_of_another_model_or_other_columns_is_not_continued(model: Path, photos: Path, tmp_path: Path) -> None:
    predict(model, photos)
    content, other = Path("table.csv").read_bytes(), kept(demo_model("linear", seed=1), tmp_path / "other")
    for changed, how, code in ((other, {}, "resume.other-model"), (model, {"top": 2}, "resume.other-columns")):
        with pytest.raises(UsageError) as refused:
            predict(changed, photos, resume=True, **how)
        assert refused.value.code == code
    Path("table.csv.record.json").unlink()
    with pytest.raises(UsageError) as refused:
        predict(model, photos, resume=True)
    assert refused.value.code == "resume.other-model"
    assert Path("table.csv").read_bytes() == content and not Path("table.csv.part").exists()


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("gone.jpg", "data.missing-source"),
        ("gone/*.jpg", "data.no-images"),
        ("empty", "data.no-images"),
        ("empty.csv", "data.empty-table"),
        ("names.csv", "data.missing-column"),
        ("folder:gone", "data.missing-folder"),
        ("shards:https://example.org/{0..1}.tar", "data.streamed"),
        ("demo-segmentation", "recipe.unfit-task"),
    ],
)
def test_what_is_no_source_is_refused_before_anything_is_written(
    source: str, code: str, model: Path, photos: Path
) -> None:
    Path("empty").mkdir()
    Path("empty.csv").write_text("path\n")
    Path("names.csv").write_text("name\na.jpg\n")
    before = sorted(Path().rglob("*"))
    with pytest.raises(ToastError) as refused:
        predict(model, photos, source)
    assert refused.value.code == code
    assert sorted(Path().rglob("*")) == before


def test_memory_is_that_of_a_batch(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8))
    size = len(large.tobytes())
    for number in range(24):
        large.save(f"{number:02}.jpg", quality=30)
    paths = sorted(map(str, tmp_path.glob("*.jpg")))
    loaded = toast_cli.load(model)

    def measure(count: int) -> dict[str, int]:
        used = {}
        for name, work in {
            "table": lambda: predict(model, *paths[:count], batch_size=2),
            "api": lambda: loaded.predict(paths[:count], batch_size=12),
        }.items():
            work()
            forget_peak()
            before = peak()
            work()
            used[name] = peak() - before
        return used

    used = measure(24)
    assert used["table"] < 6 * size and used["api"] < 6 * size, {name: each / size for name, each in used.items()}


def test_several_labels_and_numbers_have_columns_of_their_own() -> None:
    scores = torch.tensor([[0.2, 0.9, 0.6], [0.1, 0.3, 0.2]])
    labels = LabelAnswers(["a", "b", "c"], 2, True, [0.5] * 3)
    assert [column.name for column in labels.columns] == [
        *("labels", "label_1", "probability_1", "label_2", "probability_2", "p_a", "p_b", "p_c"),
    ]  # fmt: skip
    assert labels.format_cells(scores)[0] == pytest.approx(["b|c", "b", 0.9, "c", 0.6, 0.2, 0.9, 0.6])
    assert [row[0] for row in labels.format_cells(scores)] == ["b|c", ""]
    assert LabelAnswers(["a", "b", "c"], 2, False, [0.1, 0.95, 0.1]).format_cells(scores)[0][0] == "a|c"
    numbers = NumberAnswers(["age", "path"])
    assert [column.name for column in numbers.columns] == ["age", "path-2"]
    assert numbers.format_cells(torch.tensor([[1234567.0, float("nan")]])) == [[1234570.0, None]]


def test_avif_is_read(model: Path, photos: Path) -> None:
    Image.open(photos / "0 ü [x].jpg").save("a.avif")
    assert predict(model, "a.avif").summary.broken == {}


def test_heic_is_read_if_pillow_heif_is_installed(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class HeifImage(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (40, 30), "RGB"

        def load(self) -> Any:
            self.im = Image.new("RGB", self.size).im
            return Image.Image.load(self)

    def register_heif_opener() -> None:
        Image.register_open("HEIF", HeifImage, lambda start: start[4:12] == b"ftypheic")
        Image.register_extension("HEIF", ".heic")

    Image.init()
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    (photos / "0.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    caches = (file_formats.get_image_formats, file_formats.get_image_suffixes)
    try:
        for cache in caches:
            cache.cache_clear()
        assert ".heic" in file_formats.get_image_suffixes()
        assert predict(model, photos).summary.broken == {}
    finally:
        for cache in caches:
            cache.cache_clear()
