"""Resizing inside a graph: the pixels of the run's own preprocessing, by Pillow, for any size of image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.transforms import build_resize, build_transform
from toast_cli.export.graphs.resize import GraphResize
from toast_cli.utils.errors import UsageError

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((64, 64), MEAN, STD, "bicubic", 0.9),
        Preprocessing((64, 48), MEAN, STD, "bilinear", 0.9, "border"),
        Preprocessing((48, 64), MEAN, STD, "bicubic", 0.875),
        Preprocessing((48, 48), MEAN, STD, "bicubic", 1.0, "squash"),
    ],
)
@pytest.mark.parametrize("options", [ImageOptions(), ImageOptions(squash=True)])
def test_pixels_are_those_of_pillow(preprocessing: Preprocessing, options: ImageOptions) -> None:
    resize = GraphResize(build_resize(options, preprocessing), preprocessing)
    transform = build_transform(options, preprocessing, train=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for height, width in ((300, 420), (500, 211), (100, 90), (33, 77), preprocessing.image_size, (71, 70)):
        small = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height))
        expected = transform(image)[0] * std + mean
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        levels = (resize(pixels)[0] - expected).abs() * 255
        # Where a value is halfway between two levels, Pillow's fixed-point numbers may round to the other one.
        assert levels.max() < 1.01 and (levels > 0.5).float().mean() < 0.01, (height, width)


def test_other_filters_are_refused() -> None:
    preprocessing = Preprocessing((64, 64), MEAN, STD, "lanczos")
    with pytest.raises(UsageError, match="bilinear and bicubic") as error:
        GraphResize(build_resize(ImageOptions(), preprocessing), preprocessing)
    assert error.value.code == "export.cannot-resize"
