"""Data that changed since a run is named wherever the run meets it again: resume, eval, suites, several processes.

Reports of the same kind elsewhere: NVIDIA-NeMo/RL #2519, TensorAuto/OpenTau #502, bghira/SimpleTuner #3093.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import layouts
from tests.cli.conftest import toast
from tests.forks import begin, two_of_a_group
from toast_cli.data.base import DataSet
from toast_cli.data.identity import DataIdentity, describe_data_differences, identify_data
from toast_cli.data.segmentation.dataset import SegmentationSplit
from toast_cli.model.recipe_data import open_data
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training import tune
from toast_cli.training.data import run_data
from toast_cli.training.data.run_data import (
    check_resumed_data,
    describe_changed_split,
    open_shared_data,
    read_data_record,
)
from toast_cli.training.distributed import collectives
from toast_cli.utils.errors import ToastError


def draw(file: Path, shade: int) -> None:
    """An image whose file has another size for another shade."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + shade, 24), (shade, 90, 255 - shade)).save(file)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for shade, name in enumerate(("blue", "green", "red")):
        for number in range(10):
            draw(tmp_path / "data" / name / f"{number}.png", 20 * shade + number)
    return tmp_path / "data"


def recipe_of(dataset: Any, **more: Any) -> Recipe:
    return build_recipe({"backbone": "vit_demo", "dataset": dataset, "method": "linear", **more}, {}, origin="a test")


def identify(dataset: Any) -> DataIdentity:
    return identify_data(open_data(recipe_of(dataset)))


def rename_class(data: Path) -> None:
    (data / "red").rename(data / "apple")


def add_class(data: Path) -> None:
    for number in range(4):
        draw(data / "zebra" / f"{number}.png", 99 + number)


def remove_class(data: Path) -> None:
    shutil.rmtree(data / "green")


def add_images(data: Path) -> None:
    for number in range(3):
        draw(data / "red" / f"new{number}.png", 150 + number)


def remove_image(data: Path) -> None:
    (data / "red" / "4.png").unlink()


def rename_image(data: Path) -> None:
    (data / "red" / "4.png").rename(data / "red" / "44.png")


def replace_image(data: Path) -> None:
    draw(data / "red" / "4.png", 200)


def move_image(data: Path) -> None:
    (data / "red" / "4.png").rename(data / "blue" / "moved.png")


