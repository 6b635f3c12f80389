"""Pictures of where models look, as a user asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cli.conftest import toast


def test_files_and_folders_are_shown_each_in_a_figure_of_its_own(runs: tuple[Path, Path], here: Path) -> None:
    (here / "more").mkdir()
    for name in ("a.png", "more/a.png", "more/b.jpg"):
        Image.new("RGB", (90, 60), "teal").save(name)
    said = toast("visualize-attention", "a.png", "more", "--run", runs[0], "--out", "seen", "--format", "svg")
    assert said.code == 0, said.err
    assert {file.name for file in (here / "seen").iterdir()} == {
        f"{name}.{kind}" for name in ("a", "a-2", "b") for kind in ("svg", "safetensors", "json")
    }
    named = [json.loads((here / f"seen/{name}.json").read_text())["image"] for name in ("a", "a-2")]
    assert named == ["a.png", "more/a.png"], "files of one name are told apart"
    window = json.loads((here / "seen/a.json").read_text())["views"][0]["window"]
    assert (window["left"], window["width"], window["height"]) == pytest.approx((15, 60, 60))


@pytest.mark.parametrize("several", [False, True])
def test_what_cannot_be_read_is_left_out_and_listed_at_the_end(
    runs: tuple[Path, Path], here: Path, several: bool
) -> None:
    (here / "more").mkdir()
    for name in ("0", "2"):
        Image.new("RGB", (90, 60), "teal").save(f"more/{name}.png")
    (here / "more/1.png").write_bytes(b"no image")
    chosen = [part for run in runs[: 1 + several] for part in ("--run", run)]
    said = toast("visualize-attention", "more", "gone.png", *chosen, "--out", "seen", "--json")
    assert said.code == 1 and "2 of 4 images" in said.err
    assert "more/1.png" in said.err and "gone.png" in said.err
    assert f"Writing {9 if several else 12} files in seen" in said.err
    assert [record["image"] for record in json.loads(said.out)] == ["more/0.png", "more/2.png"]
    assert len(list((here / "seen").glob("*.png"))) == (1 if several else 2)
    toast("visualize-attention", "gone.png", *chosen).fails(1, "1 of 1 images", error="image.unreadable")


def test_several_runs_are_one_figure(runs: tuple[Path, Path], here: Path) -> None:
    said = toast(
        "visualize-attention", "--run", runs[0], "--run", runs[1], "--test-image", "0", "--test-image", "1",
        "--out", "seen", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    records = json.loads(said.out)
    assert [view["name"] for view in records[1]["views"]] == ["steered", "linear"]
    assert {record["figure"] for record in records} == {"seen/comparison-steered-linear.png"}
    before = {file: file.read_bytes() for file in (here / "seen").iterdir()}
    for more in (["--alpha", "0.5"], ["--alpha", "0.5", "--grad-cam"], ["--head", "max", "--layer", "1"]):
        said = toast(
            "visualize-attention",
            "--run",
            runs[0],
            "--test-image",
            "0",
            "--test-image",
            "1",
            "--out",
            "seen",
            *more,
        )
        assert said.code == 0, said.err
    assert all(file.read_bytes() == held for file, held in before.items()), "nothing is written over"
    names = {file.stem for file in (here / "seen").iterdir() if file.suffix == ".json"}
    assert names == {f"test-{number}-{what}" for number in (0, 1) for what in (
        "comparison-steered-linear", "alpha0.5", "alpha0.5-grad-cam", "layer1-head-max",
    )}  # fmt: skip


def test_strength_zero_shows_the_plain_backbone_twice(runs: tuple[Path, Path], here: Path) -> None:
    shown = {}
    for alpha in ("0", "1"):
        arguments = ["--run", runs[0], "--test-image", "0", "--out", alpha, "--alpha", alpha]
        assert toast("visualize-attention", *arguments).code == 0
        shown[alpha] = load_file(f"{alpha}/test-0{'-alpha0' if alpha == '0' else ''}.safetensors")
    assert torch.equal(shown["0"]["pass_one"], shown["0"]["pass_two"])
    assert not torch.allclose(shown["1"]["pass_one"], shown["1"]["pass_two"], atol=1e-3)
    toast("visualize-attention", "--run", runs[1], "--test-image", "0", "--alpha", "1").fails(
        2, error="method.no-feedback-path"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--head", "men"], "mean"),
        (["--head", "9"], "There is no head 9."),
        (["--layer", "7"], "There is no layer 7."),
        (["--format", "gif"], "'gif'"),
        (["--prompt", "and a text"], "--test-image"),
    ],
)
def test_what_is_not_there_is_said(runs: tuple[Path, Path], here: Path, arguments: list[str], words: str) -> None:
    toast("visualize-attention", "--run", runs[0], "--test-image", "0", *arguments).fails(2, words)
