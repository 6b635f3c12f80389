"""Signals that ask a run to stop: from the terminal, a scheduler, a closed connection or `kill`.

A scheduler announces the end of a job with SIGTERM, SIGUSR1 or another of these, and a closed terminal with SIGHUP.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REPEAT_SECONDS = 1.0
"""A second SIGINT sooner than this is taken for a copy of the first: a launcher forwards what the terminal sent too."""


def list_stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to stop. SIGHUP and SIGUSR1 are left out if they are ignored, as by `nohup`."""
    optional = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    return [
        signal.SIGINT,
        signal.SIGTERM,
        # None: something other than Python handles it.
        *(number for number in optional if signal.getsignal(number) not in (signal.SIG_IGN, None)),
    ]


def raise_on_stop_signals() -> None:
    """Let every stop signal raise KeyboardInterrupt. `InterruptHandler` defers them during training."""
    for number in list_stop_signals():
        signal.signal(number, signal.default_int_handler)


class InterruptHandler:
    """A handler of stop signals: the first one sets `asked`; a later SIGINT raises KeyboardInterrupt.

    The other signals are often sent more than once, by a scheduler and by a launcher, and do not raise.
    """

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0
        self._defers_interrupt = True

    @contextmanager
    def defer_signal(self) -> Iterator[None]:
        """Defer the first signal within the block. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._handle_signal) for number in list_stop_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def interrupt_immediately(self) -> Iterator[None]:
        """Let the first signal raise KeyboardInterrupt within the block, for work that can be repeated."""
        self._defers_interrupt = False
        try:
            yield
        finally:
            self._defers_interrupt = True

    def _handle_signal(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        impatient = self.asked and number == signal.SIGINT and now - self._asked_at >= REPEAT_SECONDS
        if impatient or not self._defers_interrupt:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._asked_at = True, now
