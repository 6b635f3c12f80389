"""The same photographs as a folder, a table, an archive and a Hugging Face data set: one result."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toast_cli import registry
from toast_cli.data.base import DataSet
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.recipe.parse import build_dataset_options

Pack = Callable[[Path], str]
"""Packs a folder of images some other way, and returns what `--dataset` calls the result."""


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colours, as JPEG likes them."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


CLASSES = ("Bläuling", "cat 2")
NUMBERS = ("2", "10")
"""Classes that are numbers are in the order of numbers."""


@pytest.fixture(params=[("whole", CLASSES), ("split", CLASSES), ("whole", NUMBERS), ("split", NUMBERS)])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Photographs of two classes: upright and turned, grey, with names that are not ASCII, split or not."""
    root = tmp_path / "photographs"
    kind, classes = request.param
    parts = [""] if kind == "whole" else ["train/", "val/", "test/"]
    for part in parts:
        for label, name in enumerate(classes):
            folder = root / f"{part}{name}"
            folder.mkdir(parents=True)
            for number in range(8):
                image = photograph(100 * label + 10 * len(part) + number, (40 + number, 30))
                exif = Image.Exif()
                exif[0x0112] = 6 if number == 3 else 1
                (image.convert("L") if number == 4 else image).save(folder / f"Ünï {number}.jpg", exif=exif)
    return root


def as_folder(root: Path) -> str:
    return f"folder:{root}"


def _lines(root: Path) -> list[dict[str, str]]:
    lines = []
    for file in sorted(root.rglob("*.jpg"), key=lambda file: (file.parent.name not in ("Bläuling", "2"), file)):
        path = file.relative_to(root)
        split = {"split": path.parts[0]} if len(path.parts) == 3 else {}
        lines.append({"path": path.as_posix(), "label": path.parts[-2], **split})
    return lines


def as_csv(root: Path) -> str:
    lines = _lines(root)
    with (root / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return f"table:{root / 'images.csv'}"


def as_parquet(root: Path) -> str:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(_lines(root)), root / "images.parquet")
    return f"table:{root / 'images.parquet'}"


def as_zip(root: Path) -> str:
    with zipfile.ZipFile(root.parent / "photographs.zip", "w") as archive:
        for file in sorted(root.rglob("*.jpg"), reverse=True):
            archive.write(file, file.relative_to(root))
    return f"archive:{root.parent / 'photographs.zip'}"


def as_zip_of_a_folder(root: Path) -> str:
    with zipfile.ZipFile(root.parent / "photographs.zip", "w") as archive:
        for file in sorted(root.rglob("*.jpg")):
            archive.write(file, file.relative_to(root.parent))
    return f"archive:{root.parent / 'photographs.zip'}"


def as_tar(root: Path) -> str:
    with tarfile.open(root.parent / "photographs.tar", "w") as archive:
        archive.add(root, ".")
    return f"archive:{root.parent / 'photographs.tar'}"


def as_hf(root: Path) -> str:
    return f"hf:{root}"


def as_hf_behind_a_link(root: Path) -> str:
    (root.parent / "link").symlink_to(root)
    return f"hf:{root.parent / 'link'}"


PACKS = [as_folder, as_csv, as_parquet, as_zip, as_zip_of_a_folder, as_tar, as_hf, as_hf_behind_a_link]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library keeps its cache here, and says nothing."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def opened(dataset: str) -> DataSet:
    options = build_dataset_options(dataset)
    return registry.load_entry(registry.SOURCES, options.name).open(options, None)


