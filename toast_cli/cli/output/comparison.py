"""Output of `toast compare`: tables, the context of the HTML page, and JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from toast_cli.data.base import describe_masks
from toast_cli.evaluation.compare_runs import ComparedRun, RunComparison, get_seed
from toast_cli.utils.names import escape_newlines
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean, estimate_proportion
from toast_cli.visualize.report import format_attention_checks
from toast_cli.visualize.save_figures import compute_source_digest, describe_model, get_library_versions
from toast_cli.visualize.styles.captions import describe_maps

FINGERPRINT_DIGITS = 12
"""Digits of a fingerprint on the page; comparison.json has the full value."""


def hash_comparison(found: RunComparison, split: str, images: list[bytes]) -> str:
    """Return a digest of the runs and images. The same comparison may overwrite its own output."""
    data = repr((found.dataset, split, len(found.split), found.runs[0].viewer.file_suffix)).encode()
    return compute_source_digest([run.viewer for run in found.runs], [data, *images])


def describe_all_maps(found: RunComparison) -> str:
    """Describe the maps of the runs; with the names of the runs if they differ."""
    whose: dict[str, list[str]] = {}
    for run in found.runs:
        whose.setdefault(describe_maps(run.viewer, run.kind), []).append(run.viewer.name)
    if len(whose) == 1:
        return next(iter(whose))
    return "; ".join(f"{maps} ({', '.join(names)})" for maps, names in whose.items())


def _format_interval(mean: MeanEstimate | None, sign: str = "", percent: bool = True) -> dict[str, str]:
    if mean is None:
        return {"value": "–", "interval": ""}
    if not percent:
        return {"value": f"{mean.mean:{sign}.4g}", "interval": f"[{mean.low:{sign}.4g}, {mean.high:{sign}.4g}]"}
    return {
        "value": f"{mean.mean * 100:{sign}.1f}",
        "interval": f"[{mean.low * 100:{sign}.1f}, {mean.high * 100:{sign}.1f}]",
    }


def build_rows(found: RunComparison) -> tuple[list[str], list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """Return the headings and rows of the runs, and those of the pairwise differences."""
    masks = all(run.inside is not None for run in found.runs)
    on_it = ["on the object, %", "an even map, %"] if masks else []
    measure, percent = found.measure.label, found.measure.percent
    headings = [f"{measure}, %" if percent else measure, "trained", "of all", "FLOPs", *on_it]
    lines, differences = [], []
    for run in found.runs:
        sizes = run.sizes
        cells = [
            _format_interval(_estimate_mean(found, run), percent=percent),
            {"value": f"{sizes['trained_parameters']:,}", "interval": ""},
            {"value": f"{sizes['trained_parameters'] / sizes['total_parameters']:.2%}", "interval": ""},
            {"value": f"{sizes['flops']:.3g}", "interval": f"{sizes['flops'] / sizes['flops_plain']:.2f} × plain"},
        ]
        if run.inside is not None and masks:
            even = "–" if run.even is None else f"{100 * run.even:.1f}"  # the chance level has no interval
            cells += [_format_interval(bootstrap_mean(run.inside)), {"value": even, "interval": ""}]
        lines.append({"name": run.viewer.name, "cells": cells})
    measures = ["correct", *(["inside"] if masks else [])]
    for one, other in found.iterate_pairs():
        own = [
            _format_interval(found.estimate_difference(one, other, what), "+", percent or what == "inside")
            for what in measures
        ]
        differences.append({"name": f"{other.viewer.name} minus {one.viewer.name}", "cells": own})
    return headings, lines, [measure, *(["on the object"] if masks else [])], differences


def _estimate_mean(found: RunComparison, run: ComparedRun) -> MeanEstimate | None:
    """Return the mean of what is measured of a run: an accuracy is a proportion."""
    return estimate_proportion(run.correct) if found.measure.name == "correct" else bootstrap_mean(run.correct)


def build_seed_rows(found: RunComparison) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the headings and rows of the means over seeds; no row if no two runs differ in their seeds only."""
    groups, percent = found.group_by_seed(), found.measure.percent
    on_it = ["on the object, %"] if all(run.inside is not None for run in found.runs) else []
    rows = []
    for group in groups:
        seeds = {"value": ", ".join(str(seed) for seed in sorted(map(get_seed, group.runs))), "interval": ""}
        means = [
            (group.compute_mean(what), percent or what == "inside") for what in ("correct", "inside")[: 1 + len(on_it)]
        ]
        cells = [{"value": _format_spread(*mean, shown), "interval": ""} for mean, shown in means if mean]
        rows.append({"name": group.name, "cells": [seeds, *cells]})
    return ["seeds", f"{found.measure.label}, %" if percent else found.measure.label, *on_it], rows


def _format_spread(mean: float, deviation: float, percent: bool) -> str:
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}" if percent else f"{mean:.4g} ± {deviation:.2g}"


