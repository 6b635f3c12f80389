"""`toast eval --attention` and `--sweep`: tables and output files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from toast_cli import registry
from toast_cli.attention.deletion_insertion import RANDOM_ORDER, RANDOM_SIMILARITY_ORDER
from toast_cli.attention.table import (
    METRIC_DESCRIPTIONS,
    UNIFORM_MAP,
    UNIFORM_SIMILARITY_MAP,
    format_mean_interval,
)
from toast_cli.cli.output.console import err, print_line
from toast_cli.cli.output.progress import TerminalReporter
from toast_cli.data.base import describe_masks
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest, evaluate_attention, sweep_feedback_strength
from toast_cli.tasks.base import Metric
from toast_cli.utils.files import remove_file, write_json, write_text
from toast_cli.utils.names import escape_newlines
from toast_cli.visualize.eval_curves import (
    ORDER_LABELS,
    SWEEP_LABELS,
    draw_deletion_insertion_curves,
    draw_sweep,
    format_areas_csv,
    format_curves_csv,
    format_sweep_csv,
    summarize_curves,
)
from toast_cli.visualize.figure_output import save_figure
from toast_cli.visualize.save_figures import describe_model, get_library_versions
from toast_cli.visualize.view import AttentionViewer

RECORD_FILE = "numbers.json"
"""Record of the results and settings, next to the tables and figures."""
TABLE_FILES = ("per_class.csv", "per_image.csv", "curves.csv", "curves_per_image.csv", "strength.csv")
FIGURE_FILES = ("curves.png", "strength.png")

MAP_LABELS = {
    **ORDER_LABELS,
    UNIFORM_MAP: "an even map",
    UNIFORM_SIMILARITY_MAP: "even, as coarse as similarity",
}

MEASURE_LABELS = {
    "share_inside": "inside the object",
    "pointing_hit": "highest cell on object",
    "entropy": "entropy (1: uniform)",
    "grid_hit": "labelled grid cell is highest",
    "shift": SWEEP_LABELS["shift"],
    "share_gained": "inside, pass two minus pass one",
}
"""Short names of the metrics for tables; `METRIC_DESCRIPTIONS` has the full ones."""


def run_attention_eval(request: AttentionEvalRequest, out: Path | None) -> tuple[dict[str, Any], Table]:
    """Evaluate a run's attention maps.

    Writes results per class and per image, and curves.

    Returns:
        The results as JSON, and a table of them.
    """
    with TerminalReporter() as reporter:
        result = evaluate_attention(request, reporter)
    run, numbers, curves = result.run, result.numbers, result.curves
    classes, steering = run.session.data.classes, run.viewer.model.adapted.steering
    results: dict[str, Any] = {
        **build_provenance(request, run.viewer),
        "alpha": None if steering is None else steering.strength,
        "maps": result.kind,
        "images": len(numbers.rows),
        "object": describe_masks(run.split),
        "numbers": numbers.result(),
        "not_measurable": numbers.count_unmeasurable(),
        "skipped": result.skipped,
        "meaning": METRIC_DESCRIPTIONS
        | {name: metric.meaning or metric.label for name, metric in list_attention_metrics().items()},
        "interval": "95%: of proportions by the score method (Wilson), of other means by bootstrap over images",
    }
    folder = clear_previous_outputs(choose_output_folder(request, run.viewer, out, "numbers"))
    write_text(folder / "per_class.csv", numbers.format_per_class(classes))
    write_text(folder / "per_image.csv", numbers.format_per_image(classes, run.split.names))
    if curves is not None:
        results["curves"] = summarize_curves(curves)
        means = curves.compute_mean_curves()
        write_text(folder / "curves.csv", format_curves_csv(curves.compute_pixel_shares(), means))
        write_text(folder / "curves_per_image.csv", format_areas_csv(curves, result.curve_names))
        save_figure(draw_deletion_insertion_curves(curves.compute_pixel_shares(), means), folder / "curves.png")
    write_json(folder / RECORD_FILE, results)
    print_line(f"Results per class and per image, and curves: {folder}", err)
    return results, build_attention_table(request, results)


def run_strength_sweep(request: AttentionEvalRequest, out: Path | None) -> tuple[dict[str, Any], Table]:
    """Evaluate a run at several strengths of the feedback, and write a figure.

    Returns:
        The results as JSON, and a table of them.
    """
    with TerminalReporter() as reporter:
        result = sweep_feedback_strength(request, reporter)
    lines = result.lines
    folder = clear_previous_outputs(choose_output_folder(request, result.viewer, out, "strength"))
    shown = [name for name in SWEEP_LABELS if all(name in line for line in lines)]
    write_text(folder / "strength.csv", format_sweep_csv(lines, shown))
    save_figure(draw_sweep(lines, shown), folder / "strength.png")
    images = lines[0][shown[0]]["images"]
    run = escape_newlines(str(request.path))
    table = Table(
        title=f"{run}, {request.split}: strength of the feedback, {images} images, 95% intervals",
        title_justify="left",
    )
    table.add_column("alpha")
    for name in shown:
        table.add_column(SWEEP_LABELS[name], justify="right")
    for line in lines:
        table.add_row(f"{line['alpha']:g}", *(format_mean_interval(line[name]) for name in shown))
    results = {
        **build_provenance(request, result.viewer),
        "images": images,
        "strengths": lines,
        "skipped": result.skipped,
        "interval": "95%: of proportions by the score method (Wilson), of other means by bootstrap over images",
    }
    write_json(folder / RECORD_FILE, results)
    print_line(f"Results, figure and table: {folder}", err)
    return results, table


def build_provenance(request: AttentionEvalRequest, viewer: AttentionViewer) -> dict[str, Any]:
    """Return the model, the data and the settings of an evaluation, as the first fields of its record."""
    assert viewer.recipe is not None
    return {
        **describe_model(viewer, viewer.name),
        "run": str(request.path),
        "split": request.split,
        "limit": request.limit,
        "layer": viewer.recorder.level,
        "head": request.head,
        "precision": viewer.recipe.precision,
        "versions": get_library_versions(),
    }


def choose_output_folder(request: AttentionEvalRequest, viewer: AttentionViewer, out: Path | None, what: str) -> Path:
    """Return the output folder: next to the JSON file `out`, else in the run folder, else in the current folder.

    Evaluations with other settings (layer, head, strength) get other folders.
    """
    if out is not None:
        return out.parent / f"{out.stem}-{what}"
    home = request.path / "attention" if request.path.is_dir() else Path("attention")
    return home / f"{what}-{request.split}{viewer.file_suffix}"


def clear_previous_outputs(folder: Path) -> Path:
    """Remove the files of an earlier evaluation from a folder and return it. Other files are kept.

    The record is removed first and written last, so a folder with a record is complete.
    """
    for name in (RECORD_FILE, *TABLE_FILES, *FIGURE_FILES):
        remove_file(folder / name)
    return folder


def list_attention_metrics() -> dict[str, Metric]:
    """Return the registered metrics of attention maps."""
    metrics = registry.load_all(registry.METRICS)
    return {name: metric for name, metric in metrics.items() if metric.needs == "attention"}


def format_attention_notes(results: dict[str, Any]) -> list[str]:
    """Return the notes below the table: what the object is, the chance level, and what was not measurable."""
    lines = []
    if results["object"] is not None:
        lines += [
            f"Object: {results['object']}. An even map is the chance level: its share inside is the object's area."
        ]
    if "curves" in results:
        curves = results["curves"]
        steps = len(curves["shares_of_pixels"][RANDOM_ORDER]) - 1
        lines += [f"Deletion and insertion: area under the curve, {curves['images']} images, {steps} steps."]
    for name, count in results["not_measurable"].items():
        lines += [f"Excluded as not measurable: {MAP_LABELS[name]} of {count} images, which is zero everywhere."]
    return lines


def build_attention_table(request: AttentionEvalRequest, results: dict[str, Any]) -> Table:
    """Return a table of means with 95% intervals, one row per metric and one column per map."""
    maps = [
        name
        for name in ("pass_one", "similarity", "pass_two", UNIFORM_MAP, UNIFORM_SIMILARITY_MAP)
        if name in results["numbers"]
    ]
    run = escape_newlines(str(request.path))
    table = Table(
        title=f"{run}, {request.split}: {results['maps']} over {results['images']} images, 95% intervals",
        title_justify="left",
        caption="\n".join(format_attention_notes(results)),
        caption_justify="left",
    )
    table.add_column("")
    for name in maps:
        table.add_column(MAP_LABELS[name], justify="right")
    labels = MEASURE_LABELS | {name: metric.label for name, metric in list_attention_metrics().items()}
    for measure, meaning in labels.items():
        cells = {name: results["numbers"][name].get(measure) for name in maps}
        between = results["numbers"].get("passes", {}).get(measure)
        if any(cells.values()):
            # The chance level has no interval.
            texts = {
                name: format_mean_interval(cell)
                if name not in (UNIFORM_MAP, UNIFORM_SIMILARITY_MAP)
                else f"{cell['mean']:.1%}"
                for name, cell in cells.items()
                if cell
            }
            table.add_row(meaning, *(texts.get(name, "") for name in maps))
        elif between is not None:
            table.add_row(meaning, *(format_mean_interval(between) if name == "pass_two" else "" for name in maps))
    for kind, better in (("deletion", "lower"), ("insertion", "higher")):
        if "curves" in results:
            area, gained = results["curves"]["area"], results["curves"]["pass_two_less_pass_one"]
            row = [format_mean_interval(area[name][kind]) if name in area else "" for name in maps]
            chance = f"random order {format_mean_interval(area[RANDOM_ORDER][kind])}"
            if RANDOM_SIMILARITY_ORDER in area:
                chance += f", random cells of similarity {format_mean_interval(area[RANDOM_SIMILARITY_ORDER][kind])}"
            table.add_row(f"{kind}, {better} is better; {chance}", *row)
            if kind in gained:
                row = [format_mean_interval(gained[kind]) if name == "pass_two" else "" for name in maps]
                table.add_row(f"{kind}, pass two minus pass one", *row)
    return table
