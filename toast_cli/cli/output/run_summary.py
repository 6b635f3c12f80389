"""Tables that summarize a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from toast_cli import registry
from toast_cli.cli.output.console import SILENT, err, print_line
from toast_cli.utils.names import escape_newlines

MAX_LISTED_CLASSES = 30
"""Maximum number of classes to list in a table; results.json has all of them."""

METRIC_LABELS = {
    "top5_accuracy": "top-5 accuracy",
    "class_accuracy": "balanced accuracy",
    "calibration_error": "calibration error",
}
"""Labels of the metrics of classification that have a row of their own below the accuracy."""


def build_results_table(title: str, results: Mapping[str, Any]) -> Table:
    """Build the table of a run or an evaluation: size, cost, metrics and attention."""
    table = Table(title=escape_newlines(title), title_justify="left", show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right")
    if "measured" in results:
        texts, total = results["measured"]["texts"], results["measured"]["of"]
        table.add_row("measured", f"all {total:,} texts" if texts == total else f"{texts:,} of {total:,} texts")
    if "evaluation" in results:
        table.add_row("inference", results["evaluation"])
    if "test_time_flips" in results:
        table.add_row("test-time flips", "mean over mirror images")
    if "trained_parameters" in results:
        table.add_row("trained parameters", f"{results['trained_parameters']:,}")
        table.add_row("share of all parameters", f"{results['trained_parameters'] / results['total_parameters']:.2%}")
        own, plain = results["flops"], results["flops_plain"]
        table.add_row(f"FLOPs per {results['flops_per']}", f"{own:.3g} ({own / plain:.2f} × plain)")
    if results.get("selected_epoch") is not None:
        select = results.get("selected_by")
        by = f" (by {METRIC_LABELS.get(select, select.replace('_f1', ' F1').replace('_', ' '))})" if select else ""
        table.add_row("selected epoch", f"{results['selected_epoch']}{by}")
    if results.get("validation_before"):
        table.add_row("perplexity, validation, before", f"{results['validation_before']['perplexity']:.3f}")
    for split in ("train", "validation", "test", "all"):
        if results.get(split):
            add_metric_rows(table, split, results[split])
    if "exact_answers" in results:
        found = results["exact_answers"]
        low, high = (100 * end for end in found["interval"])
        shown = f"{found['share']:.1%} of {found['answers']:,} [{low:.1f}, {high:.1f}]"
        table.add_row(f"exact answers, {results['split']}", shown)
    if "selected_epoch" in results and results.get("test") is None:
        has_one = "test" in results.get("samples", {})
        unreadable = "test" in results.get("skipped", {})
        why = "not evaluated (no image could be read)" if unreadable else "not evaluated (test: false)"
        table.add_row("test", why if has_one else "no test split")
    if "seconds" in results:
        minutes, seconds = divmod(round(results["seconds"]), 60)
        table.add_row("time", f"{minutes} min {seconds:02d} s")
    if results.get("warnings"):
        table.caption = Text("\n".join(f"Warning: {escape_newlines(text)}" for text in results["warnings"]))
        table.caption_justify = "left"
    return table


def draw_range_test(run: Path) -> None:
    """Draw the range test that chose the learning rate of a run, if one did, into the run's folder."""
    from toast_cli.recipe.parse import load_recipe
    from toast_cli.storage.run_folder import LR_RANGE_FILE

    table = run / LR_RANGE_FILE
    if SILENT or not table.is_file():
        return
    from toast_cli.visualize.figure_output import save_figure
    from toast_cli.visualize.training_curves import draw_lr_range

    picture = table.with_suffix(".png")
    save_figure(draw_lr_range(table, load_recipe(run / "recipe.yaml").training.lr), picture)
    print_line(f"Range test: {picture}", err)


