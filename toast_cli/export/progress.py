"""What an export is doing, told as it does it: through Python's logging, so that `Format.write` needs no say in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger(__name__)


def log_stage(text: str) -> None:
    """Say what begins now."""
    LOGGER.info(text)


@contextmanager
def forward_stages(say: Callable[[str], object]) -> Iterator[None]:
    """Within the block, `say` is called with every stage."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    handler, level = Handler(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
