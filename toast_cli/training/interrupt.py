"""Stopping a run between two steps, where nothing is lost, when someone asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class InterruptHandler:
    """Whether SIGINT or SIGTERM has `asked` to stop. A second signal does not wait: it raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._defers_interrupt = True

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, the first signal only sets `asked`. In any thread but the main one nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, the first signal raises KeyboardInterrupt too: for work that changes nothing and can be redone."""
        self._defers_interrupt = False
        try:
            yield
        finally:
            self._defers_interrupt = True

    def _handle_signal(self, number: int, frame: Any) -> None:
        if self.asked or not self._defers_interrupt:
            raise KeyboardInterrupt
        self.asked = True
