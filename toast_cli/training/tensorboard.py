"""Where metrics go: always `metrics.jsonl`, TensorBoard besides when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError


def check_tensorboard(tensorboard: bool) -> None:
    """Refuse a recipe that asks for what is not there, before anything is written.

    Raises:
        ToastError: TensorBoard was asked for and is not installed.
    """
    if tensorboard and find_spec("tensorboard") is None:
        raise ToastError(
            "TensorBoard is not installed.",
            what_to_do='pip install "tensorboard>=2.18", or training.tensorboard=false.',
        )


@contextmanager
def open_metrics_logger(folder: RunFolder, tensorboard: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that records one line of metrics."""
    if not (tensorboard and folder.writes):
        yield folder.append_metrics
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path / "tensorboard")) as writer:

        def record(line: dict[str, Any]) -> None:
            folder.append_metrics(line)
            for name, value in _iterate_scalars(line):
                writer.add_scalar(name, value, line["step"])

        yield record


def _iterate_scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _iterate_scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in {"step", "epoch"}:
            yield f"{prefix}{name}", value
