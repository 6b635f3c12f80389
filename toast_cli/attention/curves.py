"""Deletion and insertion (Petsiuk et al., RISE, BMVC 2018): does the answer hang on what a map marks?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from toast_cli.attention.bootstrap import Mean, bootstrap
from toast_cli.attention.maps import Look
from toast_cli.attention.measures import zero

STEPS = 10
FORWARDS = 3 + 4 * 2 * (STEPS - 1)
"""How often the model is asked about an image: the three ends, and every step of both curves in four orders."""
RANDOM = "random"
"""The order that says nothing, beside which those of the maps are to be read."""


class Curves:
    """The probability of a model's own answer as pixels are taken away or put back, those that a map marks most first.

    Deletion replaces them by the mean colour, insertion puts them into a strongly blurred image. `steps` equal parts.
    A good map has a deletion curve that falls at once and an insertion curve that rises at once.

    Args:
        predict: images `[B, 3, H, W]` to logits `[B, classes]`.
        steps: parts that the image is divided into.
        seed: of the random order.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], steps: int = STEPS, seed: int = 0) -> None:
        self.predict = predict
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.curves: dict[str, dict[str, list[Tensor]]] = {}

    @torch.no_grad()
    def add(self, look: Look, images: Tensor) -> None:
        """Add the images of a batch, given how the model looked at them."""
        B, _, H, W = images.shape
        answer = look.logits.argmax(-1)
        rows, columns = look.first.shape[1:]
        chance = torch.rand(B, rows, columns, generator=self.generator).to(images.device)
        # Of so strong a blur nothing is recognised; normalised images have the mean colour at zero.
        blurred = gaussian_blur(images, [2 * (min(H, W) // 8) + 1] * 2, [min(H, W) / 8.0] * 2)
        full, grey, blur = (self._answered(given, answer) for given in (images, torch.zeros_like(images), blurred))
        for name, map in {**look.maps(), RANDOM: chance}.items():
            rank = ranks(map)
            for kind, shown, hidden, ends in (
                ("deletion", torch.zeros_like(images), images, (full, grey)),
                ("insertion", images, blurred, (blur, full)),
            ):
                curve = [ends[0]]  # where every order begins and ends is the same for all
                for step in range(1, self.steps):
                    chosen = (rank < step / self.steps).float()[:, None]
                    chosen = F.interpolate(chosen, size=(H, W), mode="nearest")
                    curve.append(self._answered(chosen * shown + (1 - chosen) * hidden, answer))
                whole = torch.stack([*curve, ends[1]], dim=1)
                # A map that is zero everywhere puts nothing in an order.
                whole = whole.masked_fill(zero(map).cpu()[:, None], torch.nan)
                self.curves.setdefault(name, {}).setdefault(kind, []).append(whole)

    def _answered(self, images: Tensor, answer: Tensor) -> Tensor:
        """How likely each image's own answer is, `[B]`, on the CPU."""
        return self.predict(images).float().softmax(-1).gather(1, answer[:, None])[:, 0].cpu()

    def whole(self, name: str, kind: str) -> Tensor:
        """All images' curves, `[images, steps + 1]`."""
        return torch.cat(self.curves[name][kind])

    def areas(self, name: str, kind: str) -> Tensor:
        """The area under every image's curve, `[images]`: low is good for deletion, high for insertion."""
        return torch.trapezoid(self.whole(name, kind), dx=1 / self.steps, dim=1)

    def shares(self) -> list[float]:
        """The share of the pixels that is deleted or inserted at every step, 0 to 1."""
        return [step / self.steps for step in range(self.steps + 1)]

    def mean_curves(self) -> dict[str, dict[str, list[Mean]]]:
        """By order and kind, the mean over images at every step, with its 95% interval; without orders no image has."""
        found: dict[str, dict[str, list[Mean]]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                means = [bootstrap(values) for values in self.whole(name, kind).numpy().T]
                if None not in means:
                    found.setdefault(name, {})[kind] = [mean for mean in means if mean is not None]
        return found

    def result(self) -> dict[str, dict[str, Any]]:
        """By order and kind, the mean area with its 95% interval; an order that no image has is left out."""
        found: dict[str, dict[str, Any]] = {}
        for name, kinds in self.curves.items():
            for kind in kinds:
                mean = bootstrap(self.areas(name, kind).numpy())
                if mean is not None:
                    found.setdefault(name, {})[kind] = asdict(mean)
        return found

    def gained(self) -> dict[str, dict[str, Any]]:
        """By kind, the area of pass two less that of pass one, paired over images; nothing with a single pass."""
        found = {}
        for kind in self.curves.get("pass_two", {}):
            mean = bootstrap((self.areas("pass_two", kind) - self.areas("pass_one", kind)).numpy())
            if mean is not None:
                found[kind] = asdict(mean)
        return found


def ranks(map: Tensor) -> Tensor:
    """Where each cell of `[B, rows, columns]` stands from the highest (0) to the lowest (just below 1)."""
    order = map.flatten(1).argsort(stable=True, dim=1, descending=True)
    places = torch.empty_like(order)
    places.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    return (places / order.shape[1]).view_as(map)
