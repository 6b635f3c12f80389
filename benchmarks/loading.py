"""Images per second out of a folder: toast's loader against timm's own, over the same files, side by side.

    python benchmarks/loading.py --images path/to/folder --workers 2
    python benchmarks/loading.py                     # draws a folder of photographs' size first

Both read, decode, resize, crop and normalise every image once an epoch into float32 batches, in turns. Medians over the
epochs are printed, and the ratio of each epoch: the median, the smallest and the largest. `cached` is toast's with
images.cache=true, after it has seen the images once. On a machine that does other things too, CPU time per image
(workers included) says more than images per second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from toast_cli import registry
from toast_cli.backbones.base import Preprocessing
from toast_cli.data.base import BatchOptions
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import build_dataset_options, build_recipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, RESIZE = 224, 256


def drawn(folder: Path, count: int = 512, size: tuple[int, int] = (500, 375)) -> Path:
    """JPEG files of a photograph's size and detail, two classes."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = rng.integers(-12, 13, (size[1], size[0], 1))
        pixels = (np.asarray(coarse, dtype=int) + grain).clip(0, 255).astype(np.uint8)
        path = folder / "train" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return folder / "train"


def of_timm(images: Path, batch: int, workers: int, train: bool) -> Iterable[Any]:
    """timm's loader. Training: its random resized crop and mirror; else its resize and centre crop."""
    dataset = create_dataset("", root=str(images))
    augment: dict[str, Any] = {"is_training": True, "color_jitter": None} if train else {"crop_pct": SIZE / RESIZE}
    return create_loader(
        dataset,
        input_size=(3, SIZE, SIZE),
        batch_size=batch,
        use_prefetcher=torch.cuda.is_available(),
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        **augment,
    )


def of_toast(images: Path, batch: int, workers: int, train: bool, cache: bool) -> Any:
    """toast's loader, the same steps; with a cache, the crop is out of the resized image."""
    chosen = build_dataset_options(f"images:{images}", {"val_fraction": 0})
    data = registry.load_entry(registry.SOURCES, "images").open(chosen, None)
    augment = ("crop-flip" if cache else "random-resized-crop") if train else "none"
    raw = {
        "backbone": "vit_b16",
        "dataset": "demo",
        "method": "linear",
        "images": {"augment": augment, "resize": RESIZE, "cache": cache},
        "training": {"workers": workers},
    }
    seen = Preprocessing((SIZE, SIZE), MEAN, STD)
    backbone: Any = SimpleNamespace(require_preprocessing=lambda: seen)
    asked = BatchOptions(batch, shuffle=train, augment=train)
    return build_batches(data.splits["train"], build_recipe(raw, {}, origin="a benchmark"), backbone, asked)


def rate(loader: Iterable[Any]) -> tuple[float, float]:
    """Images per second over an epoch, and milliseconds of CPU time an image."""
    began, used, count = time.perf_counter(), cpu(), 0
    for batch in loader:
        count += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return count / (time.perf_counter() - began), 1000 * (cpu() - used) / count


def cpu() -> float:
    """Seconds of CPU time of this process and its workers."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images, one folder per class; left out: drawn")
    for name, default in (("batch", 64), ("workers", 2), ("epochs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOAST_CACHE_DIR"] = f"{folder}/cache"
        images = given.images or drawn(Path(folder))
        for what, train in (("evaluation", False), ("training", True)):
            loaders = {
                "timm": of_timm(images, given.batch, given.workers, train),
                "toast": of_toast(images, given.batch, given.workers, train, cache=False),
                "cached": of_toast(images, given.batch, given.workers, train, cache=True),
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
            for epoch in range(given.epochs + 1):
                for name, loader in loaders.items():
                    measured = rate(loader)
                    if epoch:  # the first starts the workers, and fills the cache
                        found[name].append(measured)
            print(f"{what}, batch {given.batch}, {given.workers} workers:")
            theirs = [statistics.median(each) for each in zip(*found["timm"], strict=True)]
            for name, each in found.items():
                speed, cost = (statistics.median(values) for values in zip(*each, strict=True))
                ratios = [ours[0] / timm[0] for ours, timm in zip(each, found["timm"], strict=True)]
                spread = f"{statistics.median(ratios):.2f} × timm ({min(ratios):.2f} to {max(ratios):.2f})"
                told = f"{speed:6.0f} images/s, {spread}"
                print(f"  {name:6} {told}; CPU {cost:5.2f} ms an image, {cost / theirs[1]:.2f} × timm")


if __name__ == "__main__":
    main()
