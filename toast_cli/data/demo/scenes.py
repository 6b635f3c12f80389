"""The built-in demo data: drawn scenes whose class depends on one object that the model has to find.

A scene of the *fine* task contains one small, dull beetle and three larger, brighter objects of other kinds. The class
is the marking of the beetle. The other objects have independent random markings from the same pool, so only a model
that finds the beetle can predict the class.

Two coarser tasks are meant for pre-training a backbone. Their class is an object kind and a marking family. A *coarse*
scene contains only objects of that kind and family, which teaches outlines and patterns. A *crowded* scene adds smaller
objects of any kind and marking, so the backbone must keep the features of different objects apart. Neither task gives
the beetle a special role or distinguishes the two markings of a family.

Nothing is stored or downloaded. An image depends only on (world seed, task, split, index), and every task and split has
its own random stream. The label is the index modulo the number of classes, so classes are balanced and labels are known
without drawing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, Sample
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

DemoTask = Literal["fine", "coarse", "crowded"]
SplitName = Literal["train", "val", "test"]

# These numbers are part of the seed of an image: changing one changes every image.
_TASK_STREAM: dict[str, int] = {"fine": 1, "coarse": 2, "crowded": 3}
_SPLIT_STREAM: dict[str, int] = {"train": 1, "val": 2, "test": 3}

MAX_IMAGES = 10_000_000
MAX_IMAGE_SIDE = 1024
"""Upper limits, so that a typing error or an untrusted recipe cannot draw for days or exhaust memory."""


class DemoOptions(NamedOptions):
    """Options of the demo data: the task and the number of images."""

    name: Literal["demo"] = "demo"
    task: DemoTask = Field(
        "fine", description="fine: marking of the beetle; coarse and crowded: kind and marking family, for pre-training"
    )
    train_images: int = Field(3000, ge=1, le=MAX_IMAGES, description="images in the train split")
    val_images: int = Field(600, ge=1, le=MAX_IMAGES, description="images in the val split")
    test_images: int = Field(1000, ge=1, le=MAX_IMAGES, description="images in the test split")
    side: int = Field(64, ge=32, le=MAX_IMAGE_SIDE, multiple_of=8, description="height and width of an image in pixels")
    classes: int = Field(5, ge=2, le=10, description="number of markings in the fine task; the other tasks use all")
    world_seed: int = Field(0, ge=0, examples=[1], description="seed of the images; the tasks stay the same")


MAX_CACHED_SCENE_BYTES = 512_000_000
"""Maximum size of the scenes that a split caches for the next epoch."""


@dataclass(frozen=True)
class DemoSplit:
    """A split of scenes, each drawn on first access."""

    options: DemoOptions
    split: SplitName
    length: int
    has_masks: bool = True
    marks: str = "its exact pixels"
    _kept: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labels(self) -> list[int]:
        """Class of every image: its index modulo the number of classes."""
        count = len(get_demo_classes(self.options))
        return [index % count for index in range(self.length)]

    @property
    def names(self) -> list[str]:
        """Name of every image in messages and tables."""
        return [self._format_name(index) for index in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> Sample:
        """Draw the scene at `index`."""
        from PIL import Image

        if not 0 <= index < self.length:
            raise IndexError(f"image {index} is out of range: {self.split} has {self.length} images")
        label = index % len(get_demo_classes(self.options))
        pixels, mask = self._kept.get(index) or draw_demo_scene(self.options, self.split, index, label)
        if len(self._kept) * (pixels.nbytes + mask.nbytes) < MAX_CACHED_SCENE_BYTES:
            self._kept[index] = pixels, mask
        return Sample(image=Image.fromarray(pixels), label=label, name=self._format_name(index), mask=mask)

    def _format_name(self, index: int) -> str:
        return f"{self.options.task}/{self.split}/{index:06d}"


def get_demo_classes(options: DemoOptions) -> tuple[str, ...]:
    """Return the class names: markings (fine) or "kind, family" (coarse and crowded)."""
    from toast_cli.data.demo.scene_generator import MARKING_FAMILIES, MARKINGS, OBJECT_KINDS

    if options.task == "fine":
        return tuple(MARKINGS)[: options.classes]
    return tuple(f"{kind}, {family}" for kind in OBJECT_KINDS for family in MARKING_FAMILIES)


def create_image_rng(options: DemoOptions, split: SplitName, index: int) -> np.random.Generator:
    """Return the random generator of an image."""
    import numpy as np

    return np.random.default_rng([options.world_seed, _TASK_STREAM[options.task], _SPLIT_STREAM[split], index])


def draw_demo_scene(options: DemoOptions, split: SplitName, index: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the scene at `index` of a split.

    Returns:
        The image `[H, W, 3]` uint8, and the mask `[H, W]` bool of the objects that determine the label.
    """
    from toast_cli.data.demo.scene_generator import draw_coarse_scene, draw_crowded_scene, draw_fine_scene

    rng = create_image_rng(options, split, index)
    names = get_demo_classes(options)
    if options.task == "fine":
        return draw_fine_scene(rng, options.side, names[label], names)
    kind, family = names[label].split(", ")
    scene = draw_coarse_scene if options.task == "coarse" else draw_crowded_scene
    return scene(rng, options.side, kind, family)


def open_demo(options: DemoOptions, data_dir: Path | None) -> DataSet:
    """Return the demo data as a data set. `data_dir` is not used."""
    splits = {
        "train": DemoSplit(options, "train", options.train_images),
        "val": DemoSplit(options, "val", options.val_images),
        "test": DemoSplit(options, "test", options.test_images),
    }
    return DataSet(
        classes=get_demo_classes(options),
        splits=splits,
        notes=("The demo images are drawn. Results on them only illustrate the method; they are not a benchmark.",),
    )


SOURCE = DataSource(DemoOptions, open_demo, "nothing: images are drawn on access")
