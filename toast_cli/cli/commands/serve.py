"""`toast serve`: a server for tuned language models with OpenAI's HTTP API."""

from __future__ import annotations

from typing import Annotated

import typer

from toast_cli.cli import options
from toast_cli.serve.options import DEFAULT_HOST, DEFAULT_PORT, ServerOptions


def run_serve(
    runs: options.RunsOption = None,
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 accepts other machines.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 selects a free one.")] = DEFAULT_PORT,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TOAST_API_KEY", show_envvar=True, help="Key that clients must send. [default: none]"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens of an answer.")] = 4096,
    max_batch: Annotated[int, typer.Option(min=1, help="Number of answers that are generated together.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Number of answers that may wait.")] = 128,
    max_body: Annotated[int, typer.Option(min=1, help="Maximum size of a request in bytes.")] = 2**20,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds that running answers have after SIGTERM.")] = 20.0,
) -> None:
    """Serve tuned language models with OpenAI's HTTP API.

    Requests choose a run by its name as 'model'. Runs of one backbone share its weights. Serves the newest run, unless
    --run selects others.
    """
    from toast_cli.cli.find_run import print_message, resolve_run_path
    from toast_cli.utils.errors import ToastError, UsageError

    if api_key is not None and not api_key.strip():
        raise UsageError("The API key is empty.", what_to_do="Leave --api-key out.", code="cli.invalid-value")
    try:
        from toast_cli.serve.server import run_server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise ToastError(
            f"The server needs the library '{error.name}'.",
            what_to_do='Run: pip install "fastapi>=0.121" "uvicorn>=0.38"',
            code="cli.missing-package",
        ) from error
    run_server(
        ServerOptions(
            runs=tuple(runs or (resolve_run_path(None),)),
            weights=weights,
            device=device,
            host=host,
            port=port,
            api_key=api_key,
            max_tokens=max_tokens,
            max_batch=max_batch,
            max_queue=max_queue,
            max_body=max_body,
            grace=grace,
        ),
        print_message,
    )
