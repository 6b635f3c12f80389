"""`toast eval --attention` and `--sweep` on data as users have them: in another order, with broken files, as grids."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import toast
from tests.scenes import CLASSES, demo_model, kept, recipe_of, scenes, viewer_of
from toast_cli.model.recipe_data import open_data

COUNT = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with two passes that skips what cannot be read, a batch being two images."""
    return kept(
        demo_model(),
        tmp_path_factory.mktemp("looking") / "run",
        images={"on_error": "skip"},
        training={"eval_batch_size": 2},
    )


@pytest.fixture
def folder(here: Path) -> Path:
    """Test scenes as files, a folder a class, whose order is that of their spelling."""
    for name in CLASSES:
        (here / "data/test" / name).mkdir(parents=True)
    for number, scene in enumerate(scenes(COUNT)):
        scene.image.save(here / "data/test" / CLASSES[scene.label] / f"{number}.png")
    for part in ("train", "val"):
        for name in CLASSES:
            (here / "data" / part / name).mkdir(parents=True)
            scenes(1)[0].image.save(here / "data" / part / name / "0.png")
    return here / "data"


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_classes_in_another_order_are_taken_in_the_runs(run: Path, folder: Path) -> None:
    assert tuple(sorted(CLASSES)) != CLASSES
    data = ["--run", run, "--dataset", f"folder:{folder}"]
    plain = toast("eval", *data, "--json")
    said = toast("eval", *data, "--attention", "--curve-images", "0", "--out", "n.json")
    assert said.code == 0, said.err
    assert "another order" in said.err
    lines = read(Path("n-numbers/per_image.csv"))
    assert len(lines) == COUNT and all(Path(line["image"]).parent.name == line["class"] for line in lines)
    right = sum(int(line["correct"]) for line in lines) / COUNT
    assert right == pytest.approx(json.loads(plain.out)["test"]["accuracy"])
    assert toast("compare", run, run, "--dataset", f"folder:{folder}", "--images", "1").code == 0


def test_what_cannot_be_read_is_skipped_and_said_and_has_no_numbers_and_no_curves(run: Path, folder: Path) -> None:
    files = sorted(folder.glob("test/*/*.png"))
    broken = [files[0], files[1], files[4]]  # a whole batch, and one of another
    for file in broken:
        file.write_text("no image")
    names = {str(file.relative_to(folder)) for file in files}
    lost = {str(file.relative_to(folder)) for file in broken}
    data = ["--run", run, "--dataset", f"folder:{folder}"]
    said = toast("eval", *data, "--attention", "--curve-images", "6", "--out", "n.json", "--json")
    assert said.code == 0, said.err
    assert "3 could not be read and were skipped" in said.err
    found = json.loads(said.out)
    assert found["skipped"] == json.loads(toast("eval", *data, "--json").out)["skipped"]
    assert set(found["skipped"]["test"]) == lost
    assert found["images"] == found["curves"]["images"] == COUNT - 3
    for file in ("per_image.csv", "curves_per_image.csv"):
        assert {line["image"] for line in read(Path("n-numbers") / file)} == names - lost
    swept = toast("eval", *data, "--sweep", "--out", "s.json", "--json")
    assert swept.code == 0 and "3 could not be read" in swept.err
    assert json.loads(swept.out)["images"] == COUNT - 3
    for file in files:
        file.write_text("no image")
    for what in ("--attention", "--sweep"):
        toast("eval", *data, what).fails(1, "toast data check", error="data.no-readable-image")


