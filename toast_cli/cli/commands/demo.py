"""`toast demo`: train three methods on generated scenes and show what TOAST changes."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options
from toast_cli.utils.names import quote_argument

if TYPE_CHECKING:
    from rich.table import Table

    from toast_cli.data.base import Sample
    from toast_cli.visualize.view import ImageView

DEMO_METHODS = {"linear": "linear probe", "lora": "LoRA", "toast": "TOAST"}
"""Methods in the order they run, with their names in tables. The last one becomes the newest run."""
SCENE_COUNT = 4
"""Number of test scenes to draw. The first ones are used, without selection."""
TABLE_COLUMNS = ("accuracy", "attention on the object, pass one", "pass two", "trained parameters", "seconds")
PICTURE_FILE, PAGE_FILE = "demo.png", "demo.html"


@dataclass(frozen=True)
class DemoRun:
    """A finished run of the demo."""

    name: str
    path: Path
    results: dict[str, Any]

    def cells(self) -> list[str]:
        """Return the run's cells, in the order of `TABLE_COLUMNS`."""
        test = self.results["test"]
        share = test.get("attention_share", {})
        return [
            f"{test['accuracy']:.1%}",
            f"{share['pass_one']:.1%}" if "pass_one" in share else "–",
            f"{share['pass_two']:.1%}" if "pass_two" in share else "–",
            f"{self.results['trained_parameters']:,}",
            f"{self.results['seconds']:.0f}",
        ]


def run_demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe fields to override in all three runs."),
    ] = None,
    out: Annotated[Path, typer.Option(help=f"Output folder for {PICTURE_FILE} and {PAGE_FILE}.")] = Path(),
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train and compare three methods on a toy data set.

    Trains a linear probe, LoRA and TOAST on generated scenes, then draws the attention before and after tuning.
    """
    from toast_cli.cli.output.console import err, print_json, print_line
    from toast_cli.cli.output.console import out as console
    from toast_cli.training.interrupts import raise_on_stop_signals
    from toast_cli.utils.files import make_write_error

    raise_on_stop_signals()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise make_write_error(out, error) from error
    print_line(
        "Each scene contains a small, dull beetle among three brighter objects. The class is the beetle's marking.", err
    )
    runs = [
        _tune_method(method, number, seed, device, overrides or [])
        for number, method in enumerate(DEMO_METHODS, start=1)
    ]
    samples, before, after = _compute_views(runs[0].path, runs[-1].path)
    training = runs[-1].results["samples"]["train"]
    title = "TOAST steers the attention of a frozen model to the task"
    subtitle = (
        f"Task: name the marking on the beetle (outlined in white). {training} training scenes; the first "
        f"{SCENE_COUNT} test scenes.\n"
        "Both columns use the same frozen backbone. TOAST runs it twice: features relevant to the task in pass one\n"
        "are fed back into pass two. Test accuracy: " + ", ".join(f"{run.name} {run.cells()[0]}" for run in runs) + "."
    )
    headings = ("test scene", "before: linear probe", "after: TOAST")
    picture, page = out / PICTURE_FILE, out / PAGE_FILE
    _write_outputs(samples, before, after, (title, subtitle), headings, runs, picture, page)
    if as_json:
        records = {run.name: {"run": str(run.path), **run.results} for run in runs}
        print_json({"picture": str(picture), "page": str(page), "runs": records})
        return
    console.print(_build_table(runs, training))
    print_line(f"Picture: {picture}")
    print_line(f"Page: {page}")
    print_line("Try next:")
    if shutil.which("toast") is None:
        print_line(f"  . {Path(sys.prefix) / 'bin' / 'activate'}")
    for command in _list_next_commands(runs):
        print_line(f"  {command}")


def _tune_method(method: str, number: int, seed: int | None, device: str | None, overrides: list[str]) -> DemoRun:
    """Train the demo recipe of one method."""
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.cli.output.progress import ProgressReporter
    from toast_cli.recipe.lookup import resolve_recipe
    from toast_cli.training.tune import tune_model

    print_line(f"{number} of {len(DEMO_METHODS)}: {DEMO_METHODS[method]}", err)
    resolved = resolve_recipe(recipe=f"demo/{method}", seed=seed, device=device, overrides=[*overrides, "test=true"])
    with ProgressReporter() as reporter:
        folder, results = tune_model(resolved.recipe, None, reporter)
    return DemoRun(DEMO_METHODS[method], folder.path, results)


def _compute_views(before: Path, after: Path) -> tuple[list[Sample], list[ImageView], list[ImageView]]:
    """Return the first test scenes, and the views of two runs on them."""
    from toast_cli.evaluation.attention_evaluation import build_viewer
    from toast_cli.evaluation.open_run import RunRequest, open_run, open_run_data
    from toast_cli.training.reporter import Reporter
    from toast_cli.visualize.view import compute_image_view, load_test_sample

    runs = [open_run(RunRequest(path)) for path in (before, after)]
    viewers = [build_viewer(run, run.request.path.name) for run in runs]
    data = open_run_data(runs[-1], Reporter())
    samples = [load_test_sample(data, index) for index in range(min(SCENE_COUNT, len(data.splits["test"])))]
    first, last = ([compute_image_view(viewer, sample) for sample in samples] for viewer in viewers)
    return samples, first, last


def _write_outputs(
    samples: list[Sample],
    before: list[ImageView],
    after: list[ImageView],
    titles: tuple[str, str],
    headings: tuple[str, str, str],
    runs: list[DemoRun],
    picture: Path,
    page: Path,
) -> None:
    from toast_cli.utils.files import write_text
    from toast_cli.utils.formatting import render_template, to_data_uri
    from toast_cli.visualize.before_after import draw_before_after
    from toast_cli.visualize.figure_output import save_figure

    title, subtitle = titles
    save_figure(draw_before_after(samples, before, after, title, subtitle, headings), picture)
    lines = [{"name": run.name, "cells": run.cells(), "path": str(run.path)} for run in runs]
    text = render_template(
        "visualize/templates/demo.html",
        title=title,
        classes=", ".join(before[0].viewer.classes or ()),
        training=runs[-1].results["samples"]["train"],
        test=runs[-1].results["samples"]["test"],
        area=runs[-1].results["test"].get("attention_share", {}).get("object_area"),
        columns=TABLE_COLUMNS,
        lines=lines,
        picture=to_data_uri(picture.read_bytes()),
        commands=_list_next_commands(runs),
    )
    write_text(page, text)


def _build_table(runs: list[DemoRun], training: int) -> Table:
    from rich.table import Table

    table = Table(title=f"{training} training scenes, test accuracy", title_justify="left")
    table.add_column("method")
    for name in TABLE_COLUMNS:
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(run.name, *run.cells())
    return table


def _list_next_commands(runs: list[DemoRun]) -> list[str]:
    return [
        f"toast eval --attention --run {quote_argument(runs[-1].path)}",
        f"toast visualize-attention --test-image 4 --run {quote_argument(runs[-1].path)}",
        "toast tune --method toast-lite",
    ]
