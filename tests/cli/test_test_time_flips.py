from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import toast


def test_eval_averages_mirror_images_and_says_so(linear_run: Path, tmp_path: Path) -> None:
    plain, flipped = (
        toast("eval", "--run", linear_run, "--json", "--out", tmp_path / "n.json", *words) for words in ([], ["--tta"])
    )
    assert plain.code == flipped.code == 0, plain.err + flipped.err
    first, second = json.loads(plain.out), json.loads(flipped.out)
    assert "mirror image" in second.pop("test_time_flips") and "test_time_flips" not in first
    assert first["test"]["images"] == second["test"]["images"] == 20
    assert first["test"]["loss"] != second["test"]["loss"]
    assert "mean over mirror images" in toast("eval", "--run", linear_run, "--tta", "--out", tmp_path / "n.json").out


def test_flips_are_for_metrics_of_whole_splits(linear_run: Path) -> None:
    toast("eval", "--run", linear_run, "--tta", "--sweep").fails(2, "--tta", error="cli.conflicting-options")
