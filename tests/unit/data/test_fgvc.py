"""The five fine-grained sets: their masks, the JSON lists in common use, and what is said when one is odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.layouts import BOX, LAYOUTS, SIZE, json_lists
from toast_cli import registry
from toast_cli.data.base import DataSet, get_image_splits
from toast_cli.data.datasets import cars, cub, dogs, fgvc, flowers, nabirds
from toast_cli.data.datasets.dogs import read_voc_boxes
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.object_masks import BoxFile, MaskFile
from toast_cli.recipe.parse import build_dataset_options
from toast_cli.utils.errors import ToastError

SOURCES = {"cub": cub, "nabirds": nabirds, "flowers": flowers, "dogs": dogs, "cars": cars}
SETS = tuple(SOURCES)
IN_BOX = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
IN_BOX[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = True


def opened(name: str, where: Path, **fields: Any) -> DataSet:
    return registry.load_entry(registry.SOURCES, name).open(build_dataset_options(name, fields), where)


def root_of(where: Path) -> Path:
    (root,) = where.iterdir()
    return root


def mask_of(data: DataSet) -> np.ndarray:
    mask = get_image_splits(data, "it")["test"].load(0).mask
    assert mask is not None
    return mask


@pytest.mark.parametrize(
    ("name", "classes", "sizes"),
    [
        ("cub", ("001.Grey_Heron", "002.Wren", "003.Kite"), {"train": 9, "val": 3, "test": 6}),
        ("nabirds", ("Kite (Adult)", "Wren", "Kite (Juvenile)"), {"train": 9, "val": 3, "test": 6}),
        ("flowers", ("1", "2", "3"), {"train": 6, "val": 3, "test": 9}),
        ("dogs", ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"), {"train": 8, "val": 2, "test": 6}),
        ("cars", ("AM General Hummer SUV 2000", "Acura RL Sedan 2012"), {"train": 8, "val": 2, "test": 6}),
    ],
)
def test_each_set_keeps_its_official_test_images_and_says_that_this_copy_is_small(
    name: str, classes: tuple[str, ...], sizes: dict[str, int], tmp_path: Path
) -> None:
    data = opened(LAYOUTS[name](tmp_path), tmp_path)
    assert data.classes == classes
    assert {part: len(split) for part, split in data.splits.items()} == sizes
    assert data.notes[0].startswith("This copy has ")
    held_out = any("held out per class" in note and "seed 0, split " in note for note in data.notes)
    assert held_out is (name != "flowers")


COUNTS = {
    "cub": (200, (5994, 0, 5794), (5394, 600, 5794)),
    "nabirds": (555, (23929, 0, 24633), (21536, 2393, 24633)),
    "flowers": (102, (1020, 1020, 6149), (1020, 1020, 6149)),
    "dogs": (120, (12000, 0, 8580), (10800, 1200, 8580)),
    "cars": (196, (8144, 0, 8041), (7329, 815, 8041)),
}
"""As published: classes; training, validation and test images of the official lists, and of the JSON files."""


@pytest.mark.e2e
@pytest.mark.parametrize("lists", ["official", "json"])
@pytest.mark.parametrize("name", SETS)
def test_a_copy_of_the_published_size_is_silent_and_one_image_or_class_less_is_said(
    name: str, lists: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fgvc, "_require_files", lambda *_: None)  # none of these images exists
    published = next(each for each in vars(SOURCES[name]).values() if isinstance(each, fgvc.PublishedDataset))
    classes, official, others = COUNTS[name]
    sizes = dict(zip(("train", "val", "test"), official if lists == "official" else others, strict=True))

    def said(sizes: dict[str, int], classes: int) -> list[str]:
        named = {
            part: {f"{published.inner}{part}/{n}.jpg": n % classes for n in range(size)} for part, size in sizes.items()
        }
        splits = {part: FileSplit(tmp_path, tuple(each), tuple(each.values())) for part, each in named.items() if each}
        own = fgvc.AnnotatedDataset(tuple(map(str, range(classes))), splits)
        (tmp_path / published.marker).parent.mkdir(exist_ok=True)
        (tmp_path / published.marker).touch()
        json_lists(tmp_path, named)
        data = fgvc.open_published_dataset(
            published, build_dataset_options(name, {"lists": lists}), tmp_path, lambda *_: own
        )
        return [note for note in data.notes if note.startswith("This copy has")]

    assert said(sizes, classes) == []
    for part in (part for part, size in sizes.items() if size):
        (note,) = said({**sizes, part: sizes[part] - 1}, classes)
        assert f"{sizes[part] - 1:,} " in note
        assert all(f"{size:,}" in note.partition("; the published ")[2] for size in sizes.values() if size)
    (note,) = said(sizes, classes - 1)
    assert f"images of {classes - 1} classes" in note and note.endswith(f"of {classes}.")


@pytest.mark.parametrize("name", ["nabirds", "dogs", "cars"])
def test_the_box_is_the_mask_to_the_pixel(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(mask_of(opened(LAYOUTS[name](tmp_path), tmp_path)), IN_BOX)


def test_a_flowers_mask_is_what_its_segmentation_does_not_show_in_blue(tmp_path: Path) -> None:
    mask = mask_of(opened(LAYOUTS["flowers"](tmp_path), tmp_path))
    assert (mask == IN_BOX).mean() > 0.97  # JPEG blurs the edge


def test_a_birds_mask_may_be_its_outline_or_its_parts(tmp_path: Path) -> None:
    LAYOUTS["cub"](tmp_path)
    outline = mask_of(opened("cub", tmp_path, mask="segmentation"))
    assert outline[10:15, 10:20].all() and outline.sum() == 50
    parts = mask_of(opened("cub", tmp_path, mask="parts"))
    rows, columns = np.nonzero(parts)  # one visible part, at (18, 12); a tenth of the box's 20 pixels around it
    assert (rows.mean(), columns.mean()) == (11.5, 17.5)
    assert parts.sum() == 12


def test_without_the_outlines_archive_it_is_said_which_to_unpack(tmp_path: Path) -> None:
    LAYOUTS["cub"](tmp_path)
    (root_of(tmp_path) / "segmentations").rename(tmp_path / "elsewhere")
    with pytest.raises(ToastError) as refused:
        opened("cub", tmp_path, mask="segmentation")
    assert refused.value.code == "data.missing-folder"
    assert "segmentations.tgz" in refused.value.what_to_do


@pytest.mark.parametrize(("name", "folder"), [("flowers", "segmim"), ("dogs", "Annotation")])
def test_masks_that_were_not_unpacked_are_left_out_and_said(name: str, folder: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    (root_of(tmp_path) / folder).rename(tmp_path / "elsewhere")
    data = registry.load_entry(registry.SOURCES, name).open(build_dataset_options(name), tmp_path)
    assert not data.splits["test"].has_masks
    assert any(note.startswith("no masks: unpack") for note in data.notes)


def test_masks_that_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    from toast_cli.data.images.loader import ImageDataset

    LAYOUTS["flowers"](tmp_path)
    split: Any = opened("flowers", tmp_path).splits["test"]
    for file in (root_of(tmp_path) / "segmim").iterdir():
        file.write_bytes(b"damaged")
    images = ImageDataset(split, lambda image, mask: (image, mask))  # type: ignore[arg-type, return-value]
    assert images.split.load(0).mask is None
    with pytest.raises(ToastError, match="segmim_00010"):
        split.load(0)


class TestJsonLists:
    @staticmethod
    def lists(name: str, where: Path, shift: int = 0) -> Path:
        """The official splits as JSON, its validation a third of train, classes counted from `shift` + 1."""
        data = opened(LAYOUTS[name](where), where, val_fraction=1 / 3)
        splits = get_image_splits(data, name)
        root = root_of(where)
        json_lists(
            root,
            {
                part: {file: label + 1 + shift for file, label in zip(split.names, split.labels, strict=True)}
                for part, split in splits.items()
            },
        )
        return root

    @pytest.mark.parametrize("name", SETS)
    def test_they_split_a_set_whose_names_and_masks_stay_its_own(self, name: str, tmp_path: Path) -> None:
        self.lists(name, tmp_path, shift=40)
        official, found = opened(name, tmp_path, val_fraction=1 / 3), opened(name, tmp_path, lists="json")
        assert found.classes == official.classes
        for part, split in get_image_splits(official, name).items():
            other = get_image_splits(found, name)[part]
            assert isinstance(split, FileSplit) and isinstance(other, FileSplit)
            assert split.regions and other.regions
            marked, again = (dict(zip(each.names, each.regions or (), strict=True)) for each in (split, other))
            assert again == marked
        np.testing.assert_array_equal(mask_of(found), mask_of(official))
        assert any("splits of train.json, val.json, test.json" in note for note in found.notes)
        assert any("dataset.lists=json" in note for note in official.notes)

    @pytest.mark.parametrize("name", SETS)
    def test_they_are_enough_without_the_sets_own_annotations(self, name: str, tmp_path: Path) -> None:
        root = self.lists(name, tmp_path)
        for file in (*root.glob("*.txt"), *root.glob("*.mat"), *root.glob("devkit/*.mat")):
            file.unlink()
        data = opened(name, tmp_path)
        assert data.classes == tuple(str(number + 1) for number in range(len(data.classes)))
        assert not data.splits["train"].has_masks
        assert any("named by the numbers" in note for note in data.notes)
        assert get_image_splits(data, name)["test"].load(0).image.size == SIZE

    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("cars", "cars_test_annos_withlabels.mat"),
            ("cars", "devkit/cars_train_annos.mat"),
            ("dogs", "test_list.mat"),
            ("flowers", "setid.mat"),
            ("cub", "bounding_boxes.txt"),
        ],
    )
    def test_they_do_without_what_is_missing_of_the_sets_own_annotations(
        self, name: str, file: str, tmp_path: Path
    ) -> None:
        root = self.lists(name, tmp_path)
        (root / file).unlink()
        data = opened(name, tmp_path, lists="json")
        assert len(data.splits["test"]) > 0 and not data.splits["test"].has_masks
        assert any("official annotations are not used" in note and Path(file).name in note for note in data.notes)
        with pytest.raises(ToastError, match=Path(file).name) as refused:
            opened(name, tmp_path)
        assert "dataset.lists=json" in refused.value.what_to_do

    def test_flowers_may_be_named_without_their_folder(self, tmp_path: Path) -> None:
        root = self.lists("flowers", tmp_path)
        for part in ("train", "val", "test"):
            content = json.loads((root / f"{part}.json").read_text())
            (root / f"{part}.json").write_text(json.dumps({Path(name).name: each for name, each in content.items()}))
        assert opened("flowers", tmp_path, lists="json").splits["test"].load(0).name == "jpg/image_00010.jpg"

    def test_classes_that_the_set_divides_otherwise_are_called_by_number(self, tmp_path: Path) -> None:
        root = self.lists("cub", tmp_path)
        content = json.loads((root / "train.json").read_text())
        content[next(iter(content))] = 2
        (root / "train.json").write_text(json.dumps(content))
        assert opened("cub", tmp_path, lists="json").classes == ("1", "2", "3")

    @pytest.mark.parametrize(
        ("content", "code", "fact"),
        [
            ("[1]", "data.invalid-list", ""),
            ("{", "data.unreadable-file", ""),
            ('{"a.jpg": "1"}', "data.invalid-list", "a.jpg.*'1'"),
            ('{"a.jpg": true}', "data.invalid-list", "a.jpg.*True"),
            ('{"../a.jpg": 1}', "data.unsafe-path", "../a.jpg"),
            ('{"/a.jpg": 1}', "data.unsafe-path", "/a.jpg"),
        ],
    )
    def test_an_odd_list_is_named(self, tmp_path: Path, content: str, code: str, fact: str) -> None:
        (self.lists("cub", tmp_path) / "val.json").write_text(content)
        with pytest.raises(ToastError, match=rf"val\.json.*{fact}") as refused:
            opened("cub", tmp_path, lists="json")
        assert refused.value.code == code

    def test_an_image_that_is_trained_on_and_tested_is_an_error(self, tmp_path: Path) -> None:
        root = self.lists("cub", tmp_path)
        train = json.loads((root / "train.json").read_text())
        (root / "test.json").write_text(json.dumps(dict(list(train.items())[:1])))
        with pytest.raises(ToastError, match=r"train\.json and test\.json") as refused:
            opened("cub", tmp_path, lists="json")
        assert refused.value.code == "data.overlapping-splits"

    def test_a_class_that_is_never_trained_is_named(self, tmp_path: Path) -> None:
        root = self.lists("cub", tmp_path)
        test = json.loads((root / "test.json").read_text())
        (root / "test.json").write_text(json.dumps({**test, next(iter(test)): 77}))
        with pytest.raises(ToastError, match=r"test\.json .*class '77'.* train\.json") as refused:
            opened("cub", tmp_path, lists="json")
        assert refused.value.code == "data.unknown-class"


class TestOddAnnotations:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("flowers", "setid.mat"),
            ("flowers", "imagelabels.mat"),
            ("dogs", "train_list.mat"),
            ("dogs", "test_list.mat"),
            ("cars", "devkit/cars_meta.mat"),
            ("cars", "devkit/cars_train_annos.mat"),
        ],
    )
    @pytest.mark.parametrize("content", [b"", b"no MATLAB", None])
    def test_a_damaged_matlab_file_is_named(self, name: str, file: str, content: bytes | None, tmp_path: Path) -> None:
        LAYOUTS[name](tmp_path)
        path = root_of(tmp_path) / file
        if content is None:
            savemat(path, {"other": np.zeros(3)})
        else:
            path.write_bytes(content)
        with pytest.raises(ToastError, match=file) as refused:
            opened(name, tmp_path)
        assert refused.value.code == ("data.invalid-annotation" if content is None else "data.unreadable-file")
        assert "Unpack" in refused.value.what_to_do

    def test_cars_without_test_labels_are_told_which_file_has_them(self, tmp_path: Path) -> None:
        LAYOUTS["cars"](tmp_path)
        (root_of(tmp_path) / "cars_test_annos_withlabels.mat").unlink()
        with pytest.raises(ToastError, match="cars_test_annos_withlabels") as refused:
            opened("cars", tmp_path)
        assert refused.value.code == "data.missing-labels"

    def test_a_flower_in_two_splits_is_an_error(self, tmp_path: Path) -> None:
        LAYOUTS["flowers"](tmp_path)
        numbers = {"trnid": [1, 2, 3], "valid": [3, 4], "tstid": [5]}
        savemat(root_of(tmp_path) / "setid.mat", {name: np.array([each]) for name, each in numbers.items()})
        with pytest.raises(ToastError, match=r"image 3 .*train.*val") as refused:
            opened("flowers", tmp_path)
        assert refused.value.code == "data.invalid-annotation"

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            ("<annotation>", "data.unreadable-file"),
            ("<annotation/>", "data.invalid-annotation"),
            (
                "<a><bndbox><xmin>4</xmin><ymin>1</ymin><xmax>2</xmax><ymax>9</ymax></bndbox></a>",
                "data.unreadable-file",
            ),
            ("<a><bndbox><xmin>4</xmin></bndbox></a>", "data.unreadable-file"),
        ],
    )
    def test_a_dogs_odd_annotation_is_named(self, tmp_path: Path, content: str, code: str) -> None:
        (tmp_path / "n1_1").write_text(content)
        with pytest.raises(ToastError, match="n1_1") as refused:
            BoxFile(tmp_path / "n1_1", read_voc_boxes).rasterize(*SIZE)
        assert refused.value.code == code

    def test_xml_that_would_grow_without_bound_is_refused(self, tmp_path: Path) -> None:
        entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
        (tmp_path / "n1_1").write_text(f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><a>&e11;</a>')
        with pytest.raises(ToastError, match="n1_1"):
            read_voc_boxes(tmp_path / "n1_1")

    def test_two_dogs_are_both_in_the_mask(self, tmp_path: Path) -> None:
        box = "<bndbox><xmin>{0}</xmin><ymin>1</ymin><xmax>{0}</xmax><ymax>1</ymax></bndbox>"
        (tmp_path / "two").write_text(f"<a>{box.format(3)}{box.format(7)}</a>")
        mask = BoxFile(tmp_path / "two", read_voc_boxes).rasterize(4, 10)
        assert np.argwhere(mask).tolist() == [[0, 2], [0, 6]]

    def test_the_outline_of_another_image_is_an_error_and_a_scaled_one_is_not(self, tmp_path: Path) -> None:
        Image.new("L", (20, 15), 255).save(tmp_path / "a.png")
        region = MaskFile(tmp_path / "a.png", lambda pixels: pixels[..., 0] > 0)
        assert region.rasterize(30, 40).all()
        with pytest.raises(ToastError) as refused:
            region.rasterize(40, 30)
        assert refused.value.code == "data.mask-size-mismatch"
        assert all(fact in refused.value.what for fact in ("a.png", "20×15", "30×40"))
