"""Where models look, as a user asks for it: figures, numbers, strengths, comparisons, texts."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cli.conftest import toast
from tests.language import make_model
from tests.scenes import demo_model, kept
from toast_cli.attention.texts import MEANING
from toast_cli.model import build_model
from toast_cli.recipe.loading import build_recipe
from toast_cli.storage.adapter import describe, save_folder

EVIL = "<img src=x onerror=alert(1)>"
"""A folder, that is a class, that would run a script where nobody escapes it."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One with two passes and one with a single one, on the demo."""
    home = tmp_path_factory.mktemp("runs")
    return kept(demo_model(), home / "steered"), kept(demo_model("linear"), home / "linear")


class Page(HTMLParser):
    """What a browser would find in a page: its tags, and the texts in place of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path) -> Page:
    """A page that fetches nothing and runs nothing."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all((picture["src"] or "").startswith("data:image/png;base64,") for picture in found.pictures)
    assert all(picture.get("alt") for picture in found.pictures)
    assert not re.search(r"https?://", text) and 'name="viewport"' in text
    return found


class TestFigures:
    def test_files_and_folders_are_shown_each_in_a_figure_of_its_own(self, runs: tuple[Path, Path], here: Path) -> None:
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
        self, runs: tuple[Path, Path], here: Path, several: bool
    ) -> None:
        (here / "more").mkdir()
        for name in ("0", "2"):
            Image.new("RGB", (90, 60), "teal").save(f"more/{name}.png")
        (here / "more/1.png").write_bytes(b"no image")
        chosen = [part for run in runs[: 1 + several] for part in ("--run", run)]
        said = toast("visualize-attention", "more", "gone.png", *chosen, "--out", "seen", "--json")
        assert said.code == 1 and "2 of 4 images could not be shown." in said.err
        assert "more/1.png" in said.err and "gone.png" in said.err
        assert [record["image"] for record in json.loads(said.out)] == ["more/0.png", "more/2.png"]
        assert len(list((here / "seen").glob("*.png"))) == (1 if several else 2)
        toast("visualize-attention", "gone.png", *chosen).fails(1, "1 of 1 images could not be shown.")

    def test_several_runs_are_one_figure(self, runs: tuple[Path, Path], here: Path) -> None:
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

    def test_strength_zero_shows_the_plain_backbone_twice(self, runs: tuple[Path, Path], here: Path) -> None:
        shown = {}
        for alpha in ("0", "1"):
            arguments = ["--run", runs[0], "--test-image", "0", "--out", alpha, "--alpha", alpha]
            assert toast("visualize-attention", *arguments).code == 0
            shown[alpha] = load_file(f"{alpha}/test-0{'-alpha0' if alpha == '0' else ''}.safetensors")
        assert torch.equal(shown["0"]["pass_one"], shown["0"]["pass_two"])
        assert not torch.allclose(shown["1"]["pass_one"], shown["1"]["pass_two"], atol=1e-3)
        toast("visualize-attention", "--run", runs[1], "--test-image", "0", "--alpha", "1").fails(2, "has none")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--head", "men"], "mean"),
            (["--head", "9"], "There is no head 9."),
            (["--layer", "7"], "There is no layer 7."),
            (["--format", "gif"], "There is no format 'gif'."),
            (["--prompt", "and a text"], "Name images, or --test-image"),
        ],
    )
    def test_what_is_not_there_is_said(
        self, runs: tuple[Path, Path], here: Path, arguments: list[str], words: str
    ) -> None:
        toast("visualize-attention", "--run", runs[0], "--test-image", "0", *arguments).fails(2, words)


def lies_under(heading: str, row: str, table: str) -> bool:
    """Whether the one number of a row stands in the column of that heading."""
    lines = table.replace("┃", "│").splitlines()
    columns = next(line.split("│") for line in lines if f" {heading} " in line)
    cells = next(line.split("│") for line in lines if row in line)[2:-1]
    return [name.strip() for name, cell in zip(columns[2:-1], cells, strict=True) if cell.strip()] == [heading]


