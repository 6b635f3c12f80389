"""Several runs on the same images: what each says and where it looks, and how sure a difference between them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from toast_cli.attention.bootstrap import Mean, bootstrap
from toast_cli.attention.energy import recorder_for
from toast_cli.attention.numbers import EVEN, Numbers
from toast_cli.attention.pictures import unique
from toast_cli.attention.seeing import Viewer
from toast_cli.data.source import ImageSplit
from toast_cli.errors import ToastError, UsageError
from toast_cli.training.looking import Asked, opened
from toast_cli.training.reporter import Reporter


@dataclass(frozen=True)
class Compared:
    """One run: `probabilities` `[images, classes]` of its last pass, whether each was `correct` (1 or 0), and `inside`.

    That is the share of the last pass's map inside the object, for every image, NaN where the crop lost it, and `even`
    the mean of what a map that is the same everywhere has there; None where there are no masks.
    """

    viewer: Viewer
    asked: Asked
    backbone: str
    method: str
    sizes: dict[str, Any]
    kind: str
    probabilities: Tensor
    correct: np.ndarray
    inside: np.ndarray | None
    even: float | None


@dataclass(frozen=True)
class Comparison:
    """Several runs on one split."""

    runs: tuple[Compared, ...]
    split: ImageSplit
    dataset: str
    classes: tuple[str, ...]

    def pairs(self) -> list[tuple[Compared, Compared]]:
        """Every run with each one after it."""
        return list(combinations(self.runs, 2))

    def difference(self, one: Compared, other: Compared, what: str) -> Mean | None:
        """The second run less the first, in `correct` or `inside`, paired over images.

        The intervals of all pairs hold together with 95%. None where either run has none, or where what lies inside is
        attention of one and feature energy of the other.
        """
        if what == "inside" and one.kind != other.kind:
            return None
        first, second = getattr(one, what), getattr(other, what)
        return None if first is None or second is None else bootstrap(second - first, together=len(self.pairs()))

    def most_disputed(self, count: int) -> list[int]:
        """The images on which the runs disagree most, the most disputed first: how far their probabilities are apart.

        Total variation, the mean over all pairs of runs; images on which all predict the same class come last.
        """
        pairs = [(one.probabilities, other.probabilities) for one, other in self.pairs()]
        apart = torch.stack([(one - other).abs().sum(1) / 2 for one, other in pairs]).mean(0)
        predicted = torch.stack([run.probabilities.argmax(1) for run in self.runs])
        apart = apart + (predicted != predicted[0]).any(0).float()
        return apart.argsort(descending=True, stable=True)[:count].tolist()


def compare(asked: Sequence[Asked], reporter: Reporter) -> Comparison:
    """Show every run the same images.

    Raises:
        UsageError: fewer than two runs, or one has no such split.
        ToastError: the runs do not see the same images.
    """
    if len(asked) < 2:
        raise UsageError("One run has nothing to be compared with.", what_to_do="Name two or more.")
    names = unique(one.path.resolve().name for one in asked)
    found: list[Compared] = []
    kept: tuple[ImageSplit, str, tuple[str, ...]] | None = None
    for one, name in zip(asked, names, strict=True):
        run, split, dataset, classes = compared(one, name, reporter)
        if kept is None:
            kept = split, dataset, classes
        elif (list(split.names), list(split.labels), classes) != (list(kept[0].names), list(kept[0].labels), kept[2]):
            raise ToastError(
                f"{one.path} is not measured on the same images as {asked[0].path}.",
                "Their data sets, or the splits that were made of them, differ.",
                "Name one data set for all with --dataset.",
            )
        found.append(run)
    assert kept is not None
    return Comparison(tuple(found), *kept)


@torch.no_grad()
def compared(asked: Asked, name: str, reporter: Reporter) -> tuple[Compared, ImageSplit, str, tuple[str, ...]]:
    """One run's part, and what it was shown: the split, the data set's name, its classes."""
    session, split, _ = opened(asked, reporter)
    model, recipe = session.model.eval(), session.recipe
    recorder = recorder_for(model, asked.layer, asked.head)
    numbers, probabilities, kind = Numbers(), [], ""
    batches = session.batches(asked.split, with_masks=split.has_masks)
    for batch in reporter.track(batches, len(batches), name):
        batch = send_to_device(batch, session.accelerator.device)
        with session.accelerator.autocast():
            look = recorder.look(batch["image"])
        kind = look.kind
        numbers.add(look, batch)
        probabilities.append(look.logits.float().softmax(-1)[batch["label"] >= 0].cpu())
    if len(numbers.rows) != len(split):
        raise ToastError(
            f"{len(split) - len(numbers.rows):,} images of {recipe.dataset.name} could not be read.",
            what_to_do="Mend or remove them: runs are compared on the same images.",
        )
    last = "pass_two" if "pass_two/share_inside" in numbers.names() else "pass_one"
    inside = np.array(numbers.column(f"{last}/share_inside")) if split.has_masks else None
    even = bootstrap(numbers.column(f"{EVEN}/share_inside")) if split.has_masks else None
    viewer = Viewer(name, model, recipe.images, session.data.classes, asked.layer, asked.head, recipe=recipe)
    run = Compared(
        viewer,
        asked,
        recipe.backbone.name,
        recipe.method.name,
        session.sizes(),
        kind,
        torch.cat(probabilities),
        np.array(numbers.column("correct")),
        inside,
        None if even is None else even.mean,
    )
    return run, split, recipe.dataset.name, session.data.classes


def same_for_all(asked: Asked, paths: Sequence[Any]) -> list[Asked]:
    """The same question to every run."""
    return [replace(asked, path=path) for path in paths]
