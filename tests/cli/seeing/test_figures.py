"""Pictures of where models look, as a user asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cli.conftest import toast


def test_per_image_shows_files_and_folders_each_in_a_figure_of_its_own(runs: tuple[Path, Path], here: Path) -> None:
    (here / "more").mkdir()
    for name in ("a.png", "more/a.png", "more/b.jpg"):
        Image.new("RGB", (90, 60), "teal").save(name)
    said = toast(
        "visualize-attention", "a.png", "more", "--run", runs[0], "--out", "seen", "--format", "svg", "--per-image"
    )
    assert said.code == 0, said.err
    assert "Writing 9 files in seen" in said.err
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
    assert f"Writing {9 if several else 4} files in seen" in said.err
    assert [record["image"] for record in json.loads(said.out)] == ["more/0.png", "more/2.png"]
    assert len(list((here / "seen").glob("*.png"))) == 1
    toast("visualize-attention", "gone.png", *chosen).fails(1, "1 of 1 images", error="image.unreadable")


def test_a_folder_is_one_sheet_and_one_page_with_all_maps_and_records(runs: tuple[Path, Path], here: Path) -> None:
    (here / "many").mkdir()
    for name in ("0", "<b>1", "2"):
        Image.new("RGB", (90, 60), "teal").save(f"many/{name}.png")
    said = toast("visualize-attention", "many", "--run", runs[0], "--out", "seen", "--json")
    assert said.code == 0, said.err
    assert {file.name for file in (here / "seen").iterdir()} == {
        f"images.{kind}" for kind in ("png", "html", "safetensors", "json")
    }
    records = json.loads(said.out)
    assert json.loads((here / "seen/images.json").read_text())["images"] == records
    assert [record["image"] for record in records] == ["many/0.png", "many/2.png", "many/<b>1.png"]
    maps = load_file(here / "seen/images.safetensors")
    assert len(maps) == 3 * 4 and maps["0/pass_two"].sum().item() == pytest.approx(1, abs=1e-4)
    page = (here / "seen/images.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3 and "&lt;b&gt;1.png" in page and "<b>1" not in page
    assert "http" not in page.replace("http-equiv", "")
    again = toast("visualize-attention", "many/0.png", "many/2.png", "--run", runs[0], "--out", "seen")
    assert again.code == 0 and (here / "seen/images-2.html").exists(), "other images get a name of their own"


def test_a_chosen_class_is_what_is_said_and_explained(runs: tuple[Path, Path], here: Path) -> None:
    said = toast(
        "visualize-attention", "--run", runs[0], "--test-image", "0", "--class", "plus", "--out", "seen", "--json",
        "--explain", "attention,grad-cam",
    )  # fmt: skip
    assert said.code == 0, said.err
    (record,) = json.loads(said.out)
    assert record["views"][0]["pass_two"]["prediction"] == "plus"
    assert list(record["scores"]) == [
        f"{name}/{which}" for name in ("attention", "grad-cam") for which in ("pass_one", "pass_two")
    ]
    assert set(record["random"]) == {"deletion", "insertion"}
    assert {file.name for file in (here / "seen").iterdir()} == {
        f"test-0-explanations-label-plus.{kind}" for kind in ("png", "safetensors", "json")
    }
    toast("visualize-attention", "--run", runs[0], "--test-image", "0", "--class", "pluss").fails(
        2, "plus", error="cli.invalid-value"
    )


def test_an_animation_sweeps_the_strength_of_two_passes(runs: tuple[Path, Path], here: Path) -> None:
    arguments = ["visualize-attention", "--test-image", "0", "--out", "seen", "--animate", "--alpha", "0.5"]
    said = toast(*arguments, "--run", runs[0], "--json")
    assert said.code == 0, said.err
    (record,) = json.loads(said.out)
    with Image.open(record["animation"]) as animation:
        assert animation.n_frames == len(record["strengths"]) == 21  # type: ignore[attr-defined]
        first = animation.convert("RGB")
        animation.seek(20)
        assert first.size == animation.size and first.tobytes() != animation.convert("RGB").tobytes()
    assert record["strengths"][0] == 0 and record["strengths"][-1] == 0.5
    toast(*arguments[:-2], "--run", runs[1]).fails(2, error="method.no-feedback-path")
    toast(*arguments, "--run", runs[0], "--run", runs[1]).fails(2)
    assert len(list((here / "seen").iterdir())) == 3, "nothing half-written"


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
            "--per-image",
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
        (["--style", "simpl"], "simple"),
        (["--explain", "attentoin"], "attention"),
        (["--explain", "attention", "--style", "full"], "--style"),
        (["--animate", "--explain", "all"], "--animate"),
        (["--animate", "--test-image", "1"], "one image"),
    ],
)
def test_what_is_not_there_is_said(runs: tuple[Path, Path], here: Path, arguments: list[str], words: str) -> None:
    toast("visualize-attention", "--run", runs[0], "--test-image", "0", *arguments).fails(2, words)
