"""Structured tasks: procedural versions of four VTAB-1k tasks that need no download.

VTAB: Zhai et al., *A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark* (2019).
`dsprites-location` and `dsprites-orientation` show one white sprite (square, ellipse or heart, six sizes) on black, as
in dSprites (Matthey et al., 2017). The class is the horizontal position or the orientation, in 16 bins. `count` and
`distance` show three to ten solids on a plane, as in CLEVR (Johnson et al., CVPR 2017). The class is the number of
solids (8 classes) or the distance from the camera to the nearest one (6 bins).

As in dSprites, a square looks the same after a quarter turn and an ellipse after a half turn, so the orientation cannot
be predicted perfectly. The images differ from those of VTAB, so results are not comparable with VTAB results. An image
depends only on (seed, task, list, index).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, Sample, Split
from toast_cli.data.procedural import ProceduralSplit
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

ListName = Literal["train", "test"]

CLASS_COUNTS = {"dsprites-location": 16, "dsprites-orientation": 16, "count": 8, "distance": 6}
"""Number of classes of every task."""
TRAIN_IMAGES, VAL_IMAGES = 800, 200
"""Training and validation images in VTAB-1k: the first 800 and the last 200 of a list of 1,000."""

# These numbers are part of the seed of an image: changing one changes every image.
_TASK_STREAM = {name: number for number, name in enumerate(CLASS_COUNTS, start=21)}
_LIST_STREAM: dict[str, int] = {"train": 1, "test": 3}


class StructuredOptions(NamedOptions):
    """Options of a structured task: the task and the images to train on."""

    name: Literal["structured"] = Field("structured", description="the data set")
    path: str = Field(examples=["count"], description="the task: " + ", ".join(CLASS_COUNTS))
    use: Literal["train800", "all1000"] = Field(
        "train800",
        description="train800: train on 800 images and validate on 200, to choose hyperparameters; all1000: train on "
        "all 1,000 without validation, for the result to report",
    )
    test_images: int = Field(2000, ge=1, le=1_000_000, description="images in the test split")
    side: int = Field(64, ge=32, le=1024, description="height and width of an image in pixels")
    draw_seed: int = Field(0, ge=0, examples=[1], description="seed of the images")


def draw_structured_sample(options: StructuredOptions, split: ListName, index: int) -> Sample:
    """Draw an image of a list. Its class is `index` modulo the number of classes."""
    import numpy as np
    from PIL import Image

    from toast_cli.data.structured.solids import draw_solids_scene
    from toast_cli.data.structured.sprites import draw_sprite_scene

    label = index % CLASS_COUNTS[options.path]
    rng = np.random.default_rng([options.draw_seed, _TASK_STREAM[options.path], _LIST_STREAM[split], index])
    name = f"{options.path}/{split}/{index:07d}"
    if options.path in ("count", "distance"):
        count = label + 3 if options.path == "count" else None
        pixels = draw_solids_scene(rng, options.side, count, label if options.path == "distance" else None)
        return Sample(Image.fromarray(pixels), label, name)
    column, turn = (label, None) if options.path == "dsprites-location" else (None, label)
    pixels, mask = draw_sprite_scene(rng, options.side, column, turn)
    return Sample(Image.fromarray(pixels), label, name, mask=mask)


def open_structured(options: StructuredOptions, data_dir: Path | None) -> DataSet:
    """Return a task as a data set. `data_dir` is not used.

    Raises:
        UsageError: If the task is unknown.
    """
    if options.path not in CLASS_COUNTS:
        raise UsageError(
            f"Unknown structured task '{options.path}'.",
            what_to_do=did_you_mean(options.path, CLASS_COUNTS),
            code="data.unknown-task",
        )
    train = TRAIN_IMAGES if options.use == "train800" else TRAIN_IMAGES + VAL_IMAGES
    lists: dict[str, tuple[ListName, int, int]] = {
        "train": ("train", 0, train),
        "test": ("test", 0, options.test_images),
    }
    if options.use == "train800":
        lists["val"] = ("train", TRAIN_IMAGES, VAL_IMAGES)
    splits: dict[str, Split] = {
        split: ProceduralSplit(
            f"{options.path}/{name}",
            length,
            partial(draw_structured_sample, options, name),
            CLASS_COUNTS[options.path],
            first,
            has_masks=options.path.startswith("dsprites"),
        )
        for split, (name, first, length) in lists.items()
    }
    names = _get_class_names(options.path)
    note = f"A procedural version of VTAB-1k's {options.path}. Results are not comparable with published results."
    return DataSet(names, splits, (note,))


def _get_class_names(task: str) -> tuple[str, ...]:
    if task == "count":
        return tuple(f"{count} solids" for count in range(3, 11))
    if task == "distance":
        from toast_cli.data.structured.solids import DISTANCE_BIN_EDGES

        return tuple(f"{near:g} to {far:g}" for near, far in pairwise(DISTANCE_BIN_EDGES))
    word = "column" if task == "dsprites-location" else "turn"
    return tuple(f"{word} {number} of 16" for number in range(1, 17))


SOURCE = DataSource(
    StructuredOptions, open_structured, "nothing: drawn versions of four structured VTAB-1k tasks: structured:TASK"
)
