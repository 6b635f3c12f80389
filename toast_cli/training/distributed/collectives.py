"""Collectives of a distributed run: each process has its own batches, counts are merged, the first process writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError


class Mergeable(Protocol):
    """A counter to which another one can be added."""

    def merge(self, other: Any) -> None:
        """Add the counts of another counter."""


M = TypeVar("M", bound=Mergeable)
T = TypeVar("T")


def merge_across_processes(counter: M) -> M:
    """Return the merged counter of all processes; every process gets the same."""
    first, *others = gather_object([counter])
    for other in others:
        first.merge(other)
    return first


def merge_dicts_across_processes(entries: Mapping[str, str]) -> dict[str, str]:
    """Return the union of the dictionaries of all processes; every process gets the same."""
    return {name: value for one in gather_object([dict(entries)]) for name, value in sorted(one.items())}


def sum_across_processes(values: list[float], accelerator: Accelerator) -> list[float]:
    """Return each value summed over all processes."""
    if accelerator.num_processes == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    return accelerator.reduce(total.to(accelerator.device), "sum").tolist()


def share_run_folder(accelerator: Accelerator, make: Callable[[], RunFolder]) -> RunFolder:
    """Return, in every process, the run folder that the first process makes; only the first process writes to it.

    Raises:
        ToastError: the first process could not make it. Every process raises the same error.
    """
    folder = call_in_first_process(accelerator, make)
    return RunFolder(folder.path, writes=accelerator.is_main_process, made=folder.made)


def call_in_first_process(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """Return, in every process, what the function returns in the first one; the others do not call it.

    Raises:
        ToastError: the function raised it. Every process raises the same error.
    """
    result: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            result = [call()]
        except ToastError as error:
            result = [error]
    broadcast_object_list(result)
    if isinstance(result[0], ToastError):
        raise result[0]
    return result[0]


def raise_together(error: ToastError | None) -> None:
    """Raise an error that a process met in every process, naming the process, so that none waits for another.

    Raises:
        ToastError: some process met an error.
    """
    # Subclasses of errors cannot be sent to another process, but their parts can.
    parts = None if error is None else (error.what, error.reasons, error.what_to_do, error.exit_code, error.code)
    found: list[Any] = gather_object([parts])
    failed = [process for process, parts in enumerate(found) if parts is not None]
    if len(failed) == len(found) and error is not None:
        raise error
    if failed:
        what, reasons, what_to_do, exit_code, code = found[failed[0]]
        reasons = (f"In process {failed[0]} of {len(found)}; the others can open it.", *filter(None, reasons))
        raise ToastError(what, reasons, what_to_do, exit_code=exit_code, code=code)
