"""Output of `toast compare` for language models: tables, the HTML page, a table of all texts, and JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from toast_cli.evaluation.texts.attention import describe_mean
from toast_cli.evaluation.texts.comparison import ComparedTextRun, TextComparison, TextDifference
from toast_cli.utils.files import write_json, write_text
from toast_cli.utils.formatting import format_csv, render_template
from toast_cli.utils.names import escape_newlines
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean
from toast_cli.visualize.save_figures import (
    SOURCE_DIGEST_KEY,
    compute_source_digest,
    describe_model,
    find_free_name,
    get_library_versions,
)

RUN_HEADINGS = ("loss per text", "loss per token", "perplexity", "trained", "of all", "FLOPs per token")
DIFFERENCE_HEADINGS = ("loss per text", "p", "texts with a lower loss")


def write_text_comparison(found: TextComparison, out: Path | None, shown: int) -> tuple[Path, dict[str, Any]]:
    """Write the page, the table of all texts and the record of a comparison; return the folder and the record.

    `shown` is the number of texts on the page.
    """
    data = repr((found.dataset, found.split, found.names)).encode()
    digest = compute_source_digest([run.run.viewer for run in found.runs], [data])
    folder = out or Path(find_free_name(Path(), "comparison", digest, "{}/comparison.json"))
    disputed = found.find_most_disputed(shown)
    numbers = {SOURCE_DIGEST_KEY: digest, **build_text_record(found, disputed)}
    page = render_template("visualize/templates/compare_texts.html", **build_text_page(found, disputed))
    write_text(folder / "losses.csv", format_losses_csv(found))
    write_text(folder / "report.html", page)
    write_json(folder / "comparison.json", numbers)
    return folder, numbers


def format_losses_csv(found: TextComparison) -> str:
    """Return a CSV with a line per text: its name, its target tokens and its loss in each run."""
    rows: list[list[Any]] = [["text", "tokens", *(run.name for run in found.runs)]]
    for index, name in enumerate(found.names):
        losses = (f"{run.measured.losses[index]:.6f}" for run in found.runs)
        rows.append([name, int(found.runs[0].measured.tokens[index]), *losses])
    return format_csv(rows)


def build_text_record(found: TextComparison, disputed: list[int]) -> dict[str, Any]:
    """Return the comparison as JSON. `disputed` are the texts on the page."""
    pairs = len(found.compute_differences())
    return {
        "dataset": found.dataset,
        "split": found.split,
        "texts": len(found.names),
        "tokens": int(found.runs[0].measured.tokens.sum()),
        "runs": [
            {
                **describe_model(run.run.viewer, run.name),
                "run": str(run.run.request.path),
                **run.sizes,
                "loss_per_text": describe_mean(bootstrap_mean(run.measured.losses)),
                "loss": run.measured.compute_token_loss(),
                "perplexity": math.exp(run.measured.compute_token_loss()),
            }
            for run in found.runs
        ],
        "differences": [
            {
                "run": each.other.name,
                "less": each.one.name,
                "loss_per_text": describe_mean(each.loss),
                "p": each.p,
                "texts_with_lower_loss": describe_mean(each.better),
            }
            for each in found.compute_differences()
        ],
        "differences_interval": "95%" if pairs == 1 else f"95%, simultaneous over {pairs} differences (Bonferroni)",
        "most_disputed": [found.names[index] for index in disputed],
        "versions": get_library_versions(),
    }


def _format_loss(mean: MeanEstimate | None, sign: str = "") -> tuple[str, str]:
    assert mean is not None  # there is at least one text
    values = asdict(mean)
    return f"{values['mean']:{sign}.4f}", f"[{values['low']:{sign}.4f}, {values['high']:{sign}.4f}]"


def _build_run_row(run: ComparedTextRun) -> list[tuple[str, str]]:
    """Return the cells of a run: a value, and an interval or a remark."""
    sizes, loss = run.sizes, run.measured.compute_token_loss()
    return [
        _format_loss(bootstrap_mean(run.measured.losses)),
        (f"{loss:.4f}", ""),
        (f"{math.exp(loss):.3f}", ""),
        (f"{sizes['trained_parameters']:,}", ""),
        (f"{sizes['trained_parameters'] / sizes['total_parameters']:.2%}", ""),
        (f"{sizes['flops']:.3g}", f"{sizes['flops'] / sizes['flops_plain']:.2f} × plain"),
    ]


def _build_difference_row(each: TextDifference) -> list[tuple[str, str]]:
    share = each.better
    return [
        _format_loss(each.loss, "+"),
        (f"{each.p:.3g}", ""),
        (f"{share.mean:.1%}", f"[{share.low:.1%}, {share.high:.1%}]"),
    ]


def _describe_pairs(found: TextComparison) -> str:
    """Return the notes on the differences: their sign, and the correction for several of them."""
    pairs = len(found.compute_differences())
    note = "Below zero, the first run of a pair has the lower loss. p: paired t-test over texts"
    return f"{note}." if pairs == 1 else f"{note}, not corrected; intervals hold for all {pairs} pairs (Bonferroni)."


def build_text_tables(found: TextComparison) -> list[Table]:
    """Return a table of the runs and a table of their differences."""
    tables = []
    title = f"{len(found.names):,} texts of {escape_newlines(found.dataset)}, {found.split}, 95% intervals over texts"
    runs = [(run.name, _build_run_row(run)) for run in found.runs]
    pairs = [(f"{each.other.name} minus {each.one.name}", _build_difference_row(each))
             for each in found.compute_differences()]  # fmt: skip
    for heading, caption, first, names, rows in (
        (title, None, "run", RUN_HEADINGS, runs),
        ("Differences on the same texts", _describe_pairs(found), "runs", DIFFERENCE_HEADINGS, pairs),
    ):
        table = Table(title=heading, caption=caption, title_justify="left", caption_justify="left")
        table.add_column(first)
        for name in names:
            table.add_column(name, justify="right")
        for row_name, cells in rows:
            table.add_row(escape_newlines(row_name), *("\n".join(filter(None, cell)) for cell in cells))
        tables.append(table)
    return tables


def build_text_page(found: TextComparison, disputed: list[int]) -> dict[str, Any]:
    """Return the variables of the page. `disputed` are the texts to show."""
    differences = found.compute_differences()
    return {
        "title": " vs. ".join(run.name for run in found.runs),
        "texts": f"{len(found.names):,}",
        "split": found.split,
        "dataset": found.dataset,
        "headings": RUN_HEADINGS,
        "lines": [{"name": run.name, "cells": _build_run_row(run)} for run in found.runs],
        "difference_headings": DIFFERENCE_HEADINGS,
        "differences": [
            {"name": f"{each.other.name} minus {each.one.name}", "cells": _build_difference_row(each)}
            for each in differences
        ],
        "note": _describe_pairs(found),
        "runs": [run.name for run in found.runs],
        "disputed": [
            {
                "name": found.names[index],
                "text": found.runs[0].run.decode_text(index),
                "losses": [f"{run.measured.losses[index]:.4f}" for run in found.runs],
            }
            for index in disputed
        ],
    }
