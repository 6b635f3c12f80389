"""The page as Gradio's blocks: a title, progress while the runs are loading, and the tabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio

from toast_cli.serve.page import chat, image_tab
from toast_cli.serve.page.page_html import format_error, format_progress
from toast_cli.serve.page.page_tab import PageTab, TabContent, show_errors
from toast_cli.serve.page.run_loader import RunLoader
from toast_cli.utils.errors import ToastError

TABS: tuple[PageTab, ...] = (image_tab.TAB, chat.TAB)
"""The tabs of the page, in order. A new one is a module and an entry here."""
TITLE = "Where does the model look?"


def build_page(loader: RunLoader) -> gradio.Blocks:
    """Build the page. It shows progress when it is opened, and fills its tabs when the runs are loaded."""
    names = ", ".join(loader.options.names)
    contents: list[tuple[PageTab, Any, TabContent]] = []
    with gradio.Blocks(title="toast", analytics_enabled=False) as page:
        gradio.HTML(f"<h1>{TITLE}</h1><p>{escape(names)}</p>", elem_id="title")
        status = gradio.HTML(format_progress("Waiting", 0), elem_id="status")
        for tab in TABS:
            with gradio.Column(visible=tab.while_loading) as column:
                contents.append((tab, column, tab.build(loader)))
        outputs = [part for _, column, content in contents for part in (column, *content.outputs)]

        def fill_tabs() -> list[Any]:
            loaded, updates = loader.wait(), list[Any]()
            errors = [*loaded.errors]
            for tab, _, content in contents:
                accepted = {name: run for name, run in loaded.runs.items() if tab.accepts(run)}
                filled: Sequence[Any] = [gradio.skip()] * len(content.outputs)
                try:
                    filled = content.fill(accepted) if accepted else filled
                except ToastError as error:  # the other tabs can be used
                    errors.append(error)
                    accepted = {}
                updates += [gradio.update(visible=bool(accepted)), *filled]
            return [*updates, "".join(map(format_error, errors))]

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def follow() -> Iterator[str]:
            yield from follow_loading(loader)

        page.load(follow, None, [status], **quiet).then(
            show_errors(len(outputs) + 1)(fill_tabs), None, [*outputs, status], **quiet
        )
    return page


def follow_loading(loader: RunLoader) -> Iterator[str]:
    """Start to load the runs, and yield the progress until they are loaded."""
    loader.start()
    shown = ""
    while not loader.finished:
        progress = format_progress(loader.stage, loader.done)
        if progress != shown:
            shown = progress
            yield progress
        with loader.changed:
            loader.changed.wait(timeout=0.5)
    try:
        loader.wait()
    except ToastError as error:
        yield format_error(error)
        return
    yield format_progress("Warming up", 0.97)