CHANGES: dict[Callable[[Path], None], tuple[str, ...]] = {
    rename_class: ("not in the data: red", "only in the data: apple"),
    add_class: ("only in the data: zebra", "added (zebra/"),
    remove_class: ("not in the data: green", "removed (green/"),
    add_images: ("added (red/new",),
    remove_image: ("removed (red/",),
    rename_image: ("added (red/44.png)", "removed (red/4.png)"),
    replace_image: ("1 with other content (red/4.png)",),
    move_image: ("added (blue/moved.png)", "removed (red/4.png)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_folder_is_named(folder: Path, change: Callable[[Path], None]) -> None:
    before = identify(f"folder:{folder}")
    assert describe_data_differences(before, before) == []
    change(folder)
    said = " ".join(describe_data_differences(before, identify(f"folder:{folder}")))
    assert all(words in said for words in CHANGES[change]), said


def test_a_copy_with_other_times_is_the_same_data(folder: Path, tmp_path: Path) -> None:
    before = identify(f"folder:{folder}")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    for number, file in enumerate((tmp_path / "copy").rglob("*.png")):
        os.utime(file, (number, number))
    assert identify(f"folder:{tmp_path / 'copy'}") == before


def test_images_of_training_that_come_into_test_are_counted(folder: Path) -> None:
    before = identify(f"folder:{folder}")
    after = identify({"name": "folder", "path": str(folder), "split_seed": 3})
    assert any("that were in train" in line for line in describe_data_differences(before, after))


def zipped(folder: Path) -> str:
    with zipfile.ZipFile(folder.parent / "data.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return f"archive:{folder.parent / 'data.zip'}"


def tarred(folder: Path) -> str:
    with tarfile.open(folder.parent / "data.tar", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.add(file, str(file.relative_to(folder)))
    return f"archive:{folder.parent / 'data.tar'}"


def tabled(folder: Path, *, renamed: str = "red", order: int = 1) -> str:
    rows = [f"data/{file.relative_to(folder)},{file.parent.name}" for file in sorted(folder.rglob("*.*"))][::order]
    table = folder.parent / "data.csv"
    table.write_text("\n".join(["path,label", *rows]).replace(",red", f",{renamed}") + "\n")
    return f"table:{table}"


def listed(folder: Path, answer: str = "yes") -> str:
    entries = [{"instruction": f"Say yes, {n}.", "input": "", "output": answer} for n in range(20)]
    (folder.parent / "texts.json").write_text(json.dumps(entries))
    return f"alpaca:{folder.parent / 'texts.json'}"


def documents(folder: Path, last: str = "the end") -> str:
    (folder.parent / "texts.txt").write_text("\n".join([*(f"line {n}" for n in range(300)), last]))
    return f"text:{folder.parent / 'texts.txt'}"


def test_other_sources_name_changes_too(folder: Path) -> None:
    """Also where names stay: a class that is renamed in a table, a replaced file in an archive, an edited text."""
    before = {make: identify(make(folder)) for make in (zipped, tabled, listed, documents)}
    assert all(identify(make(folder)) == known for make, known in before.items())

    def said(dataset: str, make: Any) -> str:
        return " ".join(describe_data_differences(before[make], identify(dataset)))

    assert "not in the data: red; only in the data: rot" in said(tabled(folder, renamed="rot"), tabled)
    assert "in another order" in said(tabled(folder, order=-1), tabled)
    assert "with other content (texts.json, entry" in said(listed(folder, answer="no"), listed)
    assert "train: " in said(documents(folder, last="another end"), documents)
    replace_image(folder)
    assert "1 with other content (red/4.png)" in said(zipped(folder), zipped)


def paint(file: Path, shade: int, colour: int) -> None:
    """A raw image whose file has one size, whatever its colour."""
    Image.new("RGB", (160, 120), (shade, colour, 0)).save(file)


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "tif"])
@pytest.mark.parametrize("pack", [lambda folder: f"folder:{folder}", zipped, tarred, tabled])
def test_other_content_of_the_same_size_is_noticed(folder: Path, suffix: str, pack: Callable[[Path], str]) -> None:
    for file in folder.rglob("*.png"):
        paint(file.with_suffix(f".{suffix}"), int(file.stem), 0)
        file.unlink()
    before = identify(pack(folder))
    changed = folder / "red" / f"4.{suffix}"
    size = changed.stat().st_size
    paint(changed, 4, 1)
    assert changed.stat().st_size == size
    (said,) = describe_data_differences(before, identify(pack(folder)))
    assert "1 with other content (" in said and f"red/4.{suffix}" in said


def test_a_class_map_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    split = SegmentationSplit(((tmp_path / "a.bmp", tmp_path / "b.bmp"),), ("one", "two"))
    paint(tmp_path / "a.bmp", 0, 0)
    paint(tmp_path / "b.bmp", 1, 0)
    before = split.stamp(0)
    paint(tmp_path / "b.bmp", 2, 0)
    assert split.stamp(0) != before


def test_longer_splits_and_runs_of_earlier_versions_are_compared_by_their_hashes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toast_cli.data.identity.MAX_LISTED_SAMPLES", 4)
    before = identify(f"folder:{folder}")
    assert before.splits["train"].listed is None
    rename_image(folder)
    assert any(
        "with other names or labels" in line for line in describe_data_differences(before, identify("folder:data"))
    )
    old = folder.parent / "old"
    old.mkdir()
    results = {"samples": {"test": 6}, "split_hashes": {"test": before.splits["test"].hash}}
    (old / "results.json").write_text(json.dumps(results))
    data = open_data(recipe_of("folder:data"))
    assert read_data_record(old / "adapter") is None and read_data_record(folder) is None
    monkeypatch.setattr("toast_cli.training.data.run_data.identify_split", lambda split: before.splits["test"])
    assert describe_changed_split(old, "test", data) is None
    (old / "results.json").write_text(json.dumps({**results, "split_hashes": {"test": "00000000"}}))
    assert "test: " in str(describe_changed_split(old, "test", data))


SMALL = ["--backbone", "vit_demo", "--method", "linear", "--device", "cpu", "training.batch_size=8"]


def test_an_interrupted_run_refuses_changed_data_and_resumes_with_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["tune", *SMALL, "--dataset", "folder:data", "training.epochs=2"]
    assert toast(*words, "--output-dir", "whole").code == 0
    end_epoch = tune.TrainingLoop.end_epoch

    def stop_after_first(loop: Any, metrics: Any) -> None:
        end_epoch(loop, metrics)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune.TrainingLoop, "end_epoch", stop_after_first)
        assert toast(*words, "--output-dir", "cut").code == 130
    shutil.copytree(folder, "kept")
    files = {file: file.read_bytes() for file in Path("cut").rglob("*") if file.is_file()}
    for change in (rename_class, add_images, replace_image):
        change(folder)
        toast("tune", "--resume", "cut").fails(1, *CHANGES[change], "cut/recipe.yaml", error="resume.changed-data")
        assert {file: file.read_bytes() for file in Path("cut").rglob("*") if file.is_file()} == files
        shutil.rmtree(folder)
        shutil.copytree("kept", folder)
    (Path("cut") / "data.json").rename("data.json")  # as a run of an earlier version
    add_class(folder)
    toast("tune", "--resume", "cut").fails(1, "number of classes", error="checkpoint.wrong-model")
    shutil.rmtree(folder / "zebra")
    Path("data.json").rename(Path("cut") / "data.json")
    assert toast("tune", "--resume", "cut").code == 0
    name = "adapter/adapter_model.safetensors"
    assert (Path("cut") / name).read_bytes() == (Path("whole") / name).read_bytes()

    said = toast("eval", "--run", "whole")
    assert said.code == 0 and "has changed" not in said.err
    add_images(folder)
    said = toast("eval", "--run", "whole/adapter")
    assert said.code == 0 and "test: " in said.err and "cannot be compared" in said.err
    said = toast("visualize-attention", "--run", "whole", "--test-image", "0", "--out", "seen")
    assert said.code == 0 and "test: " in said.err and "another image" in said.err
    rename_class(folder)
    toast("eval", "--run", "whole").fails(
        1, "not in the data: red; only in the data: apple", error="data.wrong-classes"
    )


class TwoProcesses:
    num_processes = 2


def gather_with(monkeypatch: pytest.MonkeyPatch, other: Callable[[list[Any]], Any]) -> None:
    for module in (run_data, collectives):
        monkeypatch.setattr(module, "gather_object", lambda mine: [*mine, other(mine)])


def test_processes_with_other_data_stop_and_name_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("folder:data")
    gather_with(monkeypatch, lambda mine: mine[0])
    assert isinstance(open_shared_data(recipe, TwoProcesses()), DataSet)  # type: ignore[arg-type]
    ours = identify("folder:data")
    shutil.copytree(folder, "other")
    add_images(folder.parent / "other")
    theirs = identify("folder:other")
    found = {DataIdentity: theirs, list: theirs.summary()}  # by what is gathered; else there is no error
    gather_with(monkeypatch, lambda mine: found.get(type(mine[0])))
    with pytest.raises(ToastError, match=r"Process 1 of 2 has other data than process 0[\s\S]*red/new") as caught:
        open_shared_data(recipe, TwoProcesses())  # type: ignore[arg-type]
    assert caught.value.code == "data.unequal-processes"
    failure = ("There is no folder data.", ("",), "Check it.", 2, "data.missing-folder")
    gather_with(monkeypatch, lambda mine: failure if mine[0] is None else DataIdentity().summary())
    with pytest.raises(ToastError, match="In process 1 of 2") as caught:
        open_shared_data(recipe, TwoProcesses())  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit_code) == ("data.missing-folder", 2)
    assert not check_resumed_data(folder, ours)  # nothing recorded, nothing to compare


