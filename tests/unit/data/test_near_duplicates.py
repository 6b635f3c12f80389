"""Near-duplicates: none missed, many at once, and nothing said of images that show nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from toast_cli.data.audit.image_scan import ScannedImage, scan_images
from toast_cli.data.audit.near_duplicates import MAX_HASH_DISTANCE, find_near_duplicates
from toast_cli.data.images.labelled_files import FileSplit


def seen(looks: list[int | None]) -> list[ScannedImage]:
    return [ScannedImage(str(number), 0, look=look) for number, look in enumerate(looks)]


def turned(look: int, bits: list[int]) -> int:
    for bit in bits:
        look ^= 1 << bit
    return look


def test_the_nearest_is_found_whichever_bits_differ_and_no_pair_beyond_the_bound() -> None:
    rng = np.random.default_rng(0)
    train = [int(value) for value in rng.integers(0, 2**64, 300, dtype=np.uint64)]
    bits = [rng.choice(64, size=number % 8, replace=False).tolist() for number in range(300)]
    test = [turned(look, each) for look, each in zip(train, bits, strict=True)]
    found = {
        twins.second[1]: twins
        for twins in find_near_duplicates({"train": seen(list(train)), "test": seen(list(test))}, set())
    }
    expected = {}
    for number, look in enumerate(test):
        distance, place = min(((look ^ other).bit_count(), place) for place, other in enumerate(train))
        if distance <= MAX_HASH_DISTANCE:
            expected[number] = (distance, place)
    assert {number: (twins.distance, twins.first[1]) for number, twins in found.items()} == expected
    assert {distance for distance, _ in expected.values()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("bits", [[0, 1, 2, 3], [20, 21, 41, 42], [60, 61, 62, 63], [0, 21, 42, 63], [0, 1, 21, 22]])
def test_four_bits_may_lie_anywhere(bits: list[int]) -> None:
    assert len(find_near_duplicates({"train": seen([0]), "test": seen([turned(0, bits)])}, set())) == 1


@pytest.mark.e2e
def test_a_hundred_thousand_images_are_compared_in_seconds_alike_or_not() -> None:
    rng = np.random.default_rng(1)
    looks = [int(value) for value in rng.integers(0, 2**64, 100_000, dtype=np.uint64)]
    alike = [int(value) for value in rng.integers(0, 2**9, 20_000, dtype=np.uint64)]  # all in the same stretches
    start = time.process_time()
    found = find_near_duplicates(
        {"train": seen([*looks[:50_000], *alike]), "test": seen([*looks[50_000:], *alike])}, set()
    )
    assert time.process_time() - start < 20  # about 2; comparing all with all takes hours
    assert len(found) == 20_000


def test_each_split_is_held_against_all_before_it_and_known_copies_are_left_out() -> None:
    parts = {"train": seen([7]), "val": seen([7, 7 ^ 1]), "test": seen([7 ^ 1, 2**64 - 1])}
    found = find_near_duplicates(parts, {("val", 0)})
    assert [(twins.first, twins.second) for twins in found] == [(("train", 0), ("val", 1)), (("val", 1), ("test", 0))]


def test_images_that_show_nothing_have_no_look_and_others_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = {
        "white.png": Image.new("RGB", (40, 30), "white"),
        "grey.png": Image.new("RGB", (64, 64), (90, 90, 90)),
        "noise of one level.png": Image.fromarray(rng.integers(127, 129, (40, 40, 3), dtype=np.uint8)),
        "photograph.png": Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((40, 40)),
    }
    for name, image in drawn.items():
        image.save(tmp_path / name)
    looks = [image.look for image in scan_images(FileSplit(tmp_path, tuple(drawn), (0,) * 4))]
    assert looks[:3] == [None] * 3 and looks[3] is not None
    assert find_near_duplicates({"train": seen(looks), "test": seen(looks[:3])}, set()) == []


def smooth(number: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Colours that change slowly, other ones for every number."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(40, 200, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def heart(turned_by: float, at: float = 28) -> Image.Image:
    """A white shape on black, as in data sets of sprites."""
    angle = np.linspace(0, 2 * np.pi, 100)
    x = np.sin(angle) ** 3
    y = -(13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 16
    cosine, sine = np.cos(turned_by), np.sin(turned_by)
    outline = np.stack([cosine * x - sine * y, sine * x + cosine * y], 1) * 36 + at * 4
    drawn = Image.new("L", (256, 256))
    ImageDraw.Draw(drawn).polygon(list(map(tuple, outline.tolist())), fill=255)
    return drawn.resize((64, 64), Image.Resampling.BOX).convert("RGB")


def looked_at(folder: Path, *images: Image.Image) -> list[ScannedImage]:
    names = tuple(f"{number}.png" for number in range(len(images)))
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    return list(scan_images(FileSplit(folder, names, (0,) * len(names))))


def test_a_picture_scaled_compressed_brightened_or_mirrored_is_a_copy(tmp_path: Path) -> None:
    train = [smooth(number) for number in range(4)]
    smooth(1).save(tmp_path / "q.jpg", quality=40)
    changed = [
        smooth(0).resize((60, 60), Image.Resampling.BICUBIC),
        Image.open(tmp_path / "q.jpg"),
        ImageEnhance.Brightness(smooth(2)).enhance(1.1),
        ImageOps.mirror(smooth(3)).resize((100, 70), Image.Resampling.BICUBIC),
    ]
    seen = {"train": looked_at(tmp_path, *train), "test": looked_at(tmp_path, *changed)}
    found = find_near_duplicates(seen, set())
    assert [(twins.first, twins.second) for twins in found] == [(("train", n), ("test", n)) for n in range(4)]
    assert [twins.mirrored for twins in found] == [False, False, False, True]
    assert all(twins.copies for twins in found)


def chest(number: int) -> Image.Image:
    """Two dark lobes on a bright ground, as in an X-ray, of other forms for every number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1:1:192j, -1:1:192j]
    grey = 200 * np.exp(-(x**2 + y**2 / 2))
    for side in (-0.4, 0.4):
        across, along = (x - side - 0.05 * rng.normal()) / (0.22 + 0.03 * rng.normal()), (y + 0.05 * rng.normal()) / 0.5
        grey -= 90 * np.exp(-(across**2 + along**2))
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


