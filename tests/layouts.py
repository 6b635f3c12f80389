"""Tiny copies of data sets in the layouts in which they are published, drawn and not downloaded.

`LAYOUTS[name](folder)` makes one below `folder`, which is then the `--data-dir`, and returns what to say to --dataset.
"""

from __future__ import annotations

import csv
import json
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

SIZE = (40, 30)
"""Width and height of every image."""
BOX = (8, 5, 20, 15)
"""x, y, width and height of the object in every image."""


def photograph(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth colours with a disc in BOX, other ones for every number."""
    rng = np.random.default_rng(number)
    colours = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    image = colours.resize(size, Image.Resampling.BICUBIC)
    x, y, width, height = BOX
    ImageDraw.Draw(image).ellipse((x, y, x + width - 1, y + height - 1), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def put(path: Path, number: int) -> None:
    """A photograph as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(number).save(path)


def encoded(number: int, kind: str = "jpeg") -> bytes:
    """A photograph's bytes."""
    content = BytesIO()
    photograph(number).save(content, kind)
    return content.getvalue()


def tarred(path: Path, files: dict[str, bytes]) -> None:
    """An uncompressed tar of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))


def lines(path: Path, content: list[str]) -> None:
    """A text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in content))


def cell(values: list[str]) -> np.ndarray:
    """MATLAB's column of texts."""
    return np.array(values, dtype=object).reshape(-1, 1)


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """MATLAB's row of structures."""
    found = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        for name, value in row.items():
            found[0, place][name] = value
    return found


def json_lists(root: Path, splits: dict[str, dict[str, int]]) -> None:
    """train.json, val.json and test.json in common use."""
    for part, content in splits.items():
        (root / f"{part}.json").write_text(json.dumps(content))


