"""torchvision's sets: tiny copies in their layouts, read through torchvision's own classes."""

from __future__ import annotations

import pickle
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from tests import layouts
from tests.layouts import lines, photograph, put
from toast_cli.data.base import DataSet
from toast_cli.data.datasets.torchvision_catalog import OTHER_SETS, SETS
from toast_cli.data.datasets.torchvision_sets import TorchvisionOptions, open_torchvision
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.errors import ToastError, UsageError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(name: str, where: Path | None, **options: Any) -> DataSet:
    return open_torchvision(TorchvisionOptions(path=name, **options), where)


def sizes(data: DataSet) -> dict[str, int]:
    return {part: len(split) for part, split in data.splits.items()}


def draw_eurosat(root: Path) -> None:
    for number in range(20):
        put(root / "eurosat/2750" / ("Forest" if number % 2 else "River") / f"{number}.jpg", number)


def test_a_set_without_splits_has_them_held_out_and_reads_its_files_itself(tmp_path: Path) -> None:
    draw_eurosat(tmp_path)
    data = opened("eurosat", tmp_path)
    assert data.classes == ("Forest", "River") and sizes(data) == {"train": 14, "test": 4, "val": 2}
    split: Any = data.splits["train"]
    assert split.folders == {tmp_path / "eurosat/2750"} and split.stamp(0)
    sample = split.load(0)
    assert sample.name.startswith(data.classes[sample.label]) and sample.image.size == (40, 30)


def test_official_splits_are_kept_and_validation_is_held_out_of_train(tmp_path: Path) -> None:
    layouts.torchvision(tmp_path)
    data = opened("OxfordIIITPet", tmp_path)
    assert data.classes == ("Abyssinian", "American Bulldog")
    assert sizes(data) == {"train": 8, "val": 2, "test": 4}
    assert any("validation: 10% of train held out" in note for note in data.notes)
    assert sizes(opened("OxfordIIITPet", tmp_path, val_fraction=0, shots=2)) == {"train": 4, "test": 4}


def test_a_class_file_orders_the_classes(tmp_path: Path) -> None:
    layouts.torchvision(tmp_path)
    lines(tmp_path / "classes.txt", ["American Bulldog", "Abyssinian"])
    plain = opened("OxfordIIITPet", tmp_path)
    ordered = opened("OxfordIIITPet", tmp_path, class_file=str(tmp_path / "classes.txt"))
    first: Any = plain.splits["test"]
    second: Any = ordered.splits["test"]
    assert ordered.classes == plain.classes[::-1] and first.names == second.names
    assert [1 - label for label in first.labels] == list(second.labels)


def draw_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles of torchvision's layout, with the checksums that torchvision compares before it reads them."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def save(name: str, content: Any) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5((folder / name).read_bytes()).hexdigest()]

    def draw(count: int) -> dict[str, Any]:
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [number % 2 for number in range(count)]}

    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [save("data_batch_1", draw(20))])
    monkeypatch.setattr(cifar, "test_list", [save("test_batch", draw(6))])
    name, checksum = save("batches.meta", {"label_names": ["airplane", "automobile"]})
    monkeypatch.setattr(cifar, "meta", {"filename": name, "key": "label_names", "md5": checksum})


def test_images_in_memory_are_read_and_a_pickle_with_another_checksum_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_cifar(tmp_path, monkeypatch)
    data = opened("cifar10", tmp_path)
    assert data.classes == ("airplane", "automobile") and sizes(data) == {"train": 18, "val": 2, "test": 6}
    split: Any = data.splits["test"]
    sample, pixels = split.load(3), np.random.default_rng(6).integers(0, 256, (6, 3072), dtype=np.uint8)
    assert sample.label == 1 and sample.name == "test/0000003"
    np.testing.assert_array_equal(np.asarray(sample.image), pixels[3].reshape(3, 32, 32).transpose(1, 2, 0))

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "attacked",))

    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ToastError) as refused:
        opened("cifar10", tmp_path)
    assert refused.value.code == "data.invalid-dataset" and not (tmp_path / "attacked").exists()


