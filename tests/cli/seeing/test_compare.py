"""Runs held against each other, and the page that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import toast
from tests.cli.seeing.pages import page
from tests.cli.seeing.texts import tuned_on_texts
from tests.scenes import demo_model, kept
from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder

EVIL = "<img src=x onerror=alert(1)>"
"""A folder, that is a class, that would run a script where nobody escapes it."""


def test_runs_side_by_side_and_one_page(runs: tuple[Path, Path], here: Path) -> None:
    said = toast("compare", *runs, "--images", "2", "--json")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)
    first, second = numbers["runs"]
    assert (first["name"], second["name"]) == ("steered", "linear")
    difference = second["share_inside"]["mean"] - first["share_inside"]["mean"]
    (pair,) = numbers["differences"]
    assert (pair["run"], pair["less"], numbers["differences_interval"]) == ("linear", "steered", "95%")
    assert pair["share_inside"]["mean"] == pytest.approx(difference, abs=1e-9)
    assert pair["accuracy"]["mean"] == pytest.approx(second["accuracy"]["mean"] - first["accuracy"]["mean"])
    found = page(here / "comparison/report.html")
    assert len(found.pictures) == 1 + 2 * 3
    assert f"{first['trained_parameters']:,}" in found.text and (here / "comparison/comparison.png").is_file()
    whole = json.loads(toast("eval", "--run", runs[0], "--attention", "--curve-images", "0", "--json").out)["numbers"]
    assert first["share_inside"]["mean"] == pytest.approx(whole["pass_two"]["share_inside"]["mean"], abs=1e-6)
    assert first["share_inside"]["mean"] != pytest.approx(whole["pass_one"]["share_inside"]["mean"], abs=1e-4)


def test_a_report_says_of_what_its_maps_are_and_who_was_compared(runs: tuple[Path, Path], here: Path) -> None:
    said = toast("compare", *runs, "--images", "1", "--layer", "1", "--head", "0", "--limit", "3", "--json")
    assert said.code == 0, said.err
    first, second = json.loads(said.out)["runs"]
    record = json.loads(
        toast("visualize-attention", "--test-image", "0", "--run", runs[0], "--layer", "1", "--head", "0", "--json").out
    )[0]["views"][0]
    same = ("seed", "weights", "run_fingerprint", "backbone_fingerprint", "network", "layer", "head")
    assert {name: first[name] for name in same} == {name: record[name] for name in same}
    assert (first["layer"], first["head"], second["method"]) == (1, 0, "linear")
    assert first["checks"]["largest_mismatch_with_fused_attention"] < 1e-3
    assert first["run_fingerprint"] != second["run_fingerprint"]
    text = page(here / "comparison/report.html").text
    assert text.count("attention of layer 1, head 0") == 3 and "against fused attention, off by at most" in text
    for run in (first, second):
        assert all(run[name][:12] in text for name in ("run_fingerprint", "backbone_fingerprint"))
    assert "attention of layer 1, head 0" in toast("compare", *runs, "--images", "1", "--layer", "1", "--head", "0").out


def test_another_comparison_is_kept_beside_the_first(runs: tuple[Path, Path], here: Path) -> None:
    places = [
        toast("compare", *runs, "--limit", "3", "--images", "1", *more).err.split("Report: ")[1].strip()
        for more in ([], ["--layer", "0"], [], ["--layer", "0", "--out", "comparison"])
    ]
    assert places == [f"comparison{number}/report.html" for number in ("", "-2", "", "")]


def test_every_pair_is_compared_and_their_intervals_hold_together(runs: tuple[Path, Path], here: Path) -> None:
    said = toast("compare", runs[0], runs[1], runs[0], "--images", "1", "--head", "max", "--json")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)
    pairs = [(pair["less"], pair["run"]) for pair in numbers["differences"]]
    assert pairs == [("steered", "linear"), ("steered", "steered-2"), ("linear", "steered-2")]
    same = numbers["differences"][1]["accuracy"]
    assert (same["mean"], same["images"]) == (0, 12) and same["low"] == -same["high"] < 0
    assert "over the 3 differences of a column" in numbers["differences_interval"]
    alone = toast("compare", runs[0], runs[1], "--images", "1", "--head", "max", "--json")
    widths = [
        found["differences"][0]["share_inside"]["high"] - found["differences"][0]["share_inside"]["low"]
        for found in (numbers, json.loads(alone.out))
    ]
    assert widths[0] > 1.1 * widths[1]
    toast("compare", runs[0], runs[1], runs[0], "--images", "1")
    text = page(here / "comparison/report.html").text
    assert "steered-2 minus linear" in text and "An even map is the chance level" in text


def test_what_runs_a_script_elsewhere_is_text_here(here: Path) -> None:
    for name in (EVIL, "plain"):
        (here / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (70, 70), "teal").save(here / "pictures" / name / f'"><b>{number}.png')
    raw = {"backbone": "vit_demo", "dataset": f"folder:{here / 'pictures'}", "method": "linear", "device": "cpu"}
    paths = []
    for seed in (0, 1):
        recipe = build_recipe({**raw, "seed": seed}, {}, origin="a test")
        recipe = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"split_seed": 0})})
        model = build_model(recipe, (EVIL, "plain"))
        paths.append(here / f"<i>{seed}")
        save_adapter_folder(
            paths[-1], model.get_trained_parameters(), {}, build_adapter_config(model, recipe, (EVIL, "plain")), ""
        )
    said = toast("compare", *paths, "--images", "2")
    assert said.code == 0, said.err
    found = page(here / "comparison/report.html")
    assert not {"b", "i"} & set(found.tags)
    assert EVIL in found.text and '"><b>' in found.text and "<i>0" in found.text
    assert any(EVIL in (picture["alt"] or "") for picture in found.pictures)


def test_other_images_and_one_run_alone_are_refused(runs: tuple[Path, Path], here: Path) -> None:
    toast("compare", runs[0]).fails(2, error="run.too-few-runs")
    small = {"name": "demo", "test_images": 7, "train_images": 5, "val_images": 5}
    other = kept(demo_model("linear"), here / "other", dataset=small)
    toast("compare", runs[0], other).fails(1, "--dataset", error="data.different-images")


def test_runs_are_held_against_each_other_before_any_is_measured(
    runs: tuple[Path, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a run was measured")

    monkeypatch.setattr("toast_cli.evaluation.compare_runs.measure_run", never)
    texts = tuned_on_texts(here, "texts")
    toast("compare", runs[1], texts).fails(2, f"{texts} is a language model", error="data.different-kinds")
    elsewhere = {"name": "demo", "test_images": 12, "train_images": 5, "val_images": 5, "world_seed": 1}
    other = kept(demo_model("linear"), here / "elsewhere", dataset=elsewhere)
    toast("compare", runs[1], other).fails(1, "elsewhere", "fine/test/000000", error="data.different-images")
    toast("compare", *runs, "--head", "9").fails(2, "steered", "head 9", error="attention.unknown-head")


def test_runs_of_other_seeds_are_shown_the_same_few_images(runs: tuple[Path, Path], here: Path) -> None:
    other = kept(demo_model("linear"), here / "seed-1", seed=1)
    said = toast("compare", runs[1], other, "--limit", "4", "--images", "1", "--json")
    assert said.code == 0, said.err
    difference = json.loads(said.out)["differences"][0]["accuracy"]
    assert (difference["mean"], difference["images"]) == (0, 4)
    assert difference["low"] == -difference["high"] < -0.3, "four images prove little"


def test_runs_of_several_seeds_are_averaged_and_unfinished_ones_are_skipped(
    runs: tuple[Path, Path], here: Path
) -> None:
    small = {"name": "demo", "test_images": 6, "train_images": 5, "val_images": 5}
    paths = [kept(demo_model("linear"), here / f"x-seed{seed}", dataset=small, seed=seed) for seed in (0, 1)]
    (here / "cut").mkdir()
    (here / "cut" / "recipe.yaml").touch()
    said = toast("compare", *paths, "cut", "--images", "1", "--json")
    assert said.code == 0 and "cut has not finished" in said.err
    numbers = json.loads(said.out)
    (group,) = numbers["seeds"]
    one, two = (run["accuracy"]["mean"] for run in numbers["runs"])
    assert group["name"] == "x" and group["seeds"] == [0, 1]
    assert group["accuracy"] == pytest.approx([(one + two) / 2, abs(one - two) / 2**0.5])
    assert "0, 1" in page(here / "comparison/report.html").text
    toast("compare", paths[0], "cut").fails(2, "got 1", error="run.too-few-runs")
