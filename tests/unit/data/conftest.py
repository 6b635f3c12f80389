"""Tiny data sets, made where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[[Mapping[str, int]], Path]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """`make_folder({"train/cat": 3})` puts three images into that folder and returns the root."""

    def make(images: Mapping[str, int]) -> Path:
        root = tmp_path / "pictures"
        for folder, count in images.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                noise(12, 10, seed=number).save(root / folder / f"{number}.png")
        return root

    return make