@pytest.mark.parametrize("pack", PACKS)
def test_every_source_gives_the_same_images_in_the_same_order_in_every_process(root: Path, pack: Pack) -> None:
    folder, other = opened(as_folder(root)), opened(pack(root))
    assert other.classes == folder.classes and folder.classes in (CLASSES, NUMBERS)
    assert set(other.splits) == {"train", "val", "test"}
    for part, split in folder.splits.items():
        found = other.splits[part]
        assert isinstance(split, FileSplit) and isinstance(found, FileSplit)
        assert (found.names, found.labels) == (split.names, split.labels), part
        elsewhere = pickle.loads(pickle.dumps(found))
        for index in range(len(split)):
            np.testing.assert_array_equal(found.load(index).image, split.load(index).image)
        np.testing.assert_array_equal(elsewhere.load(0).image, split.load(0).image)
    assert [note.partition("split ")[2] for note in other.notes] == [
        note.partition("split ")[2] for note in folder.notes
    ]


def test_images_within_parquet_files_are_read_as_well(root: Path, tmp_path: Path) -> None:
    import datasets

    folder = opened(as_folder(root))
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=list(folder.classes)),
            "number": datasets.Value("int64"),
        }
    )
    for part, split in folder.splits.items():
        assert isinstance(split, FileSplit)
        bytes_of = [(split.root / name).read_bytes() for name in split.names]
        rows = {"photo": [{"bytes": each, "path": None} for each in bytes_of], "kind": list(split.labels)}
        table = datasets.Dataset.from_dict({**rows, "number": list(range(len(split)))}, features=features)
        (tmp_path / "packed").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "packed" / f"{'validation' if part == 'val' else part}-00000-of-00001.parquet")
    found = opened(f"hf:{tmp_path / 'packed'}")
    assert found.classes == folder.classes
    for part, split in folder.splits.items():
        assert isinstance(split, FileSplit)
        assert found.splits[part].labels == split.labels
        for index in range(len(split)):
            np.testing.assert_array_equal(found.splits[part].load(index).image, split.load(index).image)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Photographs of three species, in class folders of their own."""
    real = os.environ.get("TOAST_REAL_DATA")
    where = Path(real or ".") / "cub10/CUB_200_2011/images"
    if real is None or not where.is_dir():
        pytest.skip("TOAST_REAL_DATA does not name a folder of real photographs (cub10/CUB_200_2011/images in it)")
    root = tmp_path / "birds"
    for species in sorted(where.iterdir())[:3]:
        (root / species.name).mkdir(parents=True)
        for file in sorted(species.glob("*.jpg"))[:20]:
            shutil.copy(file, root / species.name)
    return root


@pytest.mark.slow
def test_real_photographs_give_identical_results_whatever_they_are_packed_in(birds: Path, tmp_path: Path) -> None:
    from tests.cli.conftest import toast

    found = {}
    for pack in (as_folder, as_csv, as_zip, as_hf):
        dataset, run = pack(birds), tmp_path / pack.__name__
        said = toast(
            "tune", "--backbone", "vit:test_vit", "--weights", "none", "--dataset", dataset, "--method", "linear",
            "--device", "cpu", "--output-dir", run, "training.epochs=2", "training.warmup_epochs=0",
        )  # fmt: skip
        assert said.code == 0, said.err
        results = json.loads((run / "results.json").read_text())
        weights = (run / "adapter/adapter_model.safetensors").read_bytes()
        found[pack.__name__] = results["samples"], results["validation"], results["test"], weights
    assert found["as_folder"][0] == {"train": 42, "val": 6, "test": 12}
    assert all(each == found["as_folder"] for each in found.values())


@pytest.mark.e2e
def test_the_sources_are_imported_without_anything_heavy() -> None:
    modules = (
        *("images.image_folder", "images.archive", "images.table", "streams.hugging_face", "streams.webdataset"),
        *("demo.mosaics", "datasets.vtab", "datasets.imagenet", "datasets.nabirds", "datasets.cars", "datasets.cub"),
    )
    heavy = "('torch', 'numpy', 'PIL', 'datasets', 'pyarrow', 'scipy')"
    imported = ", ".join(f"toast_cli.data.{module}" for module in modules)
    code = f"import sys, {imported}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
