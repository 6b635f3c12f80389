"""`toast eval --attention` and `--sweep` of language models: tables and output files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from toast_cli.attention.table import UNIFORM_MAP
from toast_cli.attention.text_shares import GAINED, MAPS
from toast_cli.cli.commands.eval_attention import (
    MAP_LABELS,
    RECORD_FILE,
    build_provenance,
    choose_output_folder,
    clear_previous_outputs,
)
from toast_cli.cli.output.console import err, print_line
from toast_cli.cli.output.progress import TerminalReporter
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest
from toast_cli.evaluation.texts.attention import describe_mean, evaluate_text_attention, sweep_text_loss
from toast_cli.utils.files import remove_file, write_json, write_text
from toast_cli.utils.names import escape_newlines
from toast_cli.visualize.eval_curves import LOSSES, SWEEP_LABELS, draw_sweep, format_sweep_csv
from toast_cli.visualize.figure_output import save_figure
from toast_cli.visualize.styles.captions import describe_maps

TEXT_FILE = "per_text.csv"
INTERVAL = "95%: by bootstrap over texts"
TEXT_MAP_LABELS = {**MAP_LABELS, GAINED: "pass two minus pass one"}
TEXT_SHARES_MEANING = (
    "mean over texts of the share of attention that the tokens which predict an answer give to each part; "
    f"{UNIFORM_MAP}: if their attention were even over the tokens before them"
)


def run_text_attention(request: AttentionEvalRequest, out: Path | None) -> tuple[dict[str, Any], Table]:
    """Evaluate a language model's attention over the parts of its texts, and write a table of all texts.

    Returns:
        The results as JSON, and a table of them.
    """
    with TerminalReporter() as reporter:
        result = evaluate_text_attention(request, reporter)
    run, means = result.run, result.table.result()
    steering = run.viewer.model.adapted.steering
    results: dict[str, Any] = {
        **build_provenance(request, run.viewer),
        "split": run.split,
        "alpha": None if steering is None else steering.strength,
        "texts": run.texts,
        "shares": {map: {part: describe_mean(mean) for part, mean in parts.items()} for map, parts in means.items()},
        "shift": describe_mean(result.table.estimate_shift()),
        "checks": None if result.checks is None else result.checks.to_dict(),
        "meaning": TEXT_SHARES_MEANING,
        "interval": INTERVAL,
    }
    folder = clear_previous_outputs(choose_output_folder(replace(request, split=run.split), run.viewer, out, "numbers"))
    remove_file(folder / TEXT_FILE)
    write_text(folder / TEXT_FILE, result.table.format_per_text())
    write_json(folder / RECORD_FILE, results)
    print_line(f"Results per text: {folder}", err)
    return results, build_text_attention_table(request, results, describe_maps(run.viewer, "attention"))


def build_text_attention_table(request: AttentionEvalRequest, results: dict[str, Any], maps: str) -> Table:
    """Return a table of mean shares with 95% intervals, one row per part and one column per map."""
    shift = results["shift"]
    moved = "" if shift is None else f" Moved between the passes: {_format_share(shift)}."
    table = Table(
        title=f"{escape_newlines(str(request.path))}, {results['split']}: {maps}, share on each part of "
        f"{results['texts']:,} texts, 95% intervals",
        title_justify="left",
        caption=f"An even map is the chance level: the part's share of the tokens.{moved}",
        caption_justify="left",
    )
    table.add_column("part")
    table.add_column("texts", justify="right")
    shown = [map for map in MAPS if map in results["shares"]]
    for map in shown:
        table.add_column(TEXT_MAP_LABELS[map], justify="right")
    for part, first in results["shares"]["pass_one"].items():
        cells = [results["shares"][map][part] for map in shown]
        texts = [
            f"{cell['mean']:.1%}" if map == UNIFORM_MAP else _format_share(cell, "+" if map == GAINED else "")
            for map, cell in zip(shown, cells, strict=True)
        ]
        table.add_row(part, f"{first['texts']:,}", *texts)
    return table


def _format_share(mean: dict[str, Any], sign: str = "") -> str:
    return f"{mean['mean']:{sign}.1%} [{mean['low']:{sign}.1%}, {mean['high']:{sign}.1%}]"


def run_text_sweep(request: AttentionEvalRequest, out: Path | None) -> tuple[dict[str, Any], Table]:
    """Evaluate a language model at several strengths of the feedback, and write a figure.

    Returns:
        The results as JSON, and a table of them.
    """
    with TerminalReporter() as reporter:
        result = sweep_text_loss(request, reporter)
    run, lines = result.run, result.lines
    folder = clear_previous_outputs(
        choose_output_folder(replace(request, split=run.split), run.viewer, out, "strength")
    )
    shown = [name for name in LOSSES if all(name in line for line in lines)]
    write_text(folder / "strength.csv", format_sweep_csv(lines, shown))
    save_figure(draw_sweep(lines, shown), folder / "strength.png")
    table = Table(
        title=f"{escape_newlines(str(request.path))}, {run.split}: strength of the feedback, {run.texts:,} texts, "
        "95% intervals",
        title_justify="left",
    )
    table.add_column("alpha")
    for name in shown:
        table.add_column(SWEEP_LABELS[name], justify="right")
    table.add_column("perplexity", justify="right")
    for line in lines:
        cells = (
            f"{line[name]['mean']:{sign}.3f} [{line[name]['low']:{sign}.3f}, {line[name]['high']:{sign}.3f}]"
            for name, sign in zip(shown, ("", "+"), strict=False)
        )
        table.add_row(f"{line['alpha']:g}", *cells, f"{line['perplexity']:.3f}")
    results = {
        **build_provenance(request, run.viewer),
        "split": run.split,
        "texts": run.texts,
        "strengths": lines,
        "interval": INTERVAL,
    }
    write_json(folder / RECORD_FILE, results)
    print_line(f"Results, figure and table: {folder}", err)
    return results, table
