"""`toast app`: an interactive page that shows where runs look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options
from toast_cli.serve.page.page_options import DEFAULT_PAGE_PORT, PageOptions, prepare_gradio


def run_app(
    runs: options.RunsOption = None,
    weights: options.WeightsOption = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 shows the page to other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 selects a free one.")] = DEFAULT_PAGE_PORT,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of what the page saves. [default: attention/app, in the first run]")
    ] = None,
) -> None:
    """Show where models look, on an interactive page.

    Drop a photograph, move the steering, and point at something. Shows the newest run, unless --run selects others;
    several are shown side by side.
    """
    from toast_cli.cli.find_run import print_message, resolve_run_path
    from toast_cli.training.interrupts import raise_on_stop_signals
    from toast_cli.utils.errors import ToastError, UsageError

    raise_on_stop_signals()  # so that the temporary folder is removed
    paths = tuple(runs or (resolve_run_path(None),))
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"There is no run {path}.",
                what_to_do="'toast runs ls' lists the runs in this folder.",
                code="run.not-a-run-folder",
            )
    with prepare_gradio():
        try:
            from toast_cli.serve.page.page_server import run_page
        except ModuleNotFoundError as error:
            if error.name not in ("gradio", "fastapi", "uvicorn"):
                raise
            raise ToastError(
                f"The page needs the library '{error.name}'.",
                what_to_do='Run: pip install "gradio>=6"',
                code="cli.missing-package",
            ) from error
        run_page(PageOptions(paths, weights, data_dir, device, host, port, out, open_browser), print_message)
