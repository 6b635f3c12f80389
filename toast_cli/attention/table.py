"""Numbers behind the pictures: the measures of every image's maps, and their means over images and per class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from toast_cli.attention.maps import AttentionOutput
from toast_cli.attention.metrics import (
    compute_cell_shares,
    compute_mask_coverage,
    compute_object_shares,
    entropy,
    is_zero_map,
    pointing_game_chance,
    pointing_game_hits,
    roc_auc,
    total_variation_distance,
)
from toast_cli.utils.formatting import format_csv
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean

METRIC_DESCRIPTIONS = {
    "share_inside": "share of the map inside the object",
    "pointing_hit": "pointing game: the highest cell's middle is on the object",
    "auc": "area under the ROC curve against what marks the object",
    "entropy": "entropy, 1 is even",
    "grid_hit": "grid pointing game: the labelled cell has more than any other",
    "shift": "share of the map that moved between the passes",
    "share_gained": "share inside the object, pass two less pass one",
}
"""What each measure is; on grids, `share_inside` is the localisation score of the grid pointing game."""

UNIFORM_MAP = "even"
"""The map that is the same everywhere, beside which the others are to be read: chance."""

UNIFORM_SIMILARITY_MAP = "even_similarity"
"""The same in the cells of the similarity, where those are others: of a ConvNeXt's earlier stages."""


