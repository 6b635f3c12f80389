"""The built-in demo data: a drawn world in which looking at the right object is the whole task.

Every scene of the *fine* task holds one beetle, small and dull, among three bigger and brighter things
of other kinds. The class is the beetle's marking. The others wear markings from the same pool, drawn
independently, so counting markings says next to nothing: only the one on the beetle does, and only a model
that finds the beetle can read it.

Two coarser tasks of the same world are for pre-training a backbone; their class is a kind and a family of markings.
A *coarse* scene holds things of that kind and family alone, so a backbone learns outlines and patterns from it.
A *crowded* scene adds smaller things of any kind and marking, so a backbone must keep what belongs to which
thing apart. Nothing in either singles out the beetle or tells the two markings of a family apart.

Nothing is stored or downloaded. An image depends on (world seed, task, split, index) alone, each task and split
has a random stream of its own, and labels go round by index, so they are balanced and known without drawing.
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

# Part of what seeds an image: changing a number changes every picture.
_TASK_STREAM: dict[str, int] = {"fine": 1, "coarse": 2, "crowded": 3}
_SPLIT_STREAM: dict[str, int] = {"train": 1, "val": 2, "test": 3}

MAX_IMAGES = 10_000_000
MAX_IMAGE_SIDE = 1024
"""Beyond these a slip of the pen, or a recipe of somebody else's, would draw for days or fill all memory."""


class DemoOptions(NamedOptions):
    """Which task of the demo world, and how much of it."""

    name: Literal["demo"] = "demo"
    task: DemoTask = Field(
        "fine", description="fine: the beetle's marking; coarse and crowded: kind and marking family, for pre-training"
    )
    train_images: int = Field(3000, ge=1, le=MAX_IMAGES, description="images in the train split")
    val_images: int = Field(600, ge=1, le=MAX_IMAGES, description="images in the val split")
    test_images: int = Field(1000, ge=1, le=MAX_IMAGES, description="images in the test split")
    side: int = Field(64, ge=32, le=MAX_IMAGE_SIDE, multiple_of=8, description="height and width of an image in pixels")
    classes: int = Field(5, ge=2, le=10, description="how many markings the fine task uses; the coarse task uses all")
    world_seed: int = Field(0, ge=0, description="which world: another seed draws other images of the same tasks")


MAX_CACHED_SCENE_BYTES = 512_000_000
"""Drawn scenes are kept for the next epoch, up to this size per split."""


@dataclass(frozen=True)
class DemoSplit:
    """One stream of scenes, drawn when first asked for."""

    options: DemoOptions
    split: SplitName
    length: int
    has_masks: bool = True
    marks: str = "its exact pixels"
    _kept: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labels(self) -> list[int]:
        """Class of every image, round by index."""
        count = len(get_demo_classes(self.options))
        return [index % count for index in range(self.length)]

    @property
    def names(self) -> list[str]:
        """What an error or a table calls every image."""
        return [self._name(index) for index in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> Sample:
        """Draw the scene at `index`."""
        from PIL import Image

        if not 0 <= index < self.length:
            raise IndexError(f"{self.split} has {self.length} images, there is no image {index}")
        label = index % len(get_demo_classes(self.options))
        pixels, mask = self._kept.get(index) or draw_demo_scene(self.options, self.split, index, label)
        if len(self._kept) * (pixels.nbytes + mask.nbytes) < MAX_CACHED_SCENE_BYTES:
            self._kept[index] = pixels, mask
        return Sample(image=Image.fromarray(pixels), label=label, name=self._name(index), mask=mask)

    def _name(self, index: int) -> str:
        return f"{self.options.task}/{self.split}/{index:06d}"


def get_demo_classes(options: DemoOptions) -> tuple[str, ...]:
    """Marking names (fine), or "kind, family" (coarse and crowded)."""
    from toast_cli.data.demo.world import MARKING_FAMILIES, MARKINGS, OBJECT_KINDS

    if options.task == "fine":
        return tuple(MARKINGS)[: options.classes]
    return tuple(f"{kind}, {family}" for kind in OBJECT_KINDS for family in MARKING_FAMILIES)


def create_image_rng(options: DemoOptions, split: SplitName, index: int) -> np.random.Generator:
    """Where the random numbers of one image come from."""
    import numpy as np

    return np.random.default_rng([options.world_seed, _TASK_STREAM[options.task], _SPLIT_STREAM[split], index])


def draw_demo_scene(options: DemoOptions, split: SplitName, index: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    """The scene at `index` of a split: `[H, W, 3]` uint8 and the mask `[H, W]` of what carries the label."""
    from toast_cli.data.demo.world import draw_coarse_scene, draw_crowded_scene, draw_fine_scene

    rng = create_image_rng(options, split, index)
    names = get_demo_classes(options)
    if options.task == "fine":
        return draw_fine_scene(rng, options.side, names[label], names)
    kind, family = names[label].split(", ")
    scene = draw_coarse_scene if options.task == "coarse" else draw_crowded_scene
    return scene(rng, options.side, kind, family)


def open_demo(options: DemoOptions, data_dir: Path | None) -> DataSet:
    """The demo world as a data set; `data_dir` is not needed and not read."""
    splits = {
        "train": DemoSplit(options, "train", options.train_images),
        "val": DemoSplit(options, "val", options.val_images),
        "test": DemoSplit(options, "test", options.test_images),
    }
    return DataSet(
        classes=get_demo_classes(options),
        splits=splits,
        notes=("The demo world is drawn, not photographed: its numbers show the method at work, nothing more.",),
    )


SOURCE = DataSource(DemoOptions, open_demo, "nothing: every image is drawn when it is asked for")