def build_class_table(found: RunComparison) -> dict[str, Any]:
    """Return the accuracy of each run by class, in percent, for the page; without lines if images have no class."""
    labels = found.split.labels
    lines: list[dict[str, Any]] = []
    if found.measure.name == "correct" and all(isinstance(label, int) and label >= 0 for label in labels):
        for index, name in enumerate(found.classes):
            places = [place for place, label in enumerate(labels) if label == index]
            if not places:
                continue
            cells = [{"value": len(places), "text": f"{len(places):,}", "details": ""}]
            for run in found.runs:
                right = int(run.correct[places].sum())
                share = 100 * right / len(places)
                counts = f"{run.viewer.name}: {right:,} of {len(places):,} images"
                cells.append({"value": f"{share:.6g}", "text": f"{share:.1f}", "details": counts})
            lines.append({"name": name, "cells": cells})
    headings = ["images", *(run.viewer.name for run in found.runs)]
    return {"title": "Accuracy by class, %", "headings": headings, "lines": lines}


def _describe_correction(found: RunComparison) -> str:
    """Describe the correction for multiple comparisons; empty for a single difference."""
    count = len(found.iterate_pairs())
    return "" if count == 1 else f"95% simultaneous intervals over the {count} differences of a column (Bonferroni)"


def build_page_context(found: RunComparison) -> dict[str, Any]:
    """Return the template variables of the page, except its images."""
    headings, lines, difference_headings, differences = build_rows(found)
    seed_headings, seeds = build_seed_rows(found)
    made = [{"name": run.viewer.name, "facts": _describe_run(run)} for run in found.runs]
    return {
        "title": " vs. ".join(run.viewer.name for run in found.runs),
        "images": f"{len(found.split):,}",
        "dataset": found.dataset,
        "object": describe_masks(found.split),
        "maps": describe_all_maps(found),
        "together": _describe_correction(found),
        "headings": headings,
        "lines": lines,
        "difference_headings": difference_headings,
        "differences": differences,
        "seed_headings": seed_headings,
        "seeds": seeds,
        "made": made,
        "per_class": build_class_table(found),
    }


def _describe_run(run: ComparedRun) -> list[tuple[str, str]]:
    """Return labelled facts about a run and its maps."""
    made = describe_model(run.viewer, run.viewer.name)
    return [
        ("folder", run.request.path.resolve().name),
        ("backbone", f"{made['backbone']}, weights {made['weights']}"),
        ("method", f"{made['method']}, seed {made['seed']}"),
        ("maps", describe_maps(run.viewer, run.kind)),
        ("checked", format_attention_checks(run.checks)),
        ("fingerprints", f"{made['run_fingerprint'][:FINGERPRINT_DIGITS]} of the trained parameters, "
         f"{made['backbone_fingerprint'][:FINGERPRINT_DIGITS]} of the backbone"),
    ]  # fmt: skip


def build_json_report(found: RunComparison, split: str, disputed: list[str]) -> dict[str, Any]:
    """Return the comparison as JSON. `disputed` names the images in the figure."""

    measure = "accuracy" if found.measure.name == "correct" else found.measure.name

    def as_numbers(mean: MeanEstimate | None) -> dict[str, Any] | None:
        return None if mean is None else asdict(mean)

    return {
        "dataset": found.dataset,
        "split": split,
        "images": len(found.split),
        "runs": [
            {
                **describe_model(run.viewer, run.viewer.name),
                "run": str(run.request.path),
                "maps": run.kind,
                "layer": run.viewer.recorder.level,
                "head": run.viewer.head,
                "checks": None if run.checks is None else run.checks.to_dict(),
                **run.sizes,
                measure: as_numbers(_estimate_mean(found, run)),
                "share_inside": None if run.inside is None else as_numbers(bootstrap_mean(run.inside)),
                "share_inside_by_chance": run.even,
            }
            for run in found.runs
        ],
        "seeds": [
            {
                "name": group.name,
                "runs": [run.viewer.name for run in group.runs],
                "seeds": [get_seed(run) for run in group.runs],
                measure: group.compute_mean("correct"),
                "share_inside": group.compute_mean("inside"),
            }
            for group in found.group_by_seed()
        ],
        "differences": [
            {
                "run": other.viewer.name,
                "less": one.viewer.name,
                measure: as_numbers(found.estimate_difference(one, other, "correct")),
                "share_inside": as_numbers(found.estimate_difference(one, other, "inside")),
            }
            for one, other in found.iterate_pairs()
        ],
        "differences_interval": _describe_correction(found) or "95%",
        "object": describe_masks(found.split),
        "most_disputed": disputed,
        "versions": get_library_versions(),
    }


def build_comparison_tables(found: RunComparison) -> list[Any]:
    """Return a table of the runs and a table of their differences."""
    headings, lines, difference_headings, differences = build_rows(found)
    marks = describe_masks(found.split)
    notes = "\n".join([*([f"Object: {marks}."] if marks else []), f"Maps: {describe_all_maps(found)}."])
    title = f"{len(found.split):,} images of {escape_newlines(found.dataset)}, 95% intervals"
    differing = "Differences on the same images" + ", in percentage points" * found.measure.percent
    tables = []
    seed_headings, seeds = build_seed_rows(found)
    for heading, caption, first, names, rows in (
        (title, notes, "run", headings, lines),
        ("Mean ± standard deviation over seeds", None, "runs", seed_headings, seeds),
        (differing, _describe_correction(found) or None, "runs",
         difference_headings, differences),
    ):  # fmt: skip
        if not rows:
            continue
        table = Table(title=heading, caption=caption, title_justify="left", caption_justify="left")
        table.add_column(first)
        for name in names:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(
                escape_newlines(row["name"]),
                *(f"{cell['value']}\n{cell['interval']}".rstrip() for cell in row["cells"]),
            )
        tables.append(table)
    return tables
