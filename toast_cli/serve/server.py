"""The process of the server: its socket, its signals and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from toast_cli.serve.application import build_application
from toast_cli.serve.engine import Engine
from toast_cli.serve.options import ServerOptions
from toast_cli.serve.served_model import load_served_models
from toast_cli.utils.errors import UsageError

CLOSING_SECONDS = 5.0
"""Time to send the last responses after the grace period."""


def run_server(options: ServerOptions, report: Callable[[str], object]) -> None:
    """Serve the models until SIGTERM or SIGINT.

    The server answers 503 while the models are loading. On SIGTERM it accepts no new requests, finishes the running
    answers within the grace period, ends the others with an error, and returns.

    Raises:
        UsageError: The address is not available, a path is not a run, or a run is not one of a language model.
        ToastError: A run is damaged, or its backbone has no tokenizer.
        KeyboardInterrupt: The server was stopped by SIGINT.
    """
    listening = open_socket(options.host, options.port)
    port = listening.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    report(f"Loading {len(options.runs)} {'run' if len(options.runs) == 1 else 'runs'} ...")
    engine = Engine(partial(load_served_models, options, report), options.max_batch, options.max_queue, report)
    config = uvicorn.Config(
        build_application(engine, options, report),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(options.grace + CLOSING_SECONDS) + 1,
    )
    server = GracefulServer(config, engine, options.grace)

    def announce() -> None:
        if engine.error is not None:
            server.should_exit = True
        elif engine.state == "ready":
            report(f"Ready: {', '.join(engine.models)}, at http://{host}:{port}/v1")

    if not options.is_local and options.api_key is None:
        report(f"Anyone who can reach {options.host}:{port} can use this server: it has no API key.")

    def handle_signal(*_: Any) -> None:
        server.should_exit = True

    # uvicorn handles the signal while it runs, and raises it again at its end for the handler that was there before.
    before = signal.signal(signal.SIGTERM, handle_signal)
    try:
        engine.start(announce)
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()
        engine.stop(CLOSING_SECONDS)
    if engine.error is not None:
        raise engine.error
    report("Stopped.")


class GracefulServer(uvicorn.Server):
    """A server that ends running answers after a grace period, with a response that says so."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        super().__init__(config)
        self._engine, self._grace = engine, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; called in the handler of a signal."""
        self._engine.refuse_new()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the running answers within the grace period."""
        ending = asyncio.ensure_future(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(self._grace)
        await asyncio.to_thread(self._engine.stop, CLOSING_SECONDS)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        UsageError: There is no such address on this machine, or it is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host}:{port}.",
            error.strerror or str(error),
            "Choose another --port, or another --host.",
            code="serve.address-unavailable",
        ) from error
    return opened
