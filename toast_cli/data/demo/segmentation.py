"""Scenes of the fine demo task with a class for every pixel: the kind of object, or the ground."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, Sample, SplitKind
from toast_cli.data.demo import scenes as demo
from toast_cli.data.demo.scenes import MAX_IMAGE_SIDE, MAX_IMAGES
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

GROUND_CLASS = "ground"


class DemoSegmentationOptions(NamedOptions):
    """Options of the demo segmentation data."""

    name: Literal["demo-segmentation"] = "demo-segmentation"
    train_images: int = Field(1000, ge=1, le=MAX_IMAGES, description="images in the train split")
    val_images: int = Field(200, ge=1, le=MAX_IMAGES, description="images in the val split")
    test_images: int = Field(500, ge=1, le=MAX_IMAGES, description="images in the test split")
    side: int = Field(64, ge=32, le=MAX_IMAGE_SIDE, multiple_of=8, description="height and width of an image in pixels")
    world_seed: int = Field(0, ge=0, examples=[1], description="seed of the images")


@dataclass(frozen=True)
class DemoSegmentationSplit:
    """A split of labelled scenes, each drawn on first access."""

    kind: ClassVar[SplitKind] = "pixels"

    scenes: demo.DemoSplit
    has_masks: bool = False
    _kept: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def labels(self) -> list[int]:
        """Label of every image: always -1, because only pixels have labels."""
        return [-1] * len(self)

    @property
    def names(self) -> list[str]:
        """Name of every image, as in the fine task."""
        return self.scenes.names

    def load(self, index: int) -> Sample:
        """Draw the scene at `index`."""
        from PIL import Image

        name = self.scenes.names[index]
        pixels, classes = self._kept.get(index) or self._draw_scene(index)
        if len(self._kept) * (pixels.nbytes + classes.nbytes) < demo.MAX_CACHED_SCENE_BYTES:
            self._kept[index] = pixels, classes
        return Sample(Image.fromarray(pixels), -1, name, classes=classes)

    def _draw_scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        from toast_cli.data.demo.scene_generator import draw_fine_objects

        options, kinds = self.scenes.options, get_segmentation_classes()
        markings = demo.get_demo_classes(options)
        rng = demo.create_image_rng(options, self.scenes.split, index)
        pixels, objects = draw_fine_objects(rng, options.side, markings[self.scenes.labels[index]], markings)
        classes = np.zeros(pixels.shape[:2], np.uint8)
        for kind, mask in objects:  # in painting order, so that an object on top also hides the class below it
            classes[mask] = kinds.index(kind)
        return pixels, classes


def get_segmentation_classes() -> tuple[str, ...]:
    """Return the class names: the ground and every kind of object."""
    from toast_cli.data.demo.scene_generator import OBJECT_KINDS

    return (GROUND_CLASS, *OBJECT_KINDS)


def open_demo_segmentation(options: DemoSegmentationOptions, data_dir: Path | None) -> DataSet:
    """Return the demo scenes with pixel labels as a data set. `data_dir` is not used."""
    fine = demo.DemoOptions(**options.model_dump(exclude={"name"}))
    scenes = demo.open_demo(fine, data_dir)
    splits = {name: DemoSegmentationSplit(split) for name, split in scenes.splits.items()}  # type: ignore[arg-type]
    return DataSet(get_segmentation_classes(), splits, scenes.notes)


SOURCE = DataSource(
    DemoSegmentationOptions,
    open_demo_segmentation,
    "nothing: drawn demo scenes with a class for every pixel",
    "segmentation",
)