def build_pretuning_table(title: str, results: Mapping[str, Any]) -> Table:
    """Build the table of the reconstruction loss per level, before and after pre-tuning."""
    table = Table(title=f"Pre-tuned: {escape_newlines(title)}", title_justify="left")
    table.add_column("level")
    for name in ("before", "after"):
        table.add_column(f"reconstruction loss, {name}", justify="right")
    before, after = results["before"], results["after"]
    for level in before:
        table.add_row(level, *(f"{losses[level]:.4g}" for losses in (before, after)))
    notes = [f"Warning: {text}" for text in results.get("warnings", ())]
    if any(after[level] > before[level] for level in before):
        # Expected with a least-squares start, but it looks like a failure.
        notes.append(
            "The loss can increase: it is a small auxiliary term next to the task loss, and a least-squares start "
            "begins at its minimum."
        )
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def add_metric_rows(table: Table, split: str, metrics: Mapping[str, Any]) -> None:
    """Add the rows of one evaluated split."""
    registered = registry.load_all(registry.METRICS)
    if "mean_iou" in metrics:
        table.add_row(f"mean IoU, {split}", f"{metrics['mean_iou']:.2%} over {metrics['images']} images")
        table.add_row(f"pixel accuracy, {split}", f"{metrics['pixel_accuracy']:.2%}")
        if len(metrics["iou"]) > MAX_LISTED_CLASSES:
            table.add_row(f"  IoU of {len(metrics['iou'])} classes", "see results.json, or 'toast eval --out FILE'")
        for name, value in metrics["iou"].items() if len(metrics["iou"]) <= MAX_LISTED_CLASSES else ():
            table.add_row(f"  IoU of {escape_newlines(name)}", "not in this split" if value is None else f"{value:.2%}")
    elif "accuracy" in metrics:
        _add_classification_rows(table, split, metrics)
    elif "mean_ap" in metrics:
        _add_label_rows(table, split, metrics)
    elif "rmse" in metrics:
        _add_number_rows(table, split, metrics)
    elif "perplexity" in metrics:
        table.add_row(f"loss per token, {split}", f"{metrics['loss']:.4f} over {metrics['tokens']:,}")
        table.add_row(f"perplexity, {split}", f"{metrics['perplexity']:.3f}")
        if "end_accuracy" in metrics:
            ended = f"{metrics['end_accuracy']:.1%} of {metrics['answers']:,}"
            table.add_row(f"end of answers predicted, {split}", ended)
            table.add_row(f"loss without the end, {split}", f"{metrics['loss_without_end']:.4f}")
    else:  # a task of a plugin
        for name, value in metrics.items():
            if isinstance(value, int | float) and name not in registered:
                table.add_row(f"{name.replace('_', ' ')}, {split}", f"{value:.4g}")
    for name, metric in registered.items():
        if metric.needs == "logits" and name in metrics:
            table.add_row(f"{metric.label}, {split}", metric.format(metrics[name]))
    share = metrics.get("attention_share")
    if share:
        labels = {
            "object_area": "object area (chance)",
            "pass_one": "attention on object, pass one",
            "similarity": "similarity on object",
            "pass_two": "attention on object, pass two",
        }
        for name, label in labels.items():
            if name in share:
                table.add_row(label, f"{share[name]:.1%}")
            if f"{name}_not_measurable" in share:
                table.add_row("", f"excludes {share[f'{name}_not_measurable']} images whose map is zero")


def _add_classification_rows(table: Table, split: str, metrics: Mapping[str, Any]) -> None:
    """Add the accuracy with its 95% interval, and the other metrics; results of earlier versions lack some."""
    low, high = metrics.get("accuracy_interval", (None, None))
    interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    table.add_row(f"accuracy, {split}", f"{metrics['accuracy']:.2%} of {metrics['images']}{interval}")
    for name, label in METRIC_LABELS.items():
        if name in metrics:
            table.add_row(f"{label}, {split}", f"{metrics[name]:.2%}")
    for average in ("macro", "weighted"):
        values = [metrics.get(f"{average}_{name}") for name in ("precision", "recall", "f1")]
        if None not in values:
            row = " / ".join(f"{value:.2%}" for value in values)
            table.add_row(f"{average} precision / recall / F1, {split}", row)


def format_selected_metric(metrics: Mapping[str, Any], select: str | None) -> str:
    """Format the metric that selects the best epoch, for a progress line that does not have it; else empty."""
    if select is None or select not in metrics or select in ("accuracy", "mean_iou", "mean_ap", "loss"):
        return ""
    return f"  {METRIC_LABELS.get(select, select.replace('_f1', ' F1').replace('_', ' '))} {metrics[select]:.4f}"


def _add_label_rows(table: Table, split: str, metrics: Mapping[str, Any]) -> None:
    """Add the metrics of several labels per image."""
    table.add_row(f"mAP, {split}", f"{metrics['mean_ap']:.2%} over {metrics['images']} images")
    table.add_row(f"mAP, micro, {split}", f"{metrics['micro_ap']:.2%}")
    table.add_row(f"F1, {split}", f"{metrics['f1']:.2%}")
    table.add_row(f"F1, micro, {split}", f"{metrics['micro_f1']:.2%}")
    if len(metrics["label_f1"]) > MAX_LISTED_CLASSES:
        table.add_row(f"  of {len(metrics['label_f1'])} labels", "see results.json, or 'toast eval --out FILE'")
        return
    for name, f1 in metrics["label_f1"].items():
        shown = "not in this split" if f1 is None else f"AP {metrics['label_ap'][name]:.2%}, F1 {f1:.2%}"
        table.add_row(f"  {escape_newlines(name)}", shown)


def _add_number_rows(table: Table, split: str, metrics: Mapping[str, Any]) -> None:
    """Add the metrics of numbers."""
    names = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}
    several = len(metrics.get("number_mae", ())) > 1
    for key, label in names.items():
        over = f" over {metrics['images']} images" if key == "mae" else ""
        mean = ", mean" * several
        table.add_row(f"{label}{mean}, {split}", f"{_format_number(metrics[key])}{over}")
        for name, value in metrics.get(f"number_{key}", {}).items():
            table.add_row(f"  {label} of {escape_newlines(name)}", _format_number(value))


def _format_number(value: float | None) -> str:
    return "not defined: all numbers are equal" if value is None else f"{value:.4g}"


def format_headline(metrics: Mapping[str, Any]) -> str:
    """Format the main metric of a progress line."""
    if "mean_iou" in metrics:
        return f"mean IoU {metrics['mean_iou']:.2%}"
    if "accuracy" in metrics:
        return f"accuracy {metrics['accuracy']:.2%}"
    if "mean_ap" in metrics:
        return f"mAP {metrics['mean_ap']:.2%}"
    if "rmse" in metrics:
        return f"RMSE {metrics['rmse']:.4g}"
    if "perplexity" in metrics:
        return f"perplexity {metrics['perplexity']:.3f}"
    return f"distance {metrics['distance']:.4f}" if "distance" in metrics else ""
