"""Deletion and insertion (Petsiuk et al., RISE, BMVC 2018): does the answer depend on what a map marks?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from toast_cli.attention.maps import AttentionOutput
from toast_cli.attention.metrics import is_zero_map
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean

CURVE_STEPS = 10
RANDOM_ORDER = "random"
"""The order that says nothing: the baseline of the maps' orders."""
RANDOM_SIMILARITY_ORDER = "random_similarity"
"""The same in the cells of the similarity, if it has other cells than the maps: of a ConvNeXt's earlier stages."""


def count_forward_passes(orders: int) -> int:
    """Return how often the model sees an image at most: the three ends, and both curves' steps in every order."""
    return 3 + orders * 2 * (CURVE_STEPS - 1)


class DeletionInsertionCurves:
    """The probability of a model's own answer as pixels are taken away or put back, those that a map marks most first.

    Deletion replaces them by the mean colour, insertion puts them into a strongly blurred image. A good map has a
    deletion curve that falls at once and an insertion curve that rises at once.

    A step takes whole cells of the map, so many that the step's share of the image is reached: where cells are few,
    that is more, and the area under a curve is taken over what was taken.

    Args:
        predict: images `[B, 3, H, W]` to logits `[B, classes]`.
        steps: steps from nothing to the whole image.
        seed: of the random order.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], steps: int = CURVE_STEPS, seed: int = 0) -> None:
        self.predict = predict
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.curves: dict[str, dict[str, list[Tensor]]] = {}
        self.taken: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, output: AttentionOutput, images: Tensor) -> None:
        """Add the images of a batch, given their maps."""
        H, W = images.shape[2:]
        answer = output.logits.argmax(-1)
        # Of so strong a blur nothing is recognised; normalised images have the mean colour at zero.
        blurred = gaussian_blur(images, [2 * (min(H, W) // 8) + 1] * 2, [min(H, W) / 8.0] * 2)
        full, grey, blur = (
            self._compute_answer_probability(given, answer) for given in (images, torch.zeros_like(images), blurred)
        )
        for name, map in {**output.maps(), **self._compute_baseline(output)}.items():
            masks = self._build_pixel_masks(map, (H, W))
            self.taken.setdefault(name, []).append(torch.stack([mask.mean((1, 2, 3)) for mask in masks], 1).cpu())
            for kind, shown, hidden, ends in (
                ("deletion", torch.zeros_like(images), images, (full, grey)),
                ("insertion", images, blurred, (blur, full)),
            ):
                curve = [ends[0]]  # all orders begin and end at the same two images
                for before, mask in pairwise(masks):
                    if mask is before:  # few cells, many steps: nothing more is taken
                        curve.append(curve[-1])
                    elif mask is masks[-1]:
                        curve.append(ends[1])
                    else:
                        curve.append(self._compute_answer_probability(mask * shown + (1 - mask) * hidden, answer))
                # A map that is zero everywhere gives no order.
                points = torch.stack(curve, dim=1).masked_fill(is_zero_map(map).cpu()[:, None], torch.nan)
                self.curves.setdefault(name, {}).setdefault(kind, []).append(points)

    def _compute_baseline(self, output: AttentionOutput) -> dict[str, Tensor]:
        """Return maps that put the cells in a random order, one for every grid that there is."""
        grids = {RANDOM_ORDER: output.first}
        if output.similarity is not None and output.similarity.shape != output.first.shape:
            grids[RANDOM_SIMILARITY_ORDER] = output.similarity
        return {name: torch.rand(map.shape, generator=self.generator).to(map.device) for name, map in grids.items()}

    def _build_pixel_masks(self, map: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Return the pixels taken after every step, `[B, 1, H, W]` each; the same tensor again if a step takes none."""
        place = rank_cells(map)
        cells = place[0].numel()
        counts = [-(-cells * step // self.steps) for step in range(self.steps + 1)]
        parts = {count: F.interpolate((place < count).float()[:, None], size=size) for count in counts}
        return [parts[count] for count in counts]

    def _compute_answer_probability(self, images: Tensor, answer: Tensor) -> Tensor:
        """Return the probability of each image's own answer, `[B]`, on the CPU."""
        return self.predict(images).float().softmax(-1).gather(1, answer[:, None])[:, 0].cpu()

    def get_curves(self, name: str, kind: str) -> Tensor:
        """Return all images' curves, `[images, steps + 1]`."""
        return torch.cat(self.curves[name][kind])

    def compute_areas(self, name: str, kind: str) -> Tensor:
        """Return the area under every image's curve, `[images]`: low is good for deletion, high for insertion."""
        return torch.trapezoid(self.get_curves(name, kind), torch.cat(self.taken[name]), dim=1)

    def compute_pixel_shares(self) -> dict[str, list[float]]:
        """Return, by order, the share of pixels deleted or inserted after every step, 0 to 1: the images' mean."""
        return {name: torch.cat(taken).double().mean(0).tolist() for name, taken in self.taken.items()}

    def compute_mean_curves(self) -> dict[str, dict[str, list[MeanEstimate]]]:
        """Return, by order and kind, the mean over images at every step, with its 95% interval."""
        found: dict[str, dict[str, list[MeanEstimate]]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                means = [bootstrap_mean(values) for values in self.get_curves(name, kind).numpy().T]
                if None not in means:
                    found.setdefault(name, {})[kind] = [mean for mean in means if mean is not None]
        return found

    def result(self) -> dict[str, dict[str, Any]]:
        """Return, by order and kind, the mean area with its 95% interval; an order that no image has is left out."""
        found: dict[str, dict[str, Any]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                mean = bootstrap_mean(self.compute_areas(name, kind).numpy())
                if mean is not None:
                    found.setdefault(name, {})[kind] = asdict(mean)
        return found

    def compute_area_gain(self) -> dict[str, dict[str, Any]]:
        """Return, by kind, the area of pass two less that of pass one, paired over images; empty with a single pass."""
        found = {}
        for kind in self.curves.get("pass_two", {}):
            mean = bootstrap_mean((self.compute_areas("pass_two", kind) - self.compute_areas("pass_one", kind)).numpy())
            if mean is not None:
                found[kind] = asdict(mean)
        return found


def rank_cells(map: Tensor) -> Tensor:
    """Return the rank of each cell of `[B, rows, columns]`: 0 for the highest."""
    order = map.flatten(1).argsort(stable=True, dim=1, descending=True)
    places = torch.empty_like(order)
    places.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    return places.view_as(map)