def test_copies_of_smooth_pictures_are_found_though_their_hashes_differ(tmp_path: Path) -> None:
    train, copies = [chest(number) for number in range(24)], []
    for number, image in enumerate(train):
        image = ImageOps.mirror(image) if number % 8 == 0 else image
        image.save(tmp_path / "q.jpg", quality=20 if number % 2 else 75)
        copies.append(image.resize((96, 96)) if number % 3 == 0 else Image.open(tmp_path / "q.jpg").copy())
    seen = {"train": looked_at(tmp_path, *train), "test": looked_at(tmp_path, *copies)}
    found = find_near_duplicates(seen, set())
    assert [(twins.first[1], twins.copies) for twins in found] == [(number, True) for number in range(24)]
    assert [twins.mirrored for twins in found] == [number % 8 == 0 for number in range(24)]
    assert any(twins.distance > MAX_HASH_DISTANCE for twins in found)
    others = looked_at(tmp_path, *(chest(number) for number in range(100, 160)))
    found = find_near_duplicates({"train": seen["train"], "test": others}, set())
    assert not any(twins.distance > MAX_HASH_DISTANCE for twins in found)  # none by its thumbnail alone


def test_drawn_shapes_whose_hashes_agree_are_alike_and_no_copies(tmp_path: Path) -> None:
    steps = np.arange(0, 2 * np.pi, 2 * np.pi / 40)
    train = looked_at(tmp_path, *(heart(step) for step in steps[::2]))
    test = looked_at(tmp_path, *(heart(step) for step in steps[1::2]))
    found = find_near_duplicates({"train": train, "test": test}, set())
    assert sum(twins.distance == 0 for twins in found) >= 5  # so hashes alone would call them copies
    assert not any(twins.copies for twins in found)


@pytest.mark.parametrize("before", [1, 3])
def test_a_copy_is_found_behind_others_of_the_same_hash_that_are_none(before: int) -> None:
    rng = np.random.default_rng(0)
    thumbnails = [rng.integers(0, 256, 256, dtype=np.uint8).tobytes() for _ in range(before + 1)]
    train = [ScannedImage(str(number), 0, look=7, thumbnail=thumbnail) for number, thumbnail in enumerate(thumbnails)]
    test = ScannedImage("copy", 0, look=7 ^ 2, thumbnail=thumbnails[-1])  # as far as the bound goes, nearer ones or not
    for look in (7, 7 ^ 2):
        train[0] = replace(train[0], look=look)
        [found] = find_near_duplicates({"train": train, "test": [test]}, set())
        assert (found.first, found.copies) == (("train", before), True)


def test_scenes_of_the_demo_are_no_copies_of_each_other() -> None:
    from toast_cli.data.demo.scenes import DemoOptions, open_demo

    splits = open_demo(DemoOptions(train_images=150, val_images=50, test_images=50), None).splits
    assert find_near_duplicates({part: list(scan_images(split)) for part, split in splits.items()}, set()) == []
