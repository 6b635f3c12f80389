"""What a tab of the page is, and how its handlers show errors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio

from toast_cli.serve.page.page_html import format_error
from toast_cli.serve.page.run_loader import RunLoader, make_internal_error
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.evaluation.open_run import OpenedRun

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TabContent:
    """The components of a tab that change when the runs are loaded.

    `fill` returns their new values, given the runs that the tab accepts, and may take seconds.
    """

    outputs: Sequence[Any] = ()
    fill: Callable[[dict[str, OpenedRun]], Sequence[Any]] = field(default=lambda runs: ())


@dataclass(frozen=True)
class PageTab:
    """A tab of the page: a title, the runs that it is for, and a function that builds it within Gradio's blocks.

    A tab is shown if it accepts a run; `while_loading` is that of the tab that is shown before that is known.
    """

    title: str
    accepts: Callable[[OpenedRun], bool]
    build: Callable[[RunLoader], TabContent]
    while_loading: bool = False


def show_errors(
    outputs: int, cleared: int = 0
) -> Callable[[Callable[..., Sequence[Any]]], Callable[..., Sequence[Any]]]:
    """Return a decorator for a handler of Gradio's: its last output is a message, which shows errors of the handler.

    Args:
        outputs: The number of outputs with the message; after an error, the others stay as they are.
        cleared: The number of outputs, first ones first, that are emptied instead.
    """

    def decorate(handle: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        @functools.wraps(handle)  # Gradio reads the annotations
        def handle_safely(*values: Any) -> Sequence[Any]:
            try:
                return handle(*values)
            except ToastError as error:
                shown = error
            except Exception as error:
                LOGGER.exception("The page could not answer.")
                shown = make_internal_error(error)
            return [*[None] * cleared, *[gradio.skip()] * (outputs - 1 - cleared), format_error(shown)]

        return handle_safely

    return decorate
