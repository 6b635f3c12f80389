"""Deletion and insertion (Petsiuk et al., RISE, BMVC 2018): does the prediction depend on the pixels a map marks?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
"""Name of the random order of cells, the baseline."""
RANDOM_SIMILARITY_ORDER = "random_similarity"
"""Name of the random order on the similarity's grid, if it differs from the maps' (earlier stages of a ConvNeXt)."""


def count_forward_passes(orders: int) -> int:
    """Return the largest number of forward passes per image: three end points, and both curves of every order."""
    return 3 + orders * 2 * (CURVE_STEPS - 1)


class DeletionInsertionCurves:
    """The probability of the predicted class as pixels are deleted or inserted, in decreasing order of the map.

    Deletion replaces pixels with the mean colour. Insertion adds them to a strongly blurred image. With a good map, the
    deletion curve falls early and the insertion curve rises early.

    A step takes whole cells of the map, as many as are needed to reach the step's share of the image. With few cells,
    this can be more than that share, so the area under a curve is integrated over the share of pixels actually taken.

    Args:
        predict: a function of images `[B, 3, H, W]` that returns logits `[B, classes]`.
        steps: the number of steps from none to all of the pixels.
        seed: the seed of the random order.
        compute_scores: a function of logits that returns probabilities `[B, classes]`; default: the softmax.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        steps: int = CURVE_STEPS,
        seed: int = 0,
        compute_scores: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.predict = predict
        self.compute_scores = compute_scores or (lambda logits: logits.float().softmax(-1))
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.curves: dict[str, dict[str, list[Tensor]]] = {}
        self.taken: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, output: AttentionOutput, images: Tensor) -> None:
        """Add a batch of images with its recorded maps, and a random order."""
        self.add_maps({**output.get_maps(), **self._compute_baseline(output)}, output.logits.argmax(-1), images)

    @torch.no_grad()
    def add_maps(self, maps: Mapping[str, Tensor], answer: Tensor, images: Tensor) -> None:
        """Add a batch of images with maps `[B, rows, columns]` by name, and the class `[B]` that curves follow."""
        H, W = images.shape[2:]
        # The blur is strong enough to remove all objects. The mean colour of normalized images is zero.
        blurred = gaussian_blur(images, [2 * (min(H, W) // 8) + 1] * 2, [min(H, W) / 8.0] * 2)
        full, grey, blur = (
            self._compute_answer_probability(inputs, answer) for inputs in (images, torch.zeros_like(images), blurred)
        )
        for name, map in maps.items():
            masks = self._build_pixel_masks(map, (H, W))
            self.taken.setdefault(name, []).append(torch.stack([mask.mean((1, 2, 3)) for mask in masks], 1).cpu())
            for kind, shown, hidden, ends in (
                ("deletion", torch.zeros_like(images), images, (full, grey)),
                ("insertion", images, blurred, (blur, full)),
            ):
                curve = [ends[0]]  # all orders have the same first and last image
                for before, mask in pairwise(masks):
                    if mask is before:  # with few cells, a step may take none
                        curve.append(curve[-1])
                    elif mask is masks[-1]:
                        curve.append(ends[1])
                    else:
                        curve.append(self._compute_answer_probability(mask * shown + (1 - mask) * hidden, answer))
                # A map that is zero everywhere defines no order.
                points = torch.stack(curve, dim=1).masked_fill(is_zero_map(map).cpu()[:, None], torch.nan)
                self.curves.setdefault(name, {}).setdefault(kind, []).append(points)

    def _compute_baseline(self, output: AttentionOutput) -> dict[str, Tensor]:
        """Return a random map for each grid of cells."""
        grids = {RANDOM_ORDER: output.first}
        if output.similarity is not None and output.similarity.shape != output.first.shape:
            grids[RANDOM_SIMILARITY_ORDER] = output.similarity
        return {name: torch.rand(map.shape, generator=self.generator).to(map.device) for name, map in grids.items()}

    def _build_pixel_masks(self, map: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Return masks `[B, 1, H, W]` of the pixels after each step; the same tensor again if a step takes none."""
        ranks = rank_cells(map)
        cells = ranks[0].numel()
        counts = [-(-cells * step // self.steps) for step in range(self.steps + 1)]
        parts = {count: F.interpolate((ranks < count).float()[:, None], size=size) for count in counts}
        return [parts[count] for count in counts]

    def _compute_answer_probability(self, images: Tensor, answer: Tensor) -> Tensor:
        """Return the probability of each image's predicted class, `[B]`, on the CPU."""
        return self.compute_scores(self.predict(images)).gather(1, answer[:, None])[:, 0].cpu()

    def get_curves(self, name: str, kind: str) -> Tensor:
        """Return the curves of all images, `[images, steps + 1]`."""
        return torch.cat(self.curves[name][kind])

    def compute_areas(self, name: str, kind: str) -> Tensor:
        """Return the area under each image's curve, `[images]`: lower is better for deletion, higher for insertion."""
        return torch.trapezoid(self.get_curves(name, kind), torch.cat(self.taken[name]), dim=1)

    def compute_pixel_shares(self) -> dict[str, list[float]]:
        """Return, by order, the mean share of pixels (0 to 1) taken after each step."""
        return {name: torch.cat(taken).double().mean(0).tolist() for name, taken in self.taken.items()}

    def compute_mean_curves(self) -> dict[str, dict[str, list[MeanEstimate]]]:
        """Return, by order and kind, the mean curve over images with 95% intervals."""
        curves: dict[str, dict[str, list[MeanEstimate]]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                means = [bootstrap_mean(values) for values in self.get_curves(name, kind).numpy().T]
                if None not in means:
                    curves.setdefault(name, {})[kind] = [mean for mean in means if mean is not None]
        return curves

    def result(self) -> dict[str, dict[str, Any]]:
        """Return, by order and kind, the mean area with its 95% interval, without orders that no image has."""
        areas: dict[str, dict[str, Any]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                mean = bootstrap_mean(self.compute_areas(name, kind).numpy())
                if mean is not None:
                    areas.setdefault(name, {})[kind] = asdict(mean)
        return areas

    def compute_area_gain(self) -> dict[str, dict[str, Any]]:
        """Return, by kind, the area of pass two minus that of pass one, paired over images; empty with one pass."""
        gains = {}
        for kind in self.curves.get("pass_two", {}):
            mean = bootstrap_mean((self.compute_areas("pass_two", kind) - self.compute_areas("pass_one", kind)).numpy())
            if mean is not None:
                gains[kind] = asdict(mean)
        return gains


def rank_cells(map: Tensor) -> Tensor:
    """Return the rank of each cell of maps `[B, rows, columns]`, 0 for the highest."""
    order = map.flatten(1).argsort(stable=True, dim=1, descending=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    return ranks.view_as(map)
