"""Where a model looks in numbers, and at other strengths."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import toast


def lies_under(heading: str, row: str, table: str) -> bool:
    """Whether the one number of a row stands in the column of that heading."""
    lines = table.replace("┃", "│").splitlines()
    columns = next(line.split("│") for line in lines if f" {heading} " in line)
    cells = next(line.split("│") for line in lines if row in line)[2:-1]
    return [name.strip() for name, cell in zip(columns[2:-1], cells, strict=True) if cell.strip()] == [heading]


def test_numbers_curves_and_classes(runs: tuple[Path, Path], here: Path) -> None:
    said = toast("eval", "--run", runs[0], "--attention", "--curve-images", "2", "--out", "n.json", "--json")
    assert said.code == 0, said.err
    assert "12 images of test; then curves of 2 of them, with up to 75 forward passes" in said.err
    found = json.loads(said.out)
    assert found == json.loads((here / "n.json").read_text())
    inside = found["numbers"]["pass_two"]["share_inside"]
    assert inside["low"] < inside["mean"] < inside["high"] and inside["images"] == found["images"] == 12
    assert set(found["numbers"]["pass_one"]) == {"share_inside", "pointing_hit", "auc", "entropy"}
    assert found["object"] == "its exact pixels" and found["not_measurable"] == {}
    curves, orders = found["curves"], {"pass_one", "similarity", "pass_two", "random"}
    assert set(curves["area"]) == set(curves["shares_of_pixels"]) == orders
    with (here / "n-numbers/curves.csv").open() as file:
        steps = list(csv.DictReader(file))
    for order, shares in curves["shares_of_pixels"].items():
        # Of 8 by 8 cells, the first so many that are a tenth, two tenths, ... of all.
        assert shares == pytest.approx([math.ceil(6.4 * step) / 64 for step in range(11)])
        assert [float(step[f"{order}/share_of_pixels"]) for step in steps] == pytest.approx(shares, abs=1e-5)
    for step in steps:
        low, mean, high = (float(step[f"pass_two/deletion{end}"]) for end in ("_low", "", "_high"))
        assert low <= mean <= high
    with (here / "n-numbers/curves_per_image.csv").open() as file:
        areas = list(csv.DictReader(file))
    assert len({line["image"] for line in areas}) == curves["images"] == 2
    for order in orders:
        mean = np.mean([float(line[f"{order}/deletion"]) for line in areas])
        assert curves["area"][order]["deletion"]["mean"] == pytest.approx(mean, abs=1e-5)
    gained = curves["area"]["pass_two"]["insertion"]["mean"] - curves["area"]["pass_one"]["insertion"]["mean"]
    assert curves["pass_two_less_pass_one"]["insertion"]["mean"] == pytest.approx(gained, abs=1e-6)
    with (here / "n-numbers/per_class.csv").open() as file:
        assert sum(int(line["images"]) for line in csv.DictReader(file)) == 12
    with (here / "n-numbers/per_image.csv").open() as file:
        each = [float(line["pass_two/share_inside"]) for line in csv.DictReader(file)]
    assert np.mean(each) == pytest.approx(inside["mean"], abs=1e-5)
    plain = json.loads(toast("eval", "--run", runs[0], "--json").out)["test"]["attention_share"]
    assert plain["pass_two"] == pytest.approx(inside["mean"], abs=1e-6), "as at the end of a run"
    even = found["numbers"]["even"]["share_inside"]["mean"]
    assert plain["object_area"] == pytest.approx(even, abs=1e-6)
    table = toast("eval", "--run", runs[0], "--attention", "--curve-images", "0", "--head", "1")
    assert "an even map" in table.out and f"{even:.1%}" in table.out and "its exact pixels" in table.out
    assert lies_under("pass two", "inside, pass two minus pass one", table.out)
    toast("eval", "--run", runs[0], "--attention", "--head", "9").fails(2, "head 9", error="attention.unknown-head")
    toast("eval", "--run", runs[0], "--evaluation", "whole").fails(2, error="task.not-segmentation")


def test_a_sweep_begins_at_the_plain_backbone(runs: tuple[Path, Path], here: Path) -> None:
    said = toast("eval", "--run", runs[0], "--sweep", "--limit", "6", "--out", "s.json", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    lines = {line["alpha"]: line for line in found["strengths"]}
    assert (found["images"], found["head"]) == (6, "mean")
    assert list(lines) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert lines[0.0]["shift"]["mean"] == 0 and lines[2.0]["shift"]["mean"] > lines[1.0]["shift"]["mean"] > 0
    assert (here / "s-strength/strength.png").is_file()
    toast("eval", "--run", runs[1], "--sweep").fails(2, "--sweep varies", error="method.no-feedback-path")
