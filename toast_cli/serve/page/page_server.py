"""The process of the page: its socket, and what a browser may load."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

import gradio
import uvicorn
from fastapi import FastAPI

from toast_cli.serve.gate import Asgi, Message, get_host
from toast_cli.serve.options import is_loopback
from toast_cli.serve.page.image_tab import MOST_BYTES
from toast_cli.serve.page.page_html import read_asset
from toast_cli.serve.page.page_layout import build_page
from toast_cli.serve.page.page_options import PageOptions
from toast_cli.serve.page.run_loader import RunLoader
from toast_cli.serve.server import open_socket

LOAD_AFTER = 3.0
"""Seconds after which the runs are loaded although nobody has opened the page."""
CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
"""Gradio's scripts are inline and evaluate templates. Nothing comes from, or goes to, another host."""

CRUST = "#8d5524"
"""The colour of buttons and sliders, dark enough for white text."""
WORDS = {"upload_text.drop_file": "Drop a photograph here", "upload_text.click_to_upload": "click to choose one"}
"""Words of Gradio's own that the page replaces."""


def run_page(options: PageOptions, report: Callable[[str], object]) -> None:
    """Serve the page until it is interrupted; within `prepare_gradio`.

    Raises:
        UsageError: The address is not available.
        KeyboardInterrupt: The page was stopped by SIGINT.
    """
    listening = open_socket(options.host, options.port)
    try:
        loader = RunLoader(options, report)
        app = PageGate(build_page_application(loader), options)
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=1)
        PageServer(config, lambda: announce_page(options, listening, loader, report)).run(sockets=[listening])
    finally:
        listening.close()


def announce_page(
    options: PageOptions, listening: socket.socket, loader: RunLoader, report: Callable[[str], object]
) -> None:
    """Print the address of the page, and load the runs soon."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listening.getsockname()[1]}/"
    if not options.is_local:
        report(f"Anyone who can reach {options.host} can use this page and the runs that it shows.")
    report(f"Open {address} in a browser. Stop with Ctrl+C.")
    timer = threading.Timer(LOAD_AFTER, loader.start)
    timer.daemon = True
    timer.start()
    if options.open_browser:
        webbrowser.open(address)


def build_page_application(loader: RunLoader) -> Any:
    """Return the application with the page at its root."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gradio.themes.Soft(
        primary_hue="amber",
        neutral_hue="stone",
        font=[gradio.themes.Font(name) for name in fonts],
        font_mono=[gradio.themes.Font("ui-monospace"), gradio.themes.Font("monospace")],
    ).set(
        block_title_background_fill="transparent",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_title_text_weight="600",
        button_primary_background_fill=CRUST,
        button_primary_background_fill_hover="#74451d",
        button_primary_text_color="white",
        slider_color=CRUST,
    )
    return gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build_page(loader).queue(api_open=False),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=2 * MOST_BYTES,  # the tab's own message tells of files above MOST_BYTES
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=theme,
        i18n=gradio.I18n(en=WORDS, **{"en-US": WORDS}),
        css=read_asset("page.css"),
    )


class PageServer(uvicorn.Server):
    """A server that calls a function as soon as it accepts connections."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], object]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self.started:
            self._announce()


class PageGate:
    """An ASGI application that refuses other names and other pages, and keeps browsers from asking other hosts.

    A page on loopback answers only to names of this machine, so that a web page cannot reach it through a name of its
    own that leads here. A request that a browser sends for a page of another origin is refused, also one that needs no
    permission, such as an upload.
    """

    def __init__(self, app: Asgi, options: PageOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Message, receive: Asgi, send: Asgi) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        named = headers.get(b"host", b"localhost").decode("latin-1")
        host = get_host(named)
        if self._options.is_local and not is_loopback(host):
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page answers only to names of its own machine.\n"})
            return

        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != named:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page answers only to itself.\n"})
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = [
                    (b"content-security-policy", CONTENT_POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message["headers"], *policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)