def test_numbers_are_kept_with_how_they_were_made_and_never_mixed_with_others(run: Path, here: Path) -> None:
    home = run / "attention"

    def measured(*how: str) -> None:
        said = toast("eval", "--run", run, "--attention", "--limit", "4", *how)
        assert said.code == 0, said.err

    measured("--layer", "0", "--curve-images", "2")
    before = {file: file.read_bytes() for file in (home / "numbers-test-layer0").iterdir()}
    measured("--layer", "2", "--alpha", "0.5", "--head", "1", "--curve-images", "0")
    measured("--curve-images", "2")
    assert {folder.name for folder in home.iterdir()} == {
        "numbers-test-layer0", "numbers-test-layer2-head-1-alpha0.5", "numbers-test",
    }  # fmt: skip
    assert all(file.read_bytes() == held for file, held in before.items())
    tables = {"numbers.json", "per_class.csv", "per_image.csv"}
    curves = {"curves.csv", "curves_per_image.csv", "curves.png"}
    assert (
        {file.name for file in before} == {file.name for file in (home / "numbers-test").iterdir()} == tables | curves
    )
    (home / "numbers-test/my notes.txt").touch()
    measured("--curve-images", "0")
    assert {file.name for file in (home / "numbers-test").iterdir()} == tables | {"my notes.txt"}

    record = json.loads((home / "numbers-test-layer2-head-1-alpha0.5/numbers.json").read_text())
    assert (record["layer"], record["head"], record["alpha"], record["limit"]) == (2, 1, 0.5, 4)
    assert (record["dataset"], record["split"], record["backbone"], record["method"]) == (
        "demo", "test", "vit_demo_3", "toast",
    )  # fmt: skip
    assert record["run_fingerprint"] and record["backbone_fingerprint"] and record["weights"]
    inside = record["numbers"]["pass_two"]["share_inside"]
    assert inside["low"] < inside["mean"] < inside["high"]
    last = json.loads((home / "numbers-test/numbers.json").read_text())
    assert last["layer"] == len(demo_model().backbone.levels) - 1 and last["alpha"] == 1

    said = toast("eval", "--run", run, "--sweep", "--limit", "4", "--layer", "0", "--json")
    swept = json.loads((home / "strength-test-layer0/numbers.json").read_text())
    assert swept == json.loads(said.out) and len(swept["strengths"]) == 9
    assert swept["run_fingerprint"] == record["run_fingerprint"] and swept["layer"] == 0


def test_a_sweep_tells_of_pass_two_what_measuring_at_that_strength_tells(run: Path, here: Path) -> None:
    said = toast("eval", "--run", run, "--sweep", "--limit", "4", "--out", "s.json", "--json")
    swept = {line["alpha"]: line for line in json.loads(said.out)["strengths"]}
    said = toast(
        "eval", "--run", run, "--attention", "--alpha", "0.5", "--limit", "4", "--curve-images", "0", "--out", "n.json",
        "--json",
    )  # fmt: skip
    found = json.loads(said.out)["numbers"]
    inside = {name: found[name]["share_inside"]["mean"] for name in ("pass_one", "pass_two")}
    assert swept[0.5]["share_inside"]["mean"] == pytest.approx(inside["pass_two"], abs=1e-6)
    assert abs(inside["pass_two"] - inside["pass_one"]) > 1e-3
    assert swept[0.0]["share_inside"]["mean"] == pytest.approx(inside["pass_one"], abs=1e-6)


def test_a_sweep_whose_strength_zero_still_steers_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toast_cli.evaluation.attention_evaluation.set_feedback_strength", lambda model, alpha: None)
    toast("eval", "--run", run, "--sweep", "--limit", "4").fails(1, error="attention.not-the-plain-backbone")


def test_on_grids_the_labelled_cell_wins_that_has_most_of_the_map(here: Path) -> None:
    few = {"train_images": 20, "val_images": 20, "test_images": 20}
    mosaics = {"name": "grid", "path": "demo+demo", "photographs": few, "distractors": few}
    kept(demo_model(), here / "grids", dataset=mosaics)
    said = toast(
        "eval", "--run", "grids", "--attention", "--limit", "6", "--curve-images", "0", "--out", "n.json", "--json"
    )
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["object"] == "the cell of the labelled photograph"
    assert found["numbers"]["even"]["grid_hit"]["mean"] == found["numbers"]["even"]["share_inside"]["mean"] == 0.25
    recipe = recipe_of(dataset=mosaics)
    split = open_data(recipe).splits["test"]
    places = {name: index for index, name in enumerate(split.names)}  # type: ignore[attr-defined]
    viewer = viewer_of(demo_model())
    for line in read(Path("n-numbers/per_image.csv")):
        sample = split.load(places[line["image"]])  # type: ignore[attr-defined]
        maps = viewer.recorder.record(viewer.transform(sample.image)[0][None]).get_maps()
        for name in ("pass_one", "similarity", "pass_two"):
            cells = maps[name][0].unflatten(1, (2, 4)).unflatten(0, (2, 4)).sum((1, 3))  # of 8 by 8, 4 by 4 in each
            labelled = int(np.argmax(sample.mask[[0, 0, -1, -1], [0, -1, 0, -1]]))
            assert float(line[f"{name}/grid_hit"]) == (int(cells.flatten().argmax()) == labelled)
            share = float(cells.flatten()[labelled] / cells.sum())
            assert float(line[f"{name}/share_inside"]) == pytest.approx(share, abs=1e-4)