def draw_voc(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2012"
    for part, ids in {"train": range(6), "val": range(6, 9)}.items():
        lines(folder / "ImageSets/Segmentation" / f"{part}.txt", [f"2007_{number:06d}" for number in ids])
        for number in ids:
            put(folder / f"JPEGImages/2007_{number:06d}.jpg", number)
            classes = np.zeros((30, 40), np.uint8)
            classes[5:10], classes[10] = 15, 255
            (folder / "SegmentationClass").mkdir(exist_ok=True)
            drawn = Image.fromarray(classes, "P")
            drawn.putpalette([value for value in range(256) for _ in range(3)])
            drawn.save(folder / f"SegmentationClass/2007_{number:06d}.png")


def test_a_set_with_a_class_for_every_pixel_is_for_segmentation_by_itself(tmp_path: Path) -> None:
    draw_voc(tmp_path)
    raw = {"backbone": "vit_demo_3", "dataset": "torchvision:vocsegmentation", "method": "linear"}
    recipe = build_recipe(raw, {}, origin="a test")
    assert recipe.task.name == "segmentation" and recipe.dataset.path == "VOCSegmentation"  # type: ignore[attr-defined]
    data = opened("VOCSegmentation", tmp_path)
    assert len(data.classes) == 21 and sizes(data) == {"train": 6, "val": 3}
    split: Any = data.splits["train"]
    sample = split.load(2)
    assert sample.name == "2007_000002.jpg" and sample.image.size == (40, 30)
    assert sample.classes.dtype == np.uint8 and np.unique(sample.classes).tolist() == [0, 15, 255]
    with pytest.raises(UsageError, match=r"dataset\.shots"):
        opened("VOCSegmentation", tmp_path, shots=1)


def test_cityscapes_has_the_19_classes_of_its_benchmark(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for folder, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            (tmp_path / folder / part / "ulm").mkdir(parents=True)
            values = Image.fromarray(np.array([[0, 7, 8], [9, 33, 3]], np.uint8))
            photo = photograph(1, (3, 2))
            (values if folder == "gtFine" else photo).save(tmp_path / folder / part / f"ulm/ulm_0_0_{suffix}.png")
    data = opened("cityscapes", tmp_path)
    assert len(data.classes) == 19 and data.classes[:2] == ("road", "sidewalk") and data.classes[-1] == "bicycle"
    assert data.splits["train"].load(0).classes.tolist() == [[255, 0, 1], [255, 18, 255]]


def test_a_missing_set_is_downloaded_where_asked_and_found_again(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ToastError) as missing:
        opened("EuroSAT", tmp_path)
    assert missing.value.code == "data.missing-dataset" and "dataset.download=true" in missing.value.what_to_do
    asked: list[str] = []

    def download(url: str, download_root: str, **_: Any) -> None:
        asked.append(url)
        draw_eurosat(Path(download_root).parent)

    monkeypatch.setattr("torchvision.datasets.eurosat.download_and_extract_archive", download)
    monkeypatch.chdir(tmp_path)
    assert sizes(opened("EuroSAT", tmp_path / "data", download=True))["train"] == 14
    assert len(asked) == 1 and (tmp_path / "data/eurosat/2750").is_dir()
    opened("EuroSAT", tmp_path / "data", download=True)
    assert len(asked) == 1
    assert sizes(opened("EuroSAT", tmp_path / "data"))["test"] == 4
    (tmp_path / "data/eurosat").rename(tmp_path / "data/other")
    opened("EuroSAT", None, download=True)  # without a folder of data sets, into the cache
    assert len(asked) == 2 and (empty_cache / "torchvision/eurosat/2750").is_dir()


def test_a_download_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.eurosat.download_and_extract_archive", fail)
    with pytest.raises(ToastError) as refused:
        opened("EuroSAT", tmp_path, download=True)
    assert refused.value.code == "data.download-failed" and "no network" in refused.value.why
    with pytest.raises(UsageError) as refused:
        opened("StanfordCars", tmp_path, download=True)
    assert refused.value.code == "data.cannot-download"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("flowers-102", "nearest is 'Flowers102'"), ("CelebA", "40 attributes"), ("imagefolder", "folder:PATH")],
)
def test_other_names_are_refused_with_a_hint(name: str, shown: str) -> None:
    raw = {"backbone": "vit_demo_3", "dataset": f"torchvision:{name}", "method": "linear"}
    with pytest.raises(UsageError) as refused:
        build_recipe(raw, {}, origin="a test")
    assert shown in str(refused.value)


def test_every_listed_set_exists_and_takes_the_arguments_of_its_splits() -> None:
    import inspect

    for name in (*SETS, *OTHER_SETS):
        assert name in torchvision.datasets.__all__
    for name, entry in SETS.items():
        made = getattr(torchvision.datasets, name)
        taken = {each for base in made.__mro__ for each in inspect.signature(base.__init__).parameters}
        needed = {argument for chosen in entry.splits.values() for argument in chosen} | set(entry.extra)
        assert needed | ({"download"} if entry.downloads else set()) <= taken, name