class TestNumbers:
    def test_numbers_curves_and_classes(self, runs: tuple[Path, Path], here: Path) -> None:
        said = toast("eval", "--run", runs[0], "--attention", "--curve-images", "2", "--out", "n.json", "--json")
        assert said.code == 0, said.err
        assert "Looking at 12 images of test; then curves of 2 of them, for which each is shown up to 75" in said.err
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
        assert lies_under("pass two", "inside, pass two less pass one", table.out)
        toast("eval", "--run", runs[0], "--attention", "--head", "9").fails(2, "There is no head 9.")
        toast("eval", "--run", runs[0], "--evaluation", "whole").fails(2, "for models that label pixels")

    def test_a_sweep_begins_at_the_plain_backbone(self, runs: tuple[Path, Path], here: Path) -> None:
        said = toast("eval", "--run", runs[0], "--sweep", "--limit", "6", "--out", "s.json", "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        lines = {line["alpha"]: line for line in found["strengths"]}
        assert (found["images"], found["head"]) == (6, "mean")
        assert list(lines) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
        assert lines[0.0]["shift"]["mean"] == 0 and lines[2.0]["shift"]["mean"] > lines[1.0]["shift"]["mean"] > 0
        assert (here / "s-strength/strength.png").is_file()
        toast("eval", "--run", runs[1], "--sweep").fails(2, "this model has none")


class TestCompare:
    def test_runs_side_by_side_and_one_page(self, runs: tuple[Path, Path], here: Path) -> None:
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
        whole = json.loads(toast("eval", "--run", runs[0], "--attention", "--curve-images", "0", "--json").out)[
            "numbers"
        ]
        assert first["share_inside"]["mean"] == pytest.approx(whole["pass_two"]["share_inside"]["mean"], abs=1e-6)
        assert first["share_inside"]["mean"] != pytest.approx(whole["pass_one"]["share_inside"]["mean"], abs=1e-4)

    def test_a_report_says_of_what_its_maps_are_and_who_was_compared(self, runs: tuple[Path, Path], here: Path) -> None:
        said = toast("compare", *runs, "--images", "1", "--layer", "1", "--head", "0", "--limit", "3", "--json")
        assert said.code == 0, said.err
        first, second = json.loads(said.out)["runs"]
        record = json.loads(
            toast(
                "visualize-attention", "--test-image", "0", "--run", runs[0], "--layer", "1", "--head", "0", "--json"
            ).out
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
        assert (
            "attention of layer 1, head 0"
            in toast("compare", *runs, "--images", "1", "--layer", "1", "--head", "0").out
        )

    def test_another_comparison_is_kept_beside_the_first(self, runs: tuple[Path, Path], here: Path) -> None:
        places = [
            toast("compare", *runs, "--limit", "3", "--images", "1", *more).err.split("Report: ")[1].strip()
            for more in ([], ["--layer", "0"], [], ["--layer", "0", "--out", "comparison"])
        ]
        assert places == [f"comparison{number}/report.html" for number in ("", "-2", "", "")]

    def test_every_pair_is_compared_and_their_intervals_hold_together(
        self, runs: tuple[Path, Path], here: Path
    ) -> None:
        said = toast("compare", runs[0], runs[1], runs[0], "--images", "1", "--head", "max", "--json")
        assert said.code == 0, said.err
        numbers = json.loads(said.out)
        pairs = [(pair["less"], pair["run"]) for pair in numbers["differences"]]
        assert pairs == [("steered", "linear"), ("steered", "steered-2"), ("linear", "steered-2")]
        same = numbers["differences"][1]["accuracy"]
        assert same == {"mean": 0, "low": 0, "high": 0, "images": 12}
        assert "all 3 of a column together" in numbers["differences_interval"]
        alone = toast("compare", runs[0], runs[1], "--images", "1", "--head", "max", "--json")
        widths = [
            found["differences"][0]["share_inside"]["high"] - found["differences"][0]["share_inside"]["low"]
            for found in (numbers, json.loads(alone.out))
        ]
        assert widths[0] > 1.1 * widths[1]
        toast("compare", runs[0], runs[1], runs[0], "--images", "1")
        text = page(here / "comparison/report.html").text
        assert "steered-2 less linear" in text and "An even map is chance" in text

    def test_what_runs_a_script_elsewhere_is_text_here(self, here: Path) -> None:
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
            save_folder(paths[-1], model.trained(), {}, describe(model, recipe, (EVIL, "plain")), "")
        said = toast("compare", *paths, "--images", "2")
        assert said.code == 0, said.err
        found = page(here / "comparison/report.html")
        assert not {"b", "i"} & set(found.tags)
        assert EVIL in found.text and '"><b>' in found.text and "<i>0" in found.text
        assert any(EVIL in (picture["alt"] or "") for picture in found.pictures)

    def test_other_images_and_one_run_alone_are_refused(self, runs: tuple[Path, Path], here: Path) -> None:
        toast("compare", runs[0]).fails(2, "nothing to be compared with")
        small = {"name": "demo", "test_images": 7, "train_images": 5, "val_images": 5}
        other = kept(demo_model("linear"), here / "other", dataset=small)
        toast("compare", runs[0], other).fails(1, "not measured on the same images", "--dataset")

    def test_runs_are_held_against_each_other_before_any_is_measured(
        self, runs: tuple[Path, Path], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object) -> None:
            raise AssertionError("a run was measured")

        monkeypatch.setattr("toast_cli.training.comparing.measured", never)
        toast("compare", runs[1], tuned_on_texts(here, "texts")).fails(2, "texts cannot be compared", "none.json")
        elsewhere = {"name": "demo", "test_images": 12, "train_images": 5, "val_images": 5, "world_seed": 1}
        other = kept(demo_model("linear"), here / "elsewhere", dataset=elsewhere)
        toast("compare", runs[1], other).fails(1, "elsewhere is not measured on the same", "fine/test/000000")
        toast("compare", *runs, "--head", "9").fails(2, "steered cannot be compared", "There is no head 9.")

    def test_runs_of_other_seeds_are_shown_the_same_few_images(self, runs: tuple[Path, Path], here: Path) -> None:
        other = kept(demo_model("linear"), here / "seed-1", seed=1)
        said = toast("compare", runs[1], other, "--limit", "4", "--images", "1", "--json")
        assert said.code == 0, said.err
        assert json.loads(said.out)["differences"][0]["accuracy"] == {"mean": 0, "low": 0, "high": 0, "images": 4}


def tuned_on_texts(here: Path, path: str, seed: int = 0) -> Path:
    """A run of a tiny language model whose feedback path moves attention, though nothing was learned."""
    folder = here / "llama"
    if not folder.exists():
        make_model(folder)
    raw = {"backbone": f"llama:{folder}", "dataset": "alpaca:none.json", "device": "cpu"}
    recipe = build_recipe(
        {**raw, "method": {"name": "toast", "start": "random"}, "task": "language"}, {}, origin="a test"
    )
    model = build_model(recipe, ())
    torch.manual_seed(seed)
    for weight in model.adapted.steering.feedback.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.ones_(model.adapted.steering.selection.xi)  # type: ignore[union-attr]
    save_folder(here / path, model.trained(), model.frozen_additions(), describe(model, recipe, ()), "")
    return here / path


def test_a_prompt_is_coloured_in_the_terminal_and_as_a_page(here: Path) -> None:
    tuned_on_texts(here, "run")
    prompt = "Say <script>alert(1)</script> to Zoë."
    said = toast("visualize-attention", "--prompt", prompt, "--run", "run", "--out", "seen", "--raw")
    assert said.code == 0, said.err
    assert said.out.replace("·", "").count(prompt) == 4 and "attention of the last token, pass two" in said.out
    assert prompt in page(here / "seen/prompt.html").text.replace("·", "")
    maps, record = load_file(here / "seen/prompt.safetensors"), json.loads((here / "seen/prompt.json").read_text())
    assert "".join(record["views"][0]["tokens"]).removeprefix("<s>").replace("·", "") == prompt
    assert set(maps) == {"similarity", "pass_one", "pass_two", "difference"}
    assert all(len(map) == len(record["views"][0]["tokens"]) for map in maps.values())
    assert maps["pass_two"].sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(maps["difference"], maps["pass_two"] - maps["pass_one"])
    said = toast("visualize-attention", "--prompt", "hello", "--backbone", f"llama:{here / 'llama'}", "--out", "plain")
    assert said.code == 0 and "showing the plain backbone" in said.err
    toast("visualize-attention", "--prompt", "hello", "--backbone", "vit_demo").fails(2, "reads no texts")


def test_prompts_in_one_folder_are_never_written_over_by_another(here: Path) -> None:
    tuned_on_texts(here, "run")
    texts = ["Hello there.", "And you?", "Hello there."]
    seen = []
    for prompt in texts:
        said = toast("visualize-attention", "--prompt", prompt, "--run", "run", "--out", "seen", "--raw", "--json")
        assert said.code == 0, said.err
        seen.append({file.name: file.read_bytes() for file in (here / "seen").iterdir()})
        assert json.loads(said.out)["page"] == ("seen/prompt-2.html" if prompt == texts[1] else "seen/prompt.html")
    kinds = ("html", "json", "safetensors")
    assert set(seen[0]) == {f"prompt.{kind}" for kind in kinds}
    assert set(seen[1]) == set(seen[2]) == set(seen[0]) | {f"prompt-2.{kind}" for kind in kinds}
    assert seen[1].items() >= seen[0].items() and seen[2] == seen[1], "the same again is the same again"
    for name, prompt in (("prompt", texts[0]), ("prompt-2", texts[1])):
        assert json.loads(seen[1][f"{name}.json"])["prompt"] == prompt
        assert prompt in page(here / f"seen/{name}.html").text.replace("·", "")
    assert toast("visualize-attention", "--prompt", texts[0], "--run", "run", "--out", "seen").code == 0
    assert (here / "seen/prompt-3.html").is_file(), "nor by the same text marked as the run was trained on it"


def test_two_runs_of_one_name_keep_their_own_numbers_of_a_prompt(here: Path) -> None:
    runs = [tuned_on_texts(here, path, seed) for seed, path in enumerate(("a/run", "b/run"))]
    said = toast(
        "visualize-attention", "--prompt", "Hi.", "--run", runs[0], "--run", runs[1], "--out", "seen", "--json"
    )
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert [view["name"] for view in record["views"]] == ["run", "run-2"]
    maps = load_file(Path(record["page"]).with_suffix(".safetensors"))
    assert {f"{name}/{map}" for name in ("run", "run-2") for map in MEANING} == set(maps)
    assert not torch.equal(maps["run/pass_two"], maps["run-2/pass_two"])
    assert "run-2" in page(Path(record["page"])).text