class AttentionMetricsTable:
    """Collects measures image by image.

    Args:
        cells: of images that are grids of `cells` by `cells` photographs, the mask being the labelled one's; None: the
            images are no grids.
    """

    def __init__(self, cells: int | None = None) -> None:
        self.cells = cells
        self.rows: list[dict[str, Any]] = []

    def add(self, output: AttentionOutput, batch: dict[str, Tensor]) -> None:
        """Add a batch with its `index` and `label` `[B]` and, where there are masks, `mask` `[B, H, W]`."""
        mask = batch.get("mask")
        found = {f"{map}/{name}": value for map, name, value in self._compute_measures(output, mask)}
        found["correct"] = (output.logits.argmax(-1) == batch["label"]).float()
        values = {name: value.float().cpu().tolist() for name, value in found.items()}
        for place, (index, label) in enumerate(zip(batch["index"].tolist(), batch["label"].tolist(), strict=True)):
            if label >= 0:
                row = {name: value[place] for name, value in values.items()}
                self.rows.append({"index": index, "label": label, **row})

    def _compute_measures(self, output: AttentionOutput, mask: Tensor | None) -> Iterable[tuple[str, str, Tensor]]:
        """Yield every measure of every map and of the change between passes; NaN where the crop lost the object."""
        shares: dict[str, Tensor] = {} if mask is None else compute_object_shares(output.maps(), mask)
        for name, map in output.maps().items():
            yield name, "entropy", entropy(map)
            if mask is None:
                continue
            visible = mask.flatten(1).any(1)
            yield name, "share_inside", shares[name]
            yield name, "pointing_hit", pointing_game_hits(map, mask).where(visible, torch.nan)
            yield name, "auc", roc_auc(map, mask).where(visible, torch.nan)
            if self.cells is not None:
                labelled = compute_cell_shares(mask.float(), self.cells).argmax(1)
                won = (compute_cell_shares(map, self.cells).argmax(1) == labelled).float()
                yield name, "grid_hit", won.where(visible & ~is_zero_map(map), torch.nan)
        if mask is not None:
            yield from self._compute_baseline(UNIFORM_MAP, output.first, mask)
            if output.similarity is not None and output.similarity.shape != output.first.shape:
                yield from self._compute_baseline(UNIFORM_SIMILARITY_MAP, output.similarity, mask)
        if output.last is not None:
            yield "passes", "shift", total_variation_distance(output.first, output.last)
            if mask is not None:
                yield "passes", "share_gained", shares["pass_two"] - shares["pass_one"]

    def _compute_baseline(self, name: str, map: Tensor, mask: Tensor) -> Iterable[tuple[str, str, Tensor]]:
        """Yield the measures of a map of these cells that is the same everywhere: its share is the object's area."""
        visible = mask.flatten(1).any(1)
        area = compute_mask_coverage(mask, map.shape).mean(dim=(1, 2))
        measures = {
            "share_inside": area,
            "pointing_hit": pointing_game_chance(mask, *map.shape[1:]),
            "auc": torch.full_like(area, 0.5),
        }
        if self.cells is not None:
            measures["grid_hit"] = torch.full_like(area, 1 / self.cells**2)
        for measure, value in measures.items():
            yield name, measure, value.where(visible, torch.nan)

    def merge(self, other: AttentionMetricsTable) -> None:
        """Add what another process collected."""
        self.rows.extend(other.rows)

    def column(self, name: str) -> list[float]:
        """Return one measure of every image, in the order of the split."""
        return [row[name] for row in sorted(self.rows, key=lambda row: row["index"])]

    def names(self) -> list[str]:
        """Return `MAP/MEASURE` of all measures."""
        return [name for name in self.rows[0] if "/" in name] if self.rows else []

    def result(self) -> dict[str, dict[str, Any]]:
        """Return, by map and measure, the mean over images and its 95% interval."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.names():
            mean = bootstrap_mean(self.column(name))
            if mean is not None:
                map, measure = name.split("/")
                found.setdefault(map, {})[measure] = asdict(mean)
        return found

    def count_unmeasurable(self) -> dict[str, int]:
        """Count, by map, the images of which it is zero everywhere, if any: its means leave them out."""
        maps = [name.split("/")[0] for name in self.names() if name.endswith("/entropy")]
        counts = {map: sum(value != value for value in self.column(f"{map}/entropy")) for map in maps}
        return {map: count for map, count in counts.items() if count}

    def format_per_class(self, classes: Sequence[str]) -> str:
        """Return a CSV with a line per class: images, accuracy and the mean of every measure."""
        lines = []
        for label, name in enumerate(classes):
            rows = [row for row in self.rows if row["label"] == label]
            if rows:
                means = [format_mean([row[column] for row in rows]) for column in ("correct", *self.names())]
                lines.append([name, len(rows), *means])
        return format_csv([["class", "images", "accuracy", *self.names()], *lines])

    def format_per_image(self, classes: Sequence[str], names: Sequence[str]) -> str:
        """Return a CSV with a line per image: its name, class and every measure."""
        lines = [
            [
                names[row["index"]],
                classes[row["label"]],
                int(row["correct"]),
                *(format_number(row[name]) for name in self.names()),
            ]
            for row in sorted(self.rows, key=lambda row: row["index"])
        ]
        return format_csv([["image", "class", "correct", *self.names()], *lines])


class AttentionShare:
    """Collects, over batches, how much of the attention falls on the object.

    Images whose object the crop lost, and maps that are zero everywhere, are counted but not averaged.
    """

    def __init__(self) -> None:
        self._areas: list[Tensor] = []
        self._shares: dict[str, list[Tensor]] = {}

    def add(self, output: AttentionOutput, mask: Tensor) -> None:
        """Add one batch with its masks `[B, H, W]`."""
        self._areas.append(mask.float().mean(dim=(1, 2)).cpu())
        for name, shares in compute_object_shares(output.maps(), mask).items():
            self._shares.setdefault(name, []).append(shares.cpu())

    def merge(self, other: AttentionShare) -> None:
        """Add what another process collected."""
        self._areas.extend(other._areas)
        for name, shares in other._shares.items():
            self._shares.setdefault(name, []).extend(shares)

    def result(self) -> dict[str, float | int]:
        """Return the mean share of every map over all images; `object_area` is what attention spread evenly would have.

        `<map>_not_measurable` counts the images of which the map is zero everywhere; if all are, the map has no mean.
        """
        areas = torch.cat(self._areas)
        visible = areas > 0
        found: dict[str, float | int] = {}
        for name, parts in self._shares.items():
            shares = torch.cat(parts)[visible]
            if unmeasurable := int(shares.isnan().sum()):
                found[f"{name}_not_measurable"] = unmeasurable
            if unmeasurable < len(shares):
                found[name] = float(shares.nanmean())
        if visible.any():
            found["object_area"] = float(areas[visible].mean())
        return {**found, "images": int(visible.sum()), "images_without_object": int((~visible).sum())}


def format_mean(values: Sequence[float]) -> str:
    """Return the plain mean of what is a number."""
    known = [value for value in values if value == value]
    return format_number(sum(known) / len(known)) if known else ""


def format_number(value: float) -> str:
    """Return a number as tables write it; empty for NaN."""
    return f"{value:.6g}" if value == value else ""


def format_mean_interval(mean: MeanEstimate | dict[str, Any]) -> str:
    """Return a mean with its interval, in percent."""
    found = mean if isinstance(mean, dict) else asdict(mean)
    return f"{found['mean']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
