"""Several processes as one run: they share out the batches, add up what they counted, and one of them writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError


class Mergeable(Protocol):
    """Something that counts, and can take in what another one counted."""

    def merge(self, other: Any) -> None:
        """Count in what the other counted."""


M = TypeVar("M", bound=Mergeable)


def merge_across_processes(counter: M) -> M:
    """What all processes counted together, the same in each of them."""
    first, *others = gather_object([counter])
    for other in others:
        first.merge(other)
    return first


def merge_dicts_across_processes(found: Mapping[str, str]) -> dict[str, str]:
    """What any process found, by name, the same in each of them."""
    return {name: why for one in gather_object([dict(found)]) for name, why in sorted(one.items())}


def sum_across_processes(values: list[float], accelerator: Accelerator) -> list[float]:
    """Each value summed over all processes."""
    if accelerator.num_processes == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    return accelerator.reduce(total.to(accelerator.device), "sum").tolist()


def share_run_folder(accelerator: Accelerator, make: Callable[[], RunFolder]) -> RunFolder:
    """The run folder that the first process makes, or the error it met; the other processes read it and write nothing.

    Raises:
        ToastError: it could not be made.
    """
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [make()]
        except ToastError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], ToastError):
        raise found[0]
    return RunFolder(found[0].path, writes=accelerator.is_main_process)
