"""The engine: one thread that runs the models, with a queue of answers before it (continuous batching)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from functools import partial
from threading import Condition, Thread
from typing import Literal

import torch

from toast_cli.serve.batch import DecodingBatch
from toast_cli.serve.sequence import Sequence
from toast_cli.serve.served_model import ServedModel

EngineState = Literal["loading", "ready", "stopping", "failed"]

STOPPED = "The server is stopping."


class QueueFullError(Exception):
    """Too many answers are waiting."""


class EngineStoppedError(Exception):
    """The engine generates no more answers."""


class Engine:
    """Generates the answers to many requests at once.

    In every turn, the engine reads the prompts of some waiting answers and adds them to the running batch of their
    model; then every batch generates one token of each of its texts. An answer leaves its batch with its last token, or
    when its client is gone.

    Args:
        load: Loads the models, in the thread of the engine.
        max_batch: Number of answers that are generated together, over all models.
        max_queue: Number of answers that may wait.
        report: Called with a line for the log.
    """

    def __init__(
        self,
        load: Callable[[], Mapping[str, ServedModel]],
        max_batch: int,
        max_queue: int,
        report: Callable[[str], object],
    ) -> None:
        self.state: EngineState = "loading"
        self.models: Mapping[str, ServedModel] = {}
        self.error: BaseException | None = None
        self._load, self._report = load, report
        self._max_batch, self._max_queue = max_batch, max_queue
        self._waiting: deque[Sequence] = deque()
        self._batches: dict[str, DecodingBatch] = {}
        self._changed = Condition()
        self._ended = False
        self._thread = Thread(target=self._run, name="toast-engine", daemon=True)

    @property
    def running(self) -> int:
        """The number of answers that are being generated."""
        return sum(len(batch.sequences) for batch in list(self._batches.values()))

    @property
    def waiting(self) -> int:
        """The number of answers in the queue."""
        return len(self._waiting)

    def start(self, when_loaded: Callable[[], object]) -> None:
        """Load the models and begin to answer. `when_loaded` is called in the engine's thread, also after a failure."""
        self._when_loaded = when_loaded
        self._thread.start()

    def submit(self, sequences: Items[Sequence]) -> None:
        """Add answers to the queue, all or none of them.

        Raises:
            QueueFullError: They do not fit into it.
            EngineStoppedError: The engine has been stopped.
        """
        with self._changed:
            if self._ended:
                raise EngineStoppedError
            free = self._max_queue + max(0, self._max_batch - self.running) - len(self._waiting)
            if len(sequences) > free:
                raise QueueFullError
            self._waiting.extend(sequences)
            self._changed.notify()

    def cancel(self, sequences: Items[Sequence]) -> None:
        """Give up answers that nobody reads any more."""
        with self._changed:
            for sequence in sequences:
                sequence.cancelled = True
                if sequence in self._waiting:
                    self._waiting.remove(sequence)
            self._changed.notify()

    def refuse_new(self) -> None:
        """Accept no more answers; those that were accepted are finished."""
        if self.state != "failed":
            self.state = "stopping"

    def stop(self, seconds: float) -> None:
        """End all answers with an error, and wait for the thread that long."""
        with self._changed:
            self.state = "stopping"
            self._ended = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.models = self._load()
            self._batches = {name: DecodingBatch(model.chat) for name, model in self.models.items()}
            if self.state == "loading":
                self.state = "ready"
        except BaseException as error:
            self.error, self.state = error, "failed"
            return
        finally:
            self._when_loaded()
        with torch.no_grad():
            while self._wait():
                self._take_turn()
        for sequence in [*self._waiting, *(one for batch in self._batches.values() for one in batch.clear())]:
            sequence.fail(STOPPED, stopping=True)

    def _wait(self) -> bool:
        """Wait for work. Return whether there is some, and not the end."""
        with self._changed:
            while not (self._waiting or self.running or self._ended):
                self._changed.wait()
            return not self._ended

    def _take_turn(self) -> None:
        group = self._select_group()
        if group:
            batch = self._batches[group[0].model.name]
            self._attempt(partial(batch.join, group), batch, group)
        for batch in self._batches.values():
            if batch.sequences:
                self._attempt(batch.step, batch)

    def _attempt(self, action: Callable[[], None], batch: DecodingBatch, group: Items[Sequence] = ()) -> None:
        """Run the model. An error, such as too little memory, ends the answers that it concerns, and not the server."""
        try:
            action()
        except Exception as error:
            what = f"Generation failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self._report(what)
            for sequence in {*group, *(batch.clear() if batch.is_damaged else ())}:
                if not sequence.finished:
                    sequence.fail(what)

    def _select_group(self) -> list[Sequence]:
        """Take the answers from the queue whose prompts are read next: of one model, in the order of their requests."""
        with self._changed:
            waiting = list(self._waiting)
        free, group, taken = self._max_batch - self.running, list[Sequence](), list[Sequence]()
        blocked: set[str] = set()
        for sequence in waiting:
            name = sequence.model.name
            if len(group) >= free:
                break
            if name in blocked or (group and name != group[0].model.name):
                continue
            if not _prepare(sequence):
                taken.append(sequence)
            elif self._batches[name].can_join(sequence, group):
                group.append(sequence)
            elif group:
                break
            else:
                blocked.add(name)  # so that later requests do not overtake it for ever
        with self._changed:
            for sequence in (*taken, *group):
                if sequence in self._waiting:
                    self._waiting.remove(sequence)
        return [sequence for sequence in group if not sequence.cancelled]


def _prepare(sequence: Sequence) -> bool:
    """Build the plan of an answer. Return whether it can be generated."""
    if not hasattr(sequence, "plan"):
        try:
            sequence.prepare()
        except Exception as error:  # of a setting that transformers refuses
            sequence.fail(f"Invalid settings: {' '.join(str(error).split())[:200]}")
            return False
    return True
