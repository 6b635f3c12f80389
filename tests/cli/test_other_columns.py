"""Tables whose columns have other names: tuned on, evaluated on another table, and predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toast_cli
from tests.cli.conftest import MakePictures, toast

SHORT = ["--backbone", "vit_demo_3", "--method", "linear", "training.epochs=1", "training.batch_size=8"]
OWN_NAMES = ["dataset.image_column=datei", "dataset.label_column=klasse"]


def write_table(path: Path, image: str, label: str, count: int = 8) -> Path:
    rows = [f"pictures/{name}/{number}.png,{name}" for name in ("ant", "bee") for number in range(count)]
    path.write_text("\n".join([f"{image},{label}", *rows]))
    return path


@pytest.fixture
def run(here: Path, pictures: MakePictures) -> Path:
    pictures(ant=8, bee=8)
    table = write_table(here / "train.csv", "datei", "klasse")
    said = toast("tune", "--dataset", f"table:{table}", *OWN_NAMES, *SHORT, "--output-dir", here / "run")
    assert said.code == 0, said.err
    return here / "run"


def test_the_columns_of_a_run_and_fields_given_name_those_of_other_tables(run: Path, here: Path) -> None:
    same, usual, other = (
        write_table(here / f"{names[0]}.csv", *names, count=4)
        for names in (("datei", "klasse"), ("path", "label"), ("bild", "art"))
    )
    measured = []
    for table, fields in ((same, []), (usual, []), (other, ["dataset.image_column=bild", "dataset.label_column=art"])):
        said = toast("eval", "--run", run, "--dataset", f"table:{table}", "--split", "all", *fields, "--json")
        assert said.code == 0, said.err
        measured.append(json.loads(said.out)["all"])
        for source in (str(table), f"table:{table}"):
            said = toast("predict", source, *fields[:1], "--run", run, "--json")
            assert said.code == 0, said.err
            rows = json.loads(said.out)["predictions"]
            assert [row["path"] for row in rows][:1] == ["pictures/ant/0.png"] and len(rows) == 8
    assert measured[0] == measured[1] == measured[2] and measured[0]["images"] == 8
    named = {"dataset.image_column": "bild", "dataset.label_column": "art"}
    found = toast_cli.evaluate(run, f"table:{other}", "val", overrides=named)
    assert found["validation"]["images"] < 8
    toast("predict", other, "--run", run).fails(1, "dataset.image_column=NAME", error="data.missing-column")


def test_fields_of_no_data_set_are_refused(run: Path, here: Path) -> None:
    toast("eval", "--run", run, *OWN_NAMES).fails(2, "--dataset", error="cli.missing-option")
    toast("predict", here / "pictures", *OWN_NAMES, "--run", run).fails(2, error="cli.conflicting-options")
    table = ["--dataset", f"table:{here / 'train.csv'}"]
    toast("eval", "--run", run, *table, "training.lr=1").fails(2, error="recipe.only-data-set")
    toast("compare", run, run, *OWN_NAMES).fails(2, "--dataset", error="cli.missing-option")
