"""Tables of attention metrics: values of each image, and means over images and by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    total_variation_distance,
)
from toast_cli.tasks.base import Objective, measure_classes
from toast_cli.utils.formatting import format_csv
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean, estimate_proportion

METRIC_DESCRIPTIONS = {
    "share_inside": "share of the map inside the object",
    "pointing_hit": "pointing game: the centre of the highest cell is on the object",
    "entropy": "entropy, 1 is even",
    "grid_hit": "grid pointing game: the labelled cell has the largest share",
    "shift": "share of the map that moved between the passes",
    "share_gained": "share inside the object, pass two less pass one",
}
"""Descriptions of the metrics; on grids, `share_inside` is the localization score of the grid pointing game."""

HIT_METRICS = ("pointing_hit", "grid_hit")
"""Metrics that are 0 or 1 for an image, so that their mean is a proportion; of a uniform map, the chance of a hit."""

UNIFORM_MAP = "even"
"""Name of the uniform map, the chance level of the other maps."""

UNIFORM_SIMILARITY_MAP = "even_similarity"
"""Name of the uniform map on the similarity's grid, if it differs from the maps' (earlier stages of a ConvNeXt)."""


class AttentionMetricsTable:
    """A table of the metrics of each image.

    Args:
        cells: cells per side, for images that are grids of photographs with a mask of the labelled one; None for other
            images.
        registered: registered metrics of maps and masks by name (see `tasks.base.Metric`).
        objective: the objective of the model, if its images may have something else than one class.
    """

    def __init__(
        self,
        cells: int | None = None,
        registered: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.cells = cells
        self.target = "class" if objective is None else objective.target
        self.measure = (objective or Objective).measure
        self._measure_samples = measure_classes if objective is None else objective.measure_samples
        self.registered = registered or {}
        self.rows: list[dict[str, Any]] = []

    def add(self, output: AttentionOutput, batch: dict[str, Tensor]) -> None:
        """Add a batch with its `index` and `label` `[B]` and, if there are masks, `mask` `[B, H, W]`."""
        mask = batch.get("mask")
        metrics = {f"{map}/{name}": value for map, name, value in self._compute_measures(output, mask)}
        metrics[self.measure.name] = self._measure_samples(output.logits, batch)
        values = {name: value.float().cpu().tolist() for name, value in metrics.items()}
        for position, (index, label) in enumerate(zip(batch["index"].tolist(), batch["label"].tolist(), strict=True)):
            if not math.isnan(values[self.measure.name][position]):
                row = {name: value[position] for name, value in values.items()}
                self.rows.append({"index": index, "label": label, **row})

    def _compute_measures(self, output: AttentionOutput, mask: Tensor | None) -> Iterable[tuple[str, str, Tensor]]:
        """Yield the metrics of each map and of the change between passes; NaN if the crop lost the object."""
        shares: dict[str, Tensor] = {} if mask is None else compute_object_shares(output.get_maps(), mask)
        for name, map in output.get_maps().items():
            yield name, "entropy", entropy(map)
            if mask is None:
                continue
            visible = mask.flatten(1).any(1)
            yield name, "share_inside", shares[name]
            yield name, "pointing_hit", pointing_game_hits(map, mask).where(visible, torch.nan)
            for measure, compute in self.registered.items():
                yield name, measure, compute(map, mask).where(visible & ~is_zero_map(map), torch.nan)
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
        """Yield the metrics of a uniform map, whose share inside is the area of the object."""
        visible = mask.flatten(1).any(1)
        area = compute_mask_coverage(mask, map.shape).mean(dim=(1, 2))
        measures = {
            "share_inside": area,
            "pointing_hit": pointing_game_chance(mask, *map.shape[1:]),
        }
        uniform = torch.ones_like(map, dtype=torch.float32)
        measures |= {measure: compute(uniform, mask) for measure, compute in self.registered.items()}
        if self.cells is not None:
            measures["grid_hit"] = torch.full_like(area, 1 / self.cells**2)
        for measure, value in measures.items():
            yield name, measure, value.where(visible, torch.nan)

    def merge(self, other: AttentionMetricsTable) -> None:
        """Add the values of another process."""
        self.rows.extend(other.rows)

    def get_values(self, name: str) -> list[float]:
        """Return one metric of all images, in the order of the split."""
        return [row[name] for row in sorted(self.rows, key=lambda row: row["index"])]

    def list_metrics(self) -> list[str]:
        """Return the names of all metrics, as `MAP/METRIC`."""
        return [name for name in self.rows[0] if "/" in name] if self.rows else []

    def result(self) -> dict[str, dict[str, Any]]:
        """Return, by map and metric, the mean over images and its 95% interval."""
        means: dict[str, dict[str, Any]] = {}
        for name in self.list_metrics():
            map, measure = name.split("/")
            is_proportion = measure in HIT_METRICS and map not in (UNIFORM_MAP, UNIFORM_SIMILARITY_MAP)
            mean = (estimate_proportion if is_proportion else bootstrap_mean)(self.get_values(name))
            if mean is not None:
                means.setdefault(map, {})[measure] = asdict(mean)
        return means

    def count_unmeasurable(self) -> dict[str, int]:
        """Return, by map, the number of images whose map is zero everywhere, if any; means leave them out."""
        maps = [name.split("/")[0] for name in self.list_metrics() if name.endswith("/entropy")]
        counts = {map: sum(value != value for value in self.get_values(f"{map}/entropy")) for map in maps}
        return {map: count for map, count in counts.items() if count}

    def format_per_class(self, classes: Sequence[str]) -> str:
        """Return a CSV with a line per class or label: images, accuracy (or F1 per image), the mean of each metric."""
        lines = []
        columns = (self.measure.name, *self.list_metrics())
        for label, name in enumerate(classes):
            rows = [row for row in self.rows if self._has_class(row["label"], label)]
            if rows:
                lines.append([name, len(rows), *(format_mean([row[column] for row in rows]) for column in columns)])
        measure = "accuracy" if self.target == "class" else self.measure.name
        return format_csv([[self._get_heading(), "images", measure, *self.list_metrics()], *lines])

    def _has_class(self, label: Any, index: int) -> bool:
        return bool(label[index]) if self.target == "labels" else label == index

    def _get_heading(self) -> str:
        return {"labels": "label", "number": "number"}.get(self.target, "class")

    def _format_label(self, label: Any, classes: Sequence[str]) -> str:
        if self.target == "number":
            return "; ".join(format_number(value) for value in label)
        return "; ".join(name for index, name in enumerate(classes) if self._has_class(label, index))

    def format_per_image(self, classes: Sequence[str], names: Sequence[str]) -> str:
        """Return a CSV with a line per image: name, class and each metric."""
        lines = [
            [
                names[row["index"]],
                self._format_label(row["label"], classes),
                format_number(row[self.measure.name]),
                *(format_number(row[name]) for name in self.list_metrics()),
            ]
            for row in sorted(self.rows, key=lambda row: row["index"])
        ]
        return format_csv([["image", self._get_heading(), self.measure.name, *self.list_metrics()], *lines])


class AttentionShare:
    """A meter of the share of attention on the object.

    Images whose object the crop lost, and maps that are zero everywhere, are counted but not averaged.
    """

    def __init__(self) -> None:
        self._areas: list[Tensor] = []
        self._shares: dict[str, list[Tensor]] = {}

    def add(self, output: AttentionOutput, mask: Tensor) -> None:
        """Add a batch with its masks `[B, H, W]`."""
        self._areas.append(mask.float().mean(dim=(1, 2)).cpu())
        for name, shares in compute_object_shares(output.get_maps(), mask).items():
            self._shares.setdefault(name, []).append(shares.cpu())

    def merge(self, other: AttentionShare) -> None:
        """Add the values of another process."""
        self._areas.extend(other._areas)
        for name, shares in other._shares.items():
            self._shares.setdefault(name, []).extend(shares)

    def result(self) -> dict[str, float | int]:
        """Return the mean share of each map over images; `object_area` is the share of a uniform map.

        `<map>_not_measurable` counts the images whose map is zero everywhere. If all are, the map has no mean.
        """
        areas = torch.cat(self._areas)
        visible = areas > 0
        means: dict[str, float | int] = {}
        for name, parts in self._shares.items():
            shares = torch.cat(parts)[visible]
            if unmeasurable := int(shares.isnan().sum()):
                means[f"{name}_not_measurable"] = unmeasurable
            if unmeasurable < len(shares):
                means[name] = float(shares.nanmean())
        if visible.any():
            means["object_area"] = float(areas[visible].mean())
        return {**means, "images": int(visible.sum()), "images_without_object": int((~visible).sum())}


def format_mean(values: Sequence[float]) -> str:
    """Return the formatted mean of the values that are not NaN; empty if all are."""
    valid = [value for value in values if value == value]
    return format_number(sum(valid) / len(valid)) if valid else ""


def format_number(value: float) -> str:
    """Return a number formatted for a table; empty for NaN."""
    return f"{value:.6g}" if value == value else ""


def format_mean_interval(mean: MeanEstimate | dict[str, Any]) -> str:
    """Return a mean with its interval, in percent."""
    values = mean if isinstance(mean, dict) else asdict(mean)
    return f"{values['mean']:.1%} [{values['low']:.1%}, {values['high']:.1%}]"
