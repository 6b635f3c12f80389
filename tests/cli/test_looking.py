"""`toast eval --attention` and `--sweep` on data as users have them: in another order, with broken files, as grids."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import toast
from tests.scenes import CLASSES, demo_model, kept, scenes

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
