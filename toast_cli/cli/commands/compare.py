"""`toast compare`: several runs on the same images, in a table, in a figure and as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.attention.bootstrap import MeanEstimate
    from toast_cli.evaluation.compare_runs import ComparedRun, RunComparison

FINGERPRINT_DIGITS = 12
"""Digits of a fingerprint on a page; comparison.json has all."""


def run_compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders, adapter folders or exported files.")],
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    layer: Annotated[int, typer.Option(help="Layer whose map is shown; -1 is the last.")] = -1,
    head: options.HeadOption = "mean",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many images, drawn by the first run's seed.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many of the most disputed images are shown.")] = 6,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html, comparison.png and comparison.json. [default: comparison/, with a number "
            "behind it where another comparison is kept there]"
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure runs on the same images, say how sure their differences are, and show where they disagree most."""
    from toast_cli.cli.output.console import err, print_json, print_line, print_table
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest
    from toast_cli.evaluation.compare_runs import build_comparison as compared
    from toast_cli.evaluation.compare_runs import repeat_request
    from toast_cli.utils.files import write_json, write_text
    from toast_cli.visualize.figure import draw_figure, save_figure
    from toast_cli.visualize.html import render_template
    from toast_cli.visualize.layout import build_comparison_rows
    from toast_cli.visualize.report import build_report_images
    from toast_cli.visualize.save_figures import SOURCE_DIGEST_KEY, find_free_name
    from toast_cli.visualize.view import compute_image_view

    asked = AttentionEvalRequest(
        runs[0], dataset, data_dir, split, weights, device, precision, limit, layer, options.parse_head(head)
    )
    with TerminalReporter() as reporter:
        found = compared(repeat_request(asked, runs), reporter)
    disputed = found.most_disputed(images)
    samples = [found.split.load(index) for index in disputed]
    views = [[compute_image_view(run.viewer, sample) for run in found.runs] for sample in samples]
    own = _hash_comparison(found, split, [sample.image.tobytes() for sample in samples])
    place = out or Path(find_free_name(Path(), "comparison", own, "{}/comparison.json"))
    title = f"Where they disagree most, each run's last pass: {_describe_maps(found)}"
    save_figure(draw_figure(build_comparison_rows(samples, views), title), place / "comparison.png")
    shown, bars = build_report_images(samples, views)
    page = render_template(
        "compare.html", title=_format_title(found), split=split, shown=shown, bars=bars, **_build_page_context(found)
    )
    write_text(place / "report.html", page)
    numbers = {SOURCE_DIGEST_KEY: own, **_build_json_report(found, split, [sample.name for sample in samples])}
    write_json(place / "comparison.json", numbers)
    if as_json:
        print_json(numbers)
    else:
        for table in _build_tables(found):
            print_table(table)
    print_line(f"Report: {place / 'report.html'}", err)


def _hash_comparison(found: RunComparison, split: str, shown: list[bytes]) -> str:
    """A digest of what is compared: the same again may be written over."""
    from toast_cli.visualize.save_figures import compute_source_digest

    data = repr((found.dataset, split, len(found.split), found.runs[0].viewer.ending)).encode()
    return compute_source_digest([run.viewer for run in found.runs], [data, *shown])


def _describe_maps(found: RunComparison) -> str:
    """Which maps they are, each with whose where not all have the same."""
    from toast_cli.visualize.save_figures import describe_maps

    whose: dict[str, list[str]] = {}
    for run in found.runs:
        whose.setdefault(describe_maps(run.viewer, run.kind), []).append(run.viewer.name)
    if len(whose) == 1:
        return next(iter(whose))
    return "; ".join(f"{maps} ({', '.join(names)})" for maps, names in whose.items())


def _format_title(found: RunComparison) -> str:
    return " against ".join(run.viewer.name for run in found.runs)


def _format_interval(mean: MeanEstimate | None, sign: str = "") -> dict[str, str]:
    if mean is None:
        return {"value": "–", "interval": ""}
    return {
        "value": f"{mean.mean * 100:{sign}.1f}",
        "interval": f"[{mean.low * 100:{sign}.1f}, {mean.high * 100:{sign}.1f}]",
    }


