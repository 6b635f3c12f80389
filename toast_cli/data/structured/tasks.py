"""Structured tasks drawn as four tasks of VTAB-1k are described; nothing is downloaded.

VTAB: Zhai et al., *A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark* (2019).
`dsprites-location` and `dsprites-orientation` show one white sprite (square, ellipse or heart, six sizes) on black, as
dSprites (Matthey et al., 2017) does; the horizontal position or the orientation is binned into 16 classes. `count` and
`distance` show three to ten solids on a plane, as CLEVR (Johnson et al., CVPR 2017) does; the class is how many there
are (8 classes), or the bin of the distance from the camera to the nearest one (6 classes).

As in dSprites, a square turned by a quarter and an ellipse turned by half look as before, so orientation cannot be
told perfectly. The images are ours, so no number on them is one of VTAB's. An image depends on (seed, task, list,
index) alone.
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
"""VTAB-1k's training and validation images: the first and the last of one list of 1,000."""

# Part of what seeds an image: changing a number changes every picture.
_TASK_STREAM = {name: number for number, name in enumerate(CLASS_COUNTS, start=21)}
_LIST_STREAM: dict[str, int] = {"train": 1, "test": 3}


class StructuredOptions(NamedOptions):
    """Which task, and which of its images are trained on."""

    name: Literal["structured"] = Field("structured", description="the data set")
    path: str = Field(description="the task: " + ", ".join(CLASS_COUNTS))
    use: Literal["train800", "all1000"] = Field(
        "train800",
        description="train800: validated on 200 more images, to choose settings; all1000: trained on all 1,000, "
        "without validation, for the run that is reported",
    )
    test_images: int = Field(2000, ge=1, le=1_000_000, description="images in the test split")
    side: int = Field(64, ge=32, le=1024, description="height and width of an image in pixels")
    draw_seed: int = Field(0, ge=0, description="another seed draws other images")


def draw_structured_sample(options: StructuredOptions, split: ListName, index: int) -> Sample:
    """Draw one image of a list; its class is `index % classes`."""
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
    """Open a task; `data_dir` is not read.

    Raises:
        UsageError: there is no such task.
    """
    if options.path not in CLASS_COUNTS:
        raise UsageError(
            f"There is no structured task '{options.path}'.",
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
    note = f"Drawn as VTAB-1k's {options.path} is described. Numbers on it are not comparable with published ones."
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
    StructuredOptions, open_structured, "nothing: drawn as four of VTAB-1k's structured tasks are: structured:TASK"
)
