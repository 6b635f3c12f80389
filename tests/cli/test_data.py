"""`toast data`: what a user learns about data before a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.cli.conftest import toast
from tests.layouts import LAYOUTS, encoded, shards, tarred
from toast_cli import registry


def photograph(number: int, size: tuple[int, int] = (60, 48)) -> Image.Image:
    """Smooth colours, other ones for every number."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound data set: two classes, six training images and three of each other split."""
    root = tmp_path / "pictures"
    number = 0
    for part, count in (("train", 6), ("val", 3), ("test", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                number += 1
                photograph(number).save(root / part / name / f"{i}.png")
    return root


class TestList:
    def test_every_registered_source_is_listed_with_what_it_needs(self) -> None:
        found = json.loads(toast("data", "ls", "--json").out)
        assert [row["name"] for row in found["sources"]] == sorted(registry.list_names(registry.SOURCES))
        assert all(row["needs"] for row in found["sources"])
        assert not found["failures"]

    def test_the_table_names_the_official_home(self) -> None:
        assert "vision.caltech.edu" in toast("data", "ls").out


class TestCheck:
    def test_a_sound_data_set_passes(self, root: Path) -> None:
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 0
        assert "No problems found." in said.out

    def test_the_report_counts_what_is_there(self, root: Path, tmp_path: Path) -> None:
        said = toast("data", "check", f"folder:{root}", "--json", "--out", tmp_path / "report.json")
        report = json.loads(said.out)
        assert report == json.loads((tmp_path / "report.json").read_text())
        assert report["classes"] == 2
        assert {part: found["images"] for part, found in report["splits"].items()} == {"train": 12, "val": 6, "test": 6}
        assert report["splits"]["train"]["width"] == {"least": 60, "median": 60, "most": 60}
        assert report["splits"]["train"]["images_of_class"] == {"cat": 6, "dog": 6}
        assert report["problems"] == report["warnings"] == []

    @pytest.mark.parametrize("damage", ["truncated", "not an image", "a pipe"])
    def test_a_file_that_cannot_be_read_is_named_and_spoils_a_run(self, root: Path, damage: str) -> None:
        file = root / "train/cat/2.png"
        if damage == "a pipe":
            file.unlink()
            os.mkfifo(file)
        else:
            file.write_bytes(file.read_bytes()[:300] if damage == "truncated" else b"hello")
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 1
        assert "train: 1 of 12 images cannot be read" in said.out
        assert "train/cat/2.png" in said.out

    def test_a_name_that_is_no_text_is_said_as_well_as_can_be(self, root: Path) -> None:
        try:
            (root / "test/cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"hello")
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
        assert "caf\N{REPLACEMENT CHARACTER}.png" in toast("data", "check", f"folder:{root}").out

    def test_what_a_terminal_would_obey_in_a_name_is_written_out(self, root: Path, tmp_path: Path) -> None:
        evil, shown = "\x1b]0;owned\x9b2J\u202egpj", r"\x1b]0;owned\x9b2J\u202egpj"
        root = root.rename(tmp_path / evil)
        (root / f"train/cat/{evil}.png").write_bytes(b"hello")
        (root / f"train/cat/{evil}.txt").write_bytes(b"hello")
        said = toast("data", "check", f"folder:{root}")
        missing = toast("data", "check", f"folder:{root}/{evil}")
        machine = toast("data", "check", f"folder:{root}", "--json")
        assert not set(said.out + said.err + missing.err + machine.out) & set("\x1b\x9b\u202e")
        assert f"train/cat/{shown}.png" in said.out and f"{shown}.txt" in said.out and shown in missing.err
        assert json.loads(machine.out)["splits"]["train"]["unreadable"][0]["name"] == f"train/cat/{evil}.png"

    def test_a_line_break_in_a_name_begins_no_line_of_a_report(self, root: Path, tmp_path: Path) -> None:
        forged = "No problems found."
        evil, shown = f"0\n{forged}\u2028", rf"0\n{forged}\u2028"
        root = root.rename(tmp_path / evil)
        for ending in ("png", "txt"):
            (root / f"train/cat/{evil}.{ending}").write_bytes(b"hello")
        shutil.copy(root / "train/cat/0.png", root / f"test/dog/{evil}.png")
        said = [
            toast("data", "check", f"folder:{root}", "--out", tmp_path / f"{evil}.json"),
            toast("data", "check", f"folder:{root / evil}"),
            toast("data", "show", f"folder:{root}", "--out", root / "train.png"),
            toast("data", "show", f"folder:{root}", "images.augment=none", "--images", "15", "--backbone", "vit_demo"),
            toast("visualize-attention", root / f"train/cat/{evil}.png"),
        ]
        assert [each.code for each in said] == [1, 1, 2, 1, 1]
        for each in said:
            lines = (each.out + each.err).splitlines()
            assert not [line for line in lines if line.startswith(forged)]
            assert any(shown in line for line in lines)
        assert f"train/cat/{shown}.png" in said[0].out and f"and test: test/dog/{shown}.png" in said[0].out
        assert f"{shown}.txt" in said[0].out and f"Report: {tmp_path}/{shown}.json" in said[0].out

    def test_an_image_in_two_splits_spoils_a_run(self, root: Path) -> None:
        shutil.copy(root / "train/cat/0.png", root / "test/cat/other name.png")
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 1
        assert "1 image is in two splits" in said.out
        assert "train: train/cat/0.png and test: test/cat/other name.png" in said.out

    def test_the_same_pixels_in_another_format_are_the_same_image(self, root: Path) -> None:
        Image.open(root / "train/cat/0.png").save(root / "test/cat/copy.bmp")
        assert "1 image is in two splits" in toast("data", "check", f"folder:{root}").out

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_an_image_that_was_compressed_again_or_mirrored_spoils_a_run(self, root: Path, mirrored: bool) -> None:
        image = Image.open(root / "train/dog/1.png").resize((90, 72), Image.Resampling.BICUBIC)
        image = ImageOps.mirror(image) if mirrored else image
        image.save(root / "val/dog/smaller.jpg", quality=60)
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 1
        assert "1 image shows the same as one of an earlier split" in said.out
        told = "same picture, mirrored" if mirrored else "same picture"
        assert f"  {told}: train: train/dog/1.png and val: val/dog/smaller.jpg\n" in said.out
        assert "different classes" not in said.out

        (root / "val/dog/smaller.jpg").rename(root / "val/cat/smaller.jpg")
        said = toast("data", "check", f"folder:{root}")
        assert "1 image has another class than the same image in another split" in said.out

    def test_an_image_that_is_only_like_another_is_for_the_user_to_judge(self, root: Path) -> None:
        Image.open(root / "train/dog/2.png").crop((1, 1, 59, 47)).save(root / "val/cat/closer.png")
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 0
        assert "1 image looks nearly like one of an earlier split" in said.out
        assert "differ, 1 of another class)" in said.out
        assert "nearly identical: train: train/dog/2.png and val: val/cat/closer.png (different classes)" in said.out

    def test_a_duplicate_under_another_class_is_a_problem_within_a_split_too(self, root: Path) -> None:
        shutil.copy(root / "train/cat/0.png", root / "train/dog/cat.png")
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 1
        assert "problem: 1 image has another class than an earlier copy in the same split" in said.out

    def test_a_copy_in_another_split_under_another_class_is_a_problem_of_its_own(self, root: Path) -> None:
        shutil.copy(root / "train/cat/0.png", root / "test/dog/cat.png")
        shutil.copy(root / "train/cat/1.png", root / "test/cat/again.png")
        said = toast("data", "check", f"folder:{root}")
        assert said.code == 1
        assert "2 images are in two splits" in said.out
        assert "1 image has another class than the same image in another split" in said.out
        assert "train: train/cat/0.png and test: test/dog/cat.png (different classes)" in said.out

    def test_images_of_one_colour_are_said_and_are_nearly_like_no_other(self, root: Path) -> None:
        for shade, part in enumerate(("train", "val", "test")):
            Image.new("RGB", (60, 48), (shade,) * 3).save(root / part / "cat/plain.png")
        said = toast("data", "check", f"folder:{root}", "--json")
        report = json.loads(said.out)
        assert said.code == 0 and report["duplicates"]["nearly_across_splits"]["count"] == 0
        assert "test: 1 image is of one colour, or nearly" in report["warnings"]

    def test_a_box_that_reaches_out_of_its_image_is_said(self, tmp_path: Path) -> None:
        boxes = ["0,0,60,48", "30,20,31,28", "30,20,40,10", "70,0,5,5"]  # the second by one pixel, which sets do
        rows = [f"{n}.png,{'cat' if n % 2 else 'dog'},train,{boxes[n] if n < 4 else boxes[0]}" for n in range(6)]
        for number in range(6):
            photograph(number).save(tmp_path / f"{number}.png")
        (tmp_path / "it.csv").write_text("\n".join(["path,label,split,x,y,width,height", *rows]))
        said = toast("data", "check", f"table:{tmp_path / 'it.csv'}", "dataset.val_fraction=0")
        assert "train: 2 images have a box or a part outside of the image" in said.out
        assert "outside the image: train: 2.png" in said.out and "outside the image: train: 3.png" in said.out

    def test_all_missing_files_are_listed(self, tmp_path: Path) -> None:
        for name, gone in (("cub", 3), ("vtab", 2), ("table", 2)):
            where = tmp_path / name
            where.mkdir()
            shorthand = LAYOUTS[name](where)
            files = sorted(where.rglob("*.jpg"))[:: 20 // gone][:gone]
            for file in files:
                file.unlink()
            said = toast("data", "check", shorthand, "--data-dir", where, "--out", where / "report.json")
            assert said.code == 1 and f"problem: {len(files)} of " in said.out
            assert len(json.loads((where / "report.json").read_text())["missing"]) == len(files) > 0
            for file in files:
                assert f"  missing: {file}" in said.out

    def test_a_stream_is_read_to_its_end(self, tmp_path: Path) -> None:
        shorthand = shards(tmp_path)
        options = ("--data-dir", tmp_path, "dataset.classes=3", "--json")
        said = toast("data", "check", shorthand, *options)
        report = json.loads(said.out)
        assert said.code == 0, said.err
        assert {part: found["images"] for part, found in report["splits"].items()} == {"train": 18, "val": 6}
        assert report["splits"]["train"]["images_of_class"] == {"0": 6, "1": 6, "2": 6}

        files = {f"a{n}.{kind}": content for n in range(3) for kind, content in (("jpg", encoded(n)), ("cls", b"0"))}
        files |= {"a1.jpg": b"no image", "a2.cls": b"7"}
        tarred(tmp_path / "shards/train-0004.tar", files)
        said = toast("data", "check", "shards:shards", *options, "dataset.samples=25", "dataset.val_shards=0")
        report = json.loads(said.out)
        assert said.code == 1
        assert report["problems"] == [
            "train: 2 of 27 images cannot be read",
            "train: 27 images found, 25 expected",
        ]
        assert [file["name"] for file in report["splits"]["train"]["unreadable"]] == ["shards: a1", "shards: a2"]
        assert "1 image is in a split more than once" in report["warnings"]

    def test_classes_of_unlike_size_are_said(self, root: Path) -> None:
        for number in range(70):
            photograph(1000 + number).save(root / f"train/cat/more {number}.png")
        assert "the largest class has 76 images, the smallest 6" in toast("data", "check", f"folder:{root}").out

    def test_a_source_of_texts_is_read(self, tmp_path: Path) -> None:
        talk = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
        (tmp_path / "talk.json").write_text(json.dumps(talk))
        said = toast("data", "check", f"alpaca:{tmp_path / 'talk.json'}", "--json")
        assert said.code == 0 and json.loads(said.out)["splits"]["train"]["texts"] == 1

    def test_fields_of_the_source_can_be_set_and_no_others(self, root: Path) -> None:
        report = json.loads(toast("data", "check", f"folder:{root}", "dataset.shots=2", "--json").out)
        assert report["splits"]["train"]["images"] == 4
        toast("data", "check", f"folder:{root}", "training.lr=1").fails(2, "Only the data set")


class TestBarePaths:
    @pytest.mark.parametrize(("path", "meant"), [("pets.csv", "table:"), ("pets.zip", "archive:"), ("pets", "folder:")])
    def test_are_told_what_to_say(self, tmp_path: Path, path: str, meant: str) -> None:
        (tmp_path / "pets").mkdir()
        for name in ("pets.csv", "pets.zip"):
            (tmp_path / name).touch()
        here = tmp_path / path
        toast("data", "check", here).fails(2, "cannot be used as a data set", f"use {meant}{here}")
        toast("tune", "--backbone", "vit_demo", "--dataset", here).fails(2, f"use {meant}{here}")


class TestWarnings:
    def test_a_split_that_is_not_there_is_one(self, tmp_path: Path) -> None:
        for number, name in enumerate(("a", "b")):
            (tmp_path / "it" / name).mkdir(parents=True)
            photograph(number).save(tmp_path / "it" / name / "0.png")
        told = toast("data", "check", f"folder:{tmp_path / 'it'}").out
        assert "there is no val split" in told and "there is no test split" in told
        assert "No problems found" not in told


class TestOut:
    @pytest.mark.parametrize(("verb", "name", "wanted"), [("check", "it.png", ".json"), ("show", "it.jpg", ".png")])
    def test_a_name_that_ends_like_something_else_is_refused(
        self, root: Path, tmp_path: Path, verb: str, name: str, wanted: str
    ) -> None:
        toast("data", verb, f"folder:{root}", "--out", tmp_path / name).fails(2, wanted, error="cli.wrong-suffix")
        assert not (tmp_path / name).exists()

    def test_nothing_is_written_among_the_data(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(root / "train")
        for verb, out in (
            ("check", root / "it.json"),
            ("show", root / "new/it.png"),
            ("show", tmp_path / "link/it.png"),
        ):
            toast("data", verb, f"folder:{root}", "--out", out, "--force").fails(
                2, str(root), error="data.output-inside-data"
            )
            assert not out.exists()

    def test_nor_in_the_folder_of_a_set_that_has_a_name_but_beside_it(self, tmp_path: Path) -> None:
        source = LAYOUTS["cub"](tmp_path)
        own = tmp_path / "CUB_200_2011/images"
        toast("data", "check", source, "--data-dir", tmp_path, "--out", own / "it.json").fails(
            2, error="data.output-inside-data"
        )
        toast("data", "check", source, "--data-dir", tmp_path, "--out", tmp_path / "it.json")
        assert (tmp_path / "it.json").exists() and not (own / "it.json").exists()

    @pytest.mark.parametrize("own", ["pets/train", "others"])
    def test_nor_among_the_photographs_or_the_distractors_of_a_grid(self, tmp_path: Path, own: str) -> None:
        source, out = LAYOUTS["grid"](tmp_path), tmp_path / own / "it.json"
        toast("data", "check", source, "--data-dir", tmp_path, "--out", out).fails(
            2, own, error="data.output-inside-data"
        )
        assert not out.exists()

    def test_a_table_says_itself_what_is_read(self, tmp_path: Path) -> None:
        source = LAYOUTS["table"](tmp_path)
        toast("data", "check", source, "--data-dir", tmp_path, "--out", tmp_path / "it.json")
        assert (tmp_path / "it.json").exists()


class TestShow:
    def test_the_sheet_shows_images_at_the_size_the_model_sees(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        said = toast("data", "show", f"folder:{root}", "--backbone", "vit_demo", "--images", "4", "--out", out)
        assert said.code == 0, said.err
        assert str(out) in said.out
        before = out.read_bytes()
        (tmp_path / "kept.json").touch()
        for verb, kept in (("show", out), ("check", tmp_path / "kept.json")):
            toast("data", verb, f"folder:{root}", "--out", kept).fails(2, "--force", error="disk.already-exists")
        assert out.read_bytes() == before and not (tmp_path / "kept.json").read_bytes()
        assert np.asarray(Image.open(out).convert("RGB")).std() > 10

    def test_training_images_are_augmented_and_others_not(self, root: Path, tmp_path: Path) -> None:
        def sheet(split: str, *more: str) -> bytes:
            out = tmp_path / "sheet.png"
            common = ("--backbone", "vit_demo", "--images", "4", "--out", out, "--split", split, "--force")
            assert toast("data", "show", f"folder:{root}", *common, *more).code == 0
            return out.read_bytes()

        crops = "images.augment=random-resized-crop"
        assert sheet("train", crops) != sheet("train", "images.augment=none")
        assert sheet("test", crops) == sheet("test", "images.augment=none")

    def test_the_data_set_may_be_given_as_elsewhere(self, root: Path, here: Path) -> None:
        said = toast("data", "show", "--dataset", f"folder:{root}", "images.augment=flip", "--images", "2")
        assert said.code == 0 and (here / "contact-sheet.png").is_file(), said.err
        assert toast("data", "check", "--dataset", f"folder:{root}", "dataset.val_fraction=0.3").code == 0
        toast("data", "check", "demo", "--dataset", "demo").fails(2, error="cli.conflicting-options")
        toast("data", "show").fails(2, "toast data ls", error="cli.missing-option")

    def test_a_split_that_is_not_there_is_refused(self, root: Path) -> None:
        toast("data", "show", f"folder:{root}", "--split", "dev").fails(2, "'dev'", error="data.unknown-split")