def folder(where: Path) -> str:
    number = 0
    for part, count in (("train", 5), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            for place in range(count):
                number += 1
                put(where / "pets" / part / name / f"{place}.jpg", number)
    return "folder:pets"


def images(where: Path) -> str:
    for number in range(12):
        put(where / "photos" / f"{number % 3}" / f"{number}.jpg", number)
    return "images:photos"


def archive(where: Path) -> str:
    with zipfile.ZipFile(where / "pets.zip", "w") as packed:
        for number in range(16):
            packed.writestr(f"pets/{'cat' if number % 2 else 'dog'}/{number:02d}.jpg", encoded(number))
    return "archive:pets.zip"


def table(where: Path) -> str:
    with (where / "pets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "x", "y", "width", "height"])
        for number in range(16):
            put(where / f"{number:02d}.jpg", number)
            writer.writerow([f"{number:02d}.jpg", "cat" if number % 2 else "dog", *BOX])
    return "table:pets.csv"


def hf(where: Path) -> str:
    folder(where)
    return "hf:pets"


def grid(where: Path) -> str:
    folder(where)
    for number in range(60):
        put(where / "others" / f"{number}.jpg", 1000 + number)
    return "grid:folder:pets+images:others"


def cub(where: Path) -> str:
    root = where / "CUB_200_2011"
    species = ("001.Grey_Heron", "002.Wren", "003.Kite")
    names = [f"{name}/{name[4:]}_{place}.jpg" for name in species for place in range(6)]
    ids = range(1, len(names) + 1)
    for number, name in zip(ids, names, strict=True):
        put(root / "images" / name, number)
        outline = root / "segmentations" / name
        outline.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.new("L", SIZE, 51)
        ImageDraw.Draw(grey).rectangle((10, 10, 19, 14), fill=204)
        grey.save(outline.with_suffix(".png"))
    lines(root / "images.txt", [f"{i} {name}" for i, name in zip(ids, names, strict=True)])
    lines(root / "classes.txt", [f"{i} {name}" for i, name in enumerate(species, start=1)])
    lines(root / "image_class_labels.txt", [f"{i} {(i - 1) // 6 + 1}" for i in ids])
    lines(root / "train_test_split.txt", [f"{i} {int(i % 3 != 0)}" for i in ids])
    x, *rest = BOX
    lines(root / "bounding_boxes.txt", [f"{i} {' '.join(f'{side:.1f}' for side in (x + i % 5, *rest))}" for i in ids])
    lines(root / "parts/parts.txt", ["1 back", "2 beak"])
    lines(root / "parts/part_locs.txt", [line for i in ids for line in (f"{i} 1 18.0 12.0 1", f"{i} 2 0.0 0.0 0")])
    return "cub"


def nabirds(where: Path) -> str:
    root = where / "nabirds"
    kinds = {"817": "Wren", "295": "Kite (Adult)", "1010": "Kite (Juvenile)"}
    names = {}
    for number in range(18):
        kind = list(kinds)[number % 3]
        identifier = f"{number:08x}-21dc-4d0c-bfe1-4cae3c85c829"
        names[identifier] = f"{int(kind):04d}/{identifier.replace('-', '')}.jpg", kind
        put(root / "images" / names[identifier][0], number)
    lines(root / "images.txt", [f"{i} {name}" for i, (name, _) in names.items()])
    # The tree of kinds: most of what classes.txt names has no image of its own.
    lines(root / "classes.txt", ["0 Birds", "22 Wren", *(f"{i} {name}" for i, name in kinds.items())])
    lines(root / "hierarchy.txt", ["22 0", *(f"{i} 22" for i in kinds)])
    lines(root / "image_class_labels.txt", [f"{i} {kind}" for i, (_, kind) in names.items()])
    lines(root / "train_test_split.txt", [f"{i} {int(n % 9 < 6)}" for n, i in enumerate(names)])
    lines(root / "bounding_boxes.txt", [f"{i} {' '.join(map(str, BOX))}" for i in names])
    lines(root / "sizes.txt", [f"{i} {SIZE[0]} {SIZE[1]}" for i in names])
    lines(root / "parts/part_locs.txt", [f"{i} {part} 18 12 {int(part == 0)}" for i in names for part in range(11)])
    return "nabirds"


def flowers(where: Path) -> str:
    root = where / "flowers-102"
    for number in range(1, 19):
        put(root / f"jpg/image_{number:05d}.jpg", number)
        drawn = Image.new("RGB", SIZE, (0, 0, 254))
        x, y, width, height = BOX
        ImageDraw.Draw(drawn).rectangle((x, y, x + width - 1, y + height - 1), fill=(240, 200, 40))
        (root / "segmim").mkdir(exist_ok=True)
        drawn.save(root / f"segmim/segmim_{number:05d}.jpg", quality=95)
    numbers = np.arange(1, 19, dtype=np.uint16)
    savemat(root / "imagelabels.mat", {"labels": ((numbers - 1) % 3 + 1).astype(np.uint8)[None]})
    savemat(root / "setid.mat", {"trnid": numbers[None, :6], "valid": numbers[None, 6:9], "tstid": numbers[None, 9:]})
    return "flowers"


DOG = """<annotation><folder>02085620</folder><filename>{stem}</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><bndbox><xmin>9</xmin><ymin>6</ymin><xmax>28</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""


def dogs(where: Path) -> str:
    root = where / "StanfordDogs"
    breeds = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
    listed: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for number in range(16):
        breed = breeds[number % 2]
        stem = f"{breed.partition('-')[0]}_{number}"
        put(root / "Images" / breed / f"{stem}.jpg", number)
        lines(root / "Annotation" / breed / stem, [DOG.format(stem=stem)])
        listed["train" if number < 10 else "test"].append((f"{breed}/{stem}.jpg", number % 2 + 1))
    for part, entries in listed.items():
        savemat(
            root / f"{part}_list.mat",
            {
                "file_list": cell([name for name, _ in entries]),
                "annotation_list": cell([name.removesuffix(".jpg") for name, _ in entries]),
                "labels": np.array([[label] for _, label in entries], dtype=np.uint8),
            },
        )
    return "dogs"


def cars(where: Path) -> str:
    root = where / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    kinds = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array([kinds], dtype=object)})
    x, y, width, height = BOX
    corners = {"bbox_x1": x + 1, "bbox_y1": y + 1, "bbox_x2": x + width, "bbox_y2": y + height}
    for part, count, file in (
        ("train", 10, "devkit/cars_train_annos.mat"),
        ("test", 6, "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for number in range(1, count + 1):
            put(root / f"cars_{part}" / f"{number:05d}.jpg", number + 100 * (part == "test"))
            rows.append({**corners, "class": number % 2 + 1, "fname": f"{number:05d}.jpg"})
        savemat(root / file, {"annotations": structs(rows)})
    return "cars"


def vtab(where: Path) -> str:
    root = where / "vtab-1k/kitti"
    listed: dict[str, list[str]] = {"train800": [], "val200": [], "test": []}
    for part, name, count in (("train", "train800", 8), ("val", "val200", 4), ("test", "test", 8)):
        for number in range(count):
            path = f"images/{part}/{number:06d}.jpg"
            put(root / path, number + {"train": 0, "val": 100, "test": 200}[part])
            listed[name].append(f"{path} {number % 4}")
    for name, content in {**listed, "train800val200": listed["train800"] + listed["val200"]}.items():
        lines(root / f"{name}.txt", content)
    return "vtab:kitti"


WNIDS = ("n01440764", "n01443537", "n01484850")


def imagenet(where: Path) -> str:
    """As unpacked, validation images sorted into classes."""
    for number in range(15):
        put(where / "imagenet/train" / WNIDS[number % 3] / f"{WNIDS[number % 3]}_{number}.JPEG", number)
    for number in range(6):
        put(where / "imagenet/val" / WNIDS[number % 3] / f"ILSVRC2012_val_{number + 1:08d}.JPEG", 100 + number)
    return "imagenet"


def imagenet_in_tars(where: Path) -> str:
    """The same images in the official archives, with the development kit to say the classes of validation."""
    root = where / "imagenet"
    inner = {}
    for place, wnid in enumerate(WNIDS):
        tarred(root / "inner.tar", {f"{wnid}_{n}.JPEG": encoded(n) for n in range(place, 15, 3)})
        inner[f"{wnid}.tar"] = (root / "inner.tar").read_bytes()
    (root / "inner.tar").unlink()
    tarred(root / "ILSVRC2012_img_train.tar", inner)
    tarred(root / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_{n + 1:08d}.JPEG": encoded(100 + n) for n in range(6)})
    kit = root / "ILSVRC2012_devkit_t12/data"
    ids = {2: WNIDS[0], 3: WNIDS[1], 1: WNIDS[2]}  # the kit numbers classes in an order of its own
    number_of = {wnid: number for number, wnid in ids.items()}
    lines(kit / "ILSVRC2012_validation_ground_truth.txt", [str(number_of[WNIDS[n % 3]]) for n in range(6)])
    synsets = [{"ILSVRC2012_ID": number, "WNID": wnid, "words": "fish"} for number, wnid in ids.items()]
    savemat(kit / "meta.mat", {"synsets": structs(synsets).T})
    return "imagenet"


def shards(where: Path, count: int = 4, per_shard: int = 6, classes: int = 3) -> str:
    """WebDataset: image and class of a sample under one name."""
    for shard in range(count):
        files = {}
        for place in range(per_shard):
            number = shard * per_shard + place
            files[f"{number:06d}.jpg"] = encoded(number)
            files[f"{number:06d}.cls"] = str(number % classes).encode()
        tarred(where / f"shards/train-{shard:04d}.tar", files)
    return "shards:shards/train-{0000..%04d}.tar" % (count - 1)  # noqa: UP031 (braces are meant)


def torchvision(where: Path) -> str:
    root = where / "oxford-iiit-pet"
    for part, count in (("trainval", 5), ("test", 2)):
        listed = []
        for label, breed in enumerate(("Abyssinian", "american_bulldog"), start=1):
            for number in range(count):
                name = f"{breed}_{number + 100 * (part == 'test')}"
                put(root / f"images/{name}.jpg", 1000 * label + number + 100 * (part == "test"))
                listed.append(f"{name} {label} {label} 1")
        lines(root / f"annotations/{part}.txt", listed)
    return "torchvision:OxfordIIITPet"


def demo(where: Path) -> str:
    return "demo"


def structured(where: Path) -> str:
    return "structured:dsprites-location"


LAYOUTS: dict[str, Callable[[Path], str]] = {
    make.__name__: make
    for make in (
        folder,
        images,
        archive,
        table,
        hf,
        grid,
        cub,
        nabirds,
        flowers,
        dogs,
        cars,
        vtab,
        imagenet,
        imagenet_in_tars,
        torchvision,
        demo,
        structured,
    )
}
"""Everything whose images can be looked up one by one."""

STREAMS: dict[str, Callable[[Path], str]] = {"shards": shards}
"""What is read from front to end."""