@pytest.mark.nightly
@pytest.mark.parametrize("change", [add_images, shutil.rmtree])
def test_two_machines_with_other_data_stop_with_one_message(folder: Path, change: Callable[[Path], None]) -> None:
    shutil.copytree(folder, "machine/data")
    change(Path("machine/data"))
    words = ["tune", *SMALL, "--dataset", "folder:data", "training.epochs=1", "--output-dir", folder.parent / "run"]
    commands = [
        begin(folder.parent / f"said{rank}", *words, folder=place, **environment)
        for rank, (place, environment) in enumerate(zip((Path(), Path("machine")), two_of_a_group(), strict=True))
    ]
    assert [command.end() for command in commands] == [1, 1]
    said = commands[0].err + commands[1].err
    assert "rocess 1 of 2" in said and "Traceback" not in said
    assert not (folder.parent / "run").exists()


SUITE = """
backbone: vit_demo
datasets: {{Shades: folder:{}}}
rows:
  one: {{method: linear}}
  two: {{method: linear, set: {{training.lr: 0.02}}}}
seeds: [0]
"""


@pytest.mark.e2e
def test_a_suite_makes_no_further_runs_on_changed_data(folder: Path) -> None:
    Path("suite.yaml").write_text(SUITE.format(folder))
    words = ["bench", "suite.yaml", "--out", "out", "--device", "cpu", "training.epochs=1"]
    assert toast(*words, "--join", "--row", "one").code == 0
    record = next(Path("out", "runs").glob("*/data.json")).rename("record.json")
    add_images(folder)
    changed = ["'Shades'", "Shades-one-seed0", "new --out"]
    toast(*words).fails(1, "other names or labels", *changed, error="bench.changed-data")  # by the ledger alone
    record.rename(next(Path("out", "runs").iterdir()) / "data.json")
    toast(*words, "--dry-run").fails(1, "added (red/new", *changed, error="bench.changed-data")
    for number in range(3):
        (folder / "red" / f"new{number}.png").unlink()
    assert toast(*words, "--join").code == 0
    add_images(folder)
    assert toast(*words, "--join").code == 0, "no run is to be made"


