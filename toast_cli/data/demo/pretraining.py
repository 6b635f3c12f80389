"""Drawn scenes for pre-training `vit_demo`, labelled with object kind and marking at every pixel.

An object has one of 14 kinds, one of 10 markings and a random color. The beetle is one kind among others. A *several*
scene contains two to seven objects of similar size. A *dominant* scene contains two to four objects, one of which
covers the most pixels.

An image depends only on (world seed, scenes, split, index). The random streams differ from those of the other demo
tasks, so no scene of the fine task occurs here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, Sample, Split
from toast_cli.data.demo.scenes import MAX_IMAGE_SIDE, MAX_IMAGES, SplitName
from toast_cli.data.procedural import ProceduralSplit
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

PRETRAINING_GROUND_CLASS = "ground"

# Numbers 1 to 3 are the streams of `demo`.
_SCENES_STREAM: dict[str, int] = {"several": 11, "dominant": 12}
_SPLIT_STREAM: dict[SplitName, int] = {"train": 1, "val": 2, "test": 3}


class DemoPretrainingOptions(NamedOptions):
    """Options of the pre-training scenes."""

    name: Literal["demo-pretraining"] = "demo-pretraining"
    scenes: Literal["several", "dominant"] = Field(
        "several", description="several: two to seven objects of similar size; dominant: one object is the largest"
    )
    train_images: int = Field(100_000, ge=1, le=MAX_IMAGES, description="images in the train split")
    val_images: int = Field(1000, ge=1, le=MAX_IMAGES, description="images in the val split")
    test_images: int = Field(1000, ge=1, le=MAX_IMAGES, description="images in the test split")
    side: int = Field(64, ge=32, le=MAX_IMAGE_SIDE, multiple_of=8, description="height and width of an image in pixels")
    world_seed: int = Field(0, ge=0, examples=[1], description="seed of the images")


def draw_pretraining_sample(options: DemoPretrainingOptions, split: SplitName, index: int) -> Sample:
    """Draw a scene with the class of every pixel."""
    import numpy as np
    from PIL import Image

    seed = [options.world_seed, _SCENES_STREAM[options.scenes], _SPLIT_STREAM[split], index]
    scene = draw_several_scene if options.scenes == "several" else draw_dominant_scene
    pixels, classes = scene(np.random.default_rng(seed), options.side)
    return Sample(Image.fromarray(pixels), -1, f"{options.scenes}/{split}/{index:07d}", classes=classes)


def get_pretraining_classes() -> tuple[str, ...]:
    """Return the class names: the ground and every "kind, marking"."""
    from toast_cli.data.demo.scene_generator import MARKINGS
    from toast_cli.data.demo.shapes import PRETRAINING_KINDS

    return (PRETRAINING_GROUND_CLASS, *(f"{kind}, {marking}" for kind in PRETRAINING_KINDS for marking in MARKINGS))


def draw_several_scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two to seven objects of similar size.

    Returns:
        The image `[H, W, 3]` uint8 and the class of every pixel `[H, W]` uint8, 0 on the ground.
    """
    across = 2 if rng.uniform() < 0.4 else 3
    count = int(rng.integers(2, 5 if across == 2 else 8))
    return _draw_scene(rng, side, across, side / across * rng.uniform(0.36, 0.46, count))


def draw_dominant_scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two to four objects. All but the largest have 0.55 to 0.82 times its size.

    Returns:
        The same as `draw_several_scene`.
    """
    largest = side * rng.uniform(0.19, 0.235)
    shares = [1.0, *rng.uniform(0.55, 0.82, int(rng.integers(1, 4)))]
    return _draw_scene(rng, side, 2, largest * rng.permutation(shares))


def _draw_scene(rng: np.random.Generator, side: int, across: int, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw one object per entry of `sizes`: the radius, in pixels, of the disc with the same area."""
    import numpy as np

    from toast_cli.data.demo.scene_generator import (
        ALL_COLOURS,
        MARKINGS,
        draw_background,
        paint_object,
        sample_object,
        sample_positions,
        to_uint8,
    )
    from toast_cli.data.demo.shapes import PRETRAINING_KINDS, compute_relative_area

    kinds, markings = list(PRETRAINING_KINDS), list(MARKINGS)
    image, classes = draw_background(rng, side), np.zeros((side, side), np.uint8)
    for place, size in zip(sample_positions(rng, side, len(sizes), across), sizes.tolist(), strict=True):
        kind, marking = int(rng.integers(len(kinds))), int(rng.integers(len(markings)))
        radius = size / compute_relative_area(kinds[kind]) ** 0.5
        thing = sample_object(rng, kinds[kind], markings[marking], place, radius, ALL_COLOURS)
        classes[paint_object(image, thing, PRETRAINING_KINDS)] = 1 + kind * len(markings) + marking
    return to_uint8(image), classes


def open_demo_pretraining(options: DemoPretrainingOptions, data_dir: Path | None) -> DataSet:
    """Return the scenes as a data set. `data_dir` is not used."""
    lengths: dict[SplitName, int] = {
        "train": options.train_images,
        "val": options.val_images,
        "test": options.test_images,
    }
    splits: dict[str, Split] = {
        split: ProceduralSplit(f"{options.scenes}/{split}", length, partial(draw_pretraining_sample, options, split))
        for split, length in lengths.items()
    }
    note = "These scenes are drawn, not photographed. They are meant for pre-training vit_demo."
    return DataSet(get_pretraining_classes(), splits, (note,))


SOURCE = DataSource(
    DemoPretrainingOptions,
    open_demo_pretraining,
    "nothing: drawn scenes for pre-training vit_demo, with a class for every pixel",
    "token-labels",
)
