"""Deletion and insertion (Petsiuk et al., RISE, BMVC 2018): does the answer hang on what a map marks?"""

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
"""The order that says nothing, beside which those of the maps are to be read."""
RANDOM_SIMILARITY_ORDER = "random_similarity"
"""The same in the cells of the similarity, where those are others: of a ConvNeXt's earlier stages."""


def count_forward_passes(orders: int) -> int:
    """How often the model is asked about an image at most: the three ends, and both curves' steps in every order."""
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
    def add(self, look: AttentionOutput, images: Tensor) -> None:
        """Add the images of a batch, given how the model looked at them."""
        H, W = images.shape[2:]
        answer = look.logits.argmax(-1)
        # Of so strong a blur nothing is recognised; normalised images have the mean colour at zero.
        blurred = gaussian_blur(images, [2 * (min(H, W) // 8) + 1] * 2, [min(H, W) / 8.0] * 2)
        full, grey, blur = (
            self._compute_answer_probability(given, answer) for given in (images, torch.zeros_like(images), blurred)
        )
        for name, map in {**look.maps(), **self._compute_baseline(look)}.items():
            chosen = self._build_pixel_masks(map, (H, W))
            self.taken.setdefault(name, []).append(torch.stack([part.mean((1, 2, 3)) for part in chosen], 1).cpu())
            for kind, shown, hidden, ends in (
                ("deletion", torch.zeros_like(images), images, (full, grey)),
                ("insertion", images, blurred, (blur, full)),
            ):
                curve = [ends[0]]  # where every order begins and ends is the same for all
                for before, part in pairwise(chosen):
                    if part is before:  # few cells, many steps: nothing more is taken
                        curve.append(curve[-1])
                    elif part is chosen[-1]:
                        curve.append(ends[1])
                    else:
                        curve.append(self._compute_answer_probability(part * shown + (1 - part) * hidden, answer))
                whole = torch.stack(curve, dim=1)
                # A map that is zero everywhere puts nothing in an order.
                whole = whole.masked_fill(is_zero_map(map).cpu()[:, None], torch.nan)
                self.curves.setdefault(name, {}).setdefault(kind, []).append(whole)

    def _compute_baseline(self, look: AttentionOutput) -> dict[str, Tensor]:
        """Maps that put the cells in a random order, for every grid that there is."""
        grids = {RANDOM_ORDER: look.first}
        if look.similarity is not None and look.similarity.shape != look.first.shape:
            grids[RANDOM_SIMILARITY_ORDER] = look.similarity
        return {name: torch.rand(map.shape, generator=self.generator).to(map.device) for name, map in grids.items()}

    def _build_pixel_masks(self, map: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """The pixels taken after every step from none to all, each `[B, 1, H, W]`; the same tensor where none come."""
        place = rank_cells(map)
        cells = place[0].numel()
        counts = [-(-cells * step // self.steps) for step in range(self.steps + 1)]
        parts = {count: F.interpolate((place < count).float()[:, None], size=size) for count in counts}
        return [parts[count] for count in counts]

    def _compute_answer_probability(self, images: Tensor, answer: Tensor) -> Tensor:
        """How likely each image's own answer is, `[B]`, on the CPU."""
        return self.predict(images).float().softmax(-1).gather(1, answer[:, None])[:, 0].cpu()

    def get_curves(self, name: str, kind: str) -> Tensor:
        """All images' curves, `[images, steps + 1]`."""
        return torch.cat(self.curves[name][kind])

    def areas(self, name: str, kind: str) -> Tensor:
        """The area under every image's curve, `[images]`: low is good for deletion, high for insertion."""
        return torch.trapezoid(self.get_curves(name, kind), torch.cat(self.taken[name]), dim=1)

    def shares(self) -> dict[str, list[float]]:
        """By order, the share of the pixels that is deleted or inserted after every step, 0 to 1: the images' mean."""
        return {name: torch.cat(taken).double().mean(0).tolist() for name, taken in self.taken.items()}

    def mean_curves(self) -> dict[str, dict[str, list[MeanEstimate]]]:
        """By order and kind, the mean over images at every step, with its 95% interval; without orders no image has."""
        found: dict[str, dict[str, list[MeanEstimate]]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                means = [bootstrap_mean(values) for values in self.get_curves(name, kind).numpy().T]
                if None not in means:
                    found.setdefault(name, {})[kind] = [mean for mean in means if mean is not None]
        return found

    def result(self) -> dict[str, dict[str, Any]]:
        """By order and kind, the mean area with its 95% interval; an order that no image has is left out."""
        found: dict[str, dict[str, Any]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                mean = bootstrap_mean(self.areas(name, kind).numpy())
                if mean is not None:
                    found.setdefault(name, {})[kind] = asdict(mean)
        return found

    def compute_area_gain(self) -> dict[str, dict[str, Any]]:
        """By kind, the area of pass two less that of pass one, paired over images; nothing with a single pass."""
        found = {}
        for kind in self.curves.get("pass_two", {}):
            mean = bootstrap_mean((self.areas("pass_two", kind) - self.areas("pass_one", kind)).numpy())
            if mean is not None:
                found[kind] = asdict(mean)
        return found


def rank_cells(map: Tensor) -> Tensor:
    """Where each cell of `[B, rows, columns]` stands, from the highest (0) to the lowest (one less than cells)."""
    order = map.flatten(1).argsort(stable=True, dim=1, descending=True)
    places = torch.empty_like(order)
    places.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    return places.view_as(map)