def test_shards_that_were_packed_again_under_the_same_names_are_noticed(folder: Path) -> None:
    pytest.importorskip("datasets")
    dataset = {"name": "shards", "path": layouts.shards(folder.parent).partition(":")[2], "classes": 3, "val_shards": 0}
    before = identify(dataset)
    assert describe_data_differences(before, identify(dataset)) == []
    place = folder.parent / "shards" / "train-0001.tar"
    size = place.stat().st_size
    with tarfile.open(place) as archive:
        content = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    content["000006.cls"] = b"1"
    layouts.tarred(place, content)
    assert place.stat().st_size == size
    (line,) = describe_data_differences(before, identify(dataset))
    assert "train: 24 samples" in line and "other content" in line


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_a_table_that_were_replaced_are_noticed(tmp_path: Path, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")

    def write(first: int) -> None:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        images = [{"bytes": layouts.encoded(first if number == 0 else number), "path": None} for number in range(8)]
        rows = {"image": images, "label": [0, 1] * 4}
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data" / "train.parquet"))

    def identify_table() -> DataIdentity:
        options = {"name": "hf", "path": str(tmp_path / "data"), "streaming": streaming}
        return identify(options | ({"samples": 8} if streaming else {"val_fraction": 0, "test_fraction": 0}))

    write(0)
    before = identify_table()
    assert describe_data_differences(before, identify_table()) == []
    write(60)
    assert "other content" in " ".join(describe_data_differences(before, identify_table()))


def test_damaged_results_are_not_taken_for_a_run_without_a_record(tmp_path: Path) -> None:
    assert read_data_record(tmp_path) is None
    (tmp_path / "results.json").write_text('{"split_hashes": ')
    with pytest.raises(ToastError, match="damaged"):
        read_data_record(tmp_path)
