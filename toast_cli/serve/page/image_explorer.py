"""One image under several runs: the passes that are kept, and what the page shows of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from toast_cli.attention.image_box import ImageBox, compute_box_direction, make_single_pass_error
from toast_cli.attention.kept_passes import KeptFirstPass, PassRecorder, SteeredPass
from toast_cli.attention.maps import HeadSelection
from toast_cli.attention.metrics import compute_object_shares
from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow
from toast_cli.visualize.view import AttentionViewer, ImageView, TopPrediction, get_top_prediction

MOST_IMAGES = 3
"""Number of images whose first pass a run keeps."""
MOST_BYTES = 256 * 2**20
"""Size of the second passes of the current image that a run keeps."""

KeptT = TypeVar("KeptT")


@dataclass(frozen=True)
class PageImage:
    """An image of the page: a sample, and its number in the test split, or None if a user dropped it.

    `key` tells images apart; it follows from their pixels.
    """

    key: str
    sample: Sample
    index: int | None = None


@dataclass(frozen=True)
class LookSettings:
    """What a user chose: steering strength, level (from 0), head, and the box that sets xi (an experiment)."""

    strength: float = 1.0
    level: int = -1
    head: HeadSelection = "mean"
    box: ImageBox | None = None


@dataclass(frozen=True)
class RunLook:
    """What one run sees in an image.

    Attributes:
        view: the maps and predictions, as `compute_image_view` returns them, without checks.
        level: the level of the maps.
        selected: with a box, the share of the maps in it: before, with the trained xi, and with the chosen one.
    """

    view: ImageView
    level: int
    selected: tuple[float, float, float] | None = None


@dataclass
class _KeptImage:
    first: KeptFirstPass
    window: CropWindow
    mask: Tensor | None
    second: OrderedDict[Any, SteeredPass] = field(default_factory=OrderedDict)


class ImageExplorer:
    """One run on many images. The first pass of the latest images is kept, and so are their second passes.

    A change of strength or of the box computes the levels from the first steered one; of level and head, nothing.
    Calls from several threads take turns.
    """

    def __init__(self, viewer: AttentionViewer) -> None:
        self.viewer = viewer
        self.recorder = PassRecorder(viewer.model)
        self._images: OrderedDict[str, _KeptImage] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_steered(self) -> bool:
        """Return whether the model has a second pass."""
        return self.viewer.model.adapted.steering is not None

    @property
    def level_count(self) -> int:
        """Return the number of levels."""
        return len(self.viewer.model.backbone.levels)

    def look(self, image: PageImage, settings: LookSettings) -> RunLook:
        """Return what the run sees in an image.

        Raises:
            ToastError: A map differs from the attention that the model uses.
            UsageError: The box lies outside of what the model sees, or the head does not exist.
        """
        with self._lock:
            kept = _remember(self._images, image.key, lambda: self._run_first(image.sample), MOST_IMAGES)
            for key, other in self._images.items():
                if key != image.key:
                    other.second.clear()
            if settings.box is not None and not self.is_steered:
                raise make_single_pass_error()
            return self._describe(image, kept, settings)

    def _run_first(self, sample: Sample) -> _KeptImage:
        transform = self.viewer.transform
        pixels, mask = transform(sample.image, sample.mask)
        inputs = pixels[None].to(next(self.viewer.model.parameters()).device)
        return _KeptImage(self.recorder.run_first(inputs), transform.compute_window(sample.image), mask)

    def _run_second(self, kept: _KeptImage, strength: float, xi: Tensor | None, box: ImageBox | None) -> SteeredPass:
        most = max(MOST_BYTES // max(kept.first.recorded.count_bytes(), 1), 2)
        return _remember(kept.second, (strength, box), lambda: self.recorder.run_second(kept.first, strength, xi), most)

    def _describe(self, image: PageImage, kept: _KeptImage, settings: LookSettings) -> RunLook:
        viewer, first = self.viewer, kept.first.recorded
        level = min(settings.level % self.level_count if settings.level < 0 else settings.level, self.level_count - 1)
        before = first.compute_map(level, settings.head)
        maps = {"pass_one": before}
        prediction, answer, selected = self._predict(first.logits), None, None
        if self.is_steered:
            xi, cells = None, None
            if settings.box is not None:
                assert kept.first.first is not None
                xi, cells = compute_box_direction(
                    viewer.model.backbone, kept.first.inputs, kept.first.first, kept.window, settings.box
                )
            steered = self._run_second(kept, settings.strength, xi, settings.box)
            after = steered.recorded.compute_map(level, settings.head)
            maps |= {"similarity": steered.similarity, "pass_two": after, "difference": after - before}
            answer = self._predict(steered.recorded.logits)
            if cells is not None and cells.shape == before.shape:
                usual = self._run_second(kept, settings.strength, None, None).recorded
                shown = (before, usual.compute_map(level, settings.head), after)
                inside = [float(map[cells].sum() / map.sum()) for map in shown]
                selected = inside[0], inside[1], inside[2]
        shares: dict[str, float] = {}
        if kept.mask is not None and bool(kept.mask.any()):
            shown_maps = {name: map[None] for name, map in maps.items() if name in ("pass_one", "pass_two")}
            shares = {name: float(share) for name, share in compute_object_shares(shown_maps, kept.mask[None]).items()}
        view = ImageView(viewer, kept.window, self.recorder.kind, maps, prediction, answer, shares=shares)
        return RunLook(view, level, selected)

    def _predict(self, logits: Tensor) -> TopPrediction | None:
        objective = self.viewer.model.objective
        if self.viewer.classes is None or objective.dense or not objective.class_scores:
            return None
        with torch.no_grad():
            return get_top_prediction(logits, self.viewer)


def _remember(kept: OrderedDict[Any, KeptT], key: Any, compute: Callable[[], KeptT], most: int) -> KeptT:
    """Return the value of a key, computed if it is not kept; only the `most` latest used are."""
    if key not in kept:
        kept[key] = compute()
        while len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def count_heads(explorer: ImageExplorer) -> int:
    """Return the number of attention heads of a run, 0 without attention; it runs the model on an empty image once."""
    if not explorer.viewer.model.backbone.has_attention:
        return 0
    example = explorer.viewer.model.backbone.example(1).to(next(explorer.viewer.model.parameters()).device)
    return max(rows.shape[1] for rows in explorer.recorder.run_first(torch.zeros_like(example)).recorded.rows)