def _build_rows(found: RunComparison) -> tuple[list[str], list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """Headings and lines of what each run has, and of what each pair of runs differs in."""
    from toast_cli.attention.bootstrap import bootstrap_mean

    masks = all(run.inside is not None for run in found.runs)
    on_it = ["on the object, %", "an even map, %"] if masks else []
    headings = ["accuracy, %", "trained", "of all", "FLOPs", *on_it]
    lines, differences = [], []
    for run in found.runs:
        sizes = run.sizes
        cells = [
            _format_interval(bootstrap_mean(run.correct)),
            {"value": f"{sizes['trained_parameters']:,}", "interval": ""},
            {"value": f"{sizes['trained_parameters'] / sizes['total_parameters']:.2%}", "interval": ""},
            {"value": f"{sizes['flops']:.3g}", "interval": f"{sizes['flops'] / sizes['flops_plain']:.2f} × plain"},
        ]
        if run.inside is not None and masks:
            even = "–" if run.even is None else f"{100 * run.even:.1f}"  # of chance an interval would say nothing
            cells += [_format_interval(bootstrap_mean(run.inside)), {"value": even, "interval": ""}]
        lines.append({"name": run.viewer.name, "cells": cells})
    wanted = ["correct", *(["inside"] if masks else [])]
    for one, other in found.pairs():
        own = [_format_interval(found.difference(one, other, what), "+") for what in wanted]
        differences.append({"name": f"{other.viewer.name} less {one.viewer.name}", "cells": own})
    return headings, lines, ["accuracy", *(["on the object"] if masks else [])], differences


def _describe_correction(found: RunComparison) -> str:
    """How many differences there are, and what that does to their intervals."""
    count = len(found.pairs())
    return "" if count == 1 else f"95% for all {count} of a column together (Bonferroni)"


def _build_page_context(found: RunComparison) -> dict[str, Any]:
    from toast_cli.data.base import describe_masks

    headings, lines, difference_headings, differences = _build_rows(found)
    made = [{"name": run.viewer.name, "facts": _describe_run(run)} for run in found.runs]
    return {
        "images": f"{len(found.split):,}",
        "dataset": found.dataset,
        "object": describe_masks(found.split),
        "maps": _describe_maps(found),
        "together": _describe_correction(found),
        "headings": headings,
        "lines": lines,
        "difference_headings": difference_headings,
        "differences": differences,
        "made": made,
    }


def _describe_run(run: ComparedRun) -> list[tuple[str, str]]:
    """Who looks, and of what its maps are, in words."""
    from toast_cli.visualize.report import format_attention_checks
    from toast_cli.visualize.save_figures import describe_maps, describe_model

    made = describe_model(run.viewer, run.viewer.name)
    return [
        ("folder", run.asked.path.resolve().name),
        ("backbone", f"{made['backbone']}, weights {made['weights']}"),
        ("method", f"{made['method']}, seed {made['seed']}"),
        ("maps", describe_maps(run.viewer, run.kind)),
        ("checked", format_attention_checks(run.checks)),
        ("fingerprints", f"{made['run_fingerprint'][:FINGERPRINT_DIGITS]} of what was trained, "
         f"{made['backbone_fingerprint'][:FINGERPRINT_DIGITS]} of the backbone"),
    ]  # fmt: skip


def _build_json_report(found: RunComparison, split: str, disputed: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from toast_cli.attention.bootstrap import bootstrap_mean
    from toast_cli.data.base import describe_masks
    from toast_cli.visualize.save_figures import describe_model, get_library_versions

    def as_numbers(mean: MeanEstimate | None) -> dict[str, Any] | None:
        return None if mean is None else asdict(mean)

    return {
        "dataset": found.dataset,
        "split": split,
        "images": len(found.split),
        "runs": [
            {
                **describe_model(run.viewer, run.viewer.name),
                "run": str(run.asked.path),
                "maps": run.kind,
                "layer": run.viewer.recorder.level,
                "head": run.viewer.head,
                "checks": None if run.checks is None else run.checks.told(),
                **run.sizes,
                "accuracy": as_numbers(bootstrap_mean(run.correct)),
                "share_inside": None if run.inside is None else as_numbers(bootstrap_mean(run.inside)),
                "share_inside_by_chance": run.even,
            }
            for run in found.runs
        ],
        "differences": [
            {
                "run": other.viewer.name,
                "less": one.viewer.name,
                "accuracy": as_numbers(found.difference(one, other, "correct")),
                "share_inside": as_numbers(found.difference(one, other, "inside")),
            }
            for one, other in found.pairs()
        ],
        "differences_interval": _describe_correction(found) or "95%",
        "object": describe_masks(found.split),
        "most_disputed": disputed,
        "versions": get_library_versions(),
    }


def _build_tables(found: RunComparison) -> list[Any]:
    from rich.table import Table

    from toast_cli.data.base import describe_masks

    headings, lines, difference_headings, differences = _build_rows(found)
    marks = describe_masks(found.split)
    notes = "\n".join([*([f"The object: {marks}."] if marks else []), f"Maps: {_describe_maps(found)}."])
    tables = []
    for title, caption, first, names, rows in (
        (f"{len(found.split):,} images of {found.dataset}, 95% intervals", notes, "run", headings, lines),
        ("Differences on the same images, in points", _describe_correction(found) or None, "runs", difference_headings,
         differences),
    ):  # fmt: skip
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
        table.add_column(first)
        for name in names:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(row["name"], *(f"{cell['value']}\n{cell['interval']}".rstrip() for cell in row["cells"]))
        tables.append(table)
    return tables
