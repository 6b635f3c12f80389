"""Measuring on other data: its classes in the order of the run's."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from toast_cli.evaluation.open_run import open_data_with_classes
from toast_cli.model.recipe_data import open_data
from toast_cli.recipe.parse import build_recipe


def test_data_whose_classes_are_the_runs_in_another_order_are_labelled_as_the_run_has_them(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "it" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / "it" / name / f"{number}.png")
    raw = {"backbone": "vit_demo_3", "dataset": f"folder:{tmp_path / 'it'}", "method": "linear"}
    recipe = build_recipe(raw, {}, origin="a test")
    before = open_data(recipe)
    after = open_data_with_classes(("bee", "ant"), recipe, tmp_path)
    assert (before.classes, after.classes) == (("ant", "bee"), ("bee", "ant"))
    for part, split in before.splits.items():
        named = {name: before.classes[label] for name, label in zip(split.names, split.labels, strict=True)}  # type: ignore[attr-defined]
        other = after.splits[part]
        found = {name: after.classes[label] for name, label in zip(other.names, other.labels, strict=True)}  # type: ignore[attr-defined]
        assert found == named
