"""The tab for language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio

from toast_cli.serve.page.page_html import format_error
from toast_cli.serve.page.page_tab import PageTab, TabContent
from toast_cli.serve.page.run_loader import RunLoader, takes_images
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import quote_argument

if TYPE_CHECKING:
    from toast_cli.evaluation.open_run import OpenedRun


def build_chat_tab(loader: RunLoader) -> TabContent:
    """Build the tab within Gradio's blocks."""
    message = gradio.HTML()

    def fill(runs: dict[str, OpenedRun]) -> list[str]:
        return [
            "".join(
                format_error(
                    ToastError(
                        f"{name} is a language model, and this page shows images.",
                        what_to_do="Chat with it in the terminal: toast generate --interactive --run "
                        + quote_argument(run.request.path),
                        code="app.text-run",
                    )
                )
                for name, run in runs.items()
            )
        ]

    return TabContent([message], fill)


TAB = PageTab("Chat", lambda run: not takes_images(run), build_chat_tab)
