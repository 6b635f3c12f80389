"""What an export format is, what can be wanted of it, and how it says what it is doing. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel

LOGGER = logging.getLogger(__name__)
"""Takes what an export is doing, so that `ExportFormat.write` needs no argument for it."""


@dataclass(frozen=True)
class ExportRequest:
    """What an export is to hold.

    Args:
        part: `adapter`, `full`, `backbone`, or `artifact`, the only one of what 'toast pretune' wrote.
        dtype: what weights are stored in: `float32`, `float16` or `bfloat16`.
        fold: whether everything between the passes becomes one matrix per level (see `steering.folding`).
        maps: whether similarity and attention maps come out beside the logits.
        normalize: whether the file takes pixels in 0..1 and normalises them itself.
        backbone_weights: the file, folder or word that the backbone takes its weights from; None: as the run says.
        backbone_options: the run's backbone, as its recipe has it.
    """

    part: str
    dtype: str = "float32"
    fold: bool = False
    maps: bool = False
    normalize: bool = False
    backbone_weights: str | None = None
    backbone_options: Mapping[str, Any] | None = None


Outputs: TypeAlias = "dict[str, Tensor]"
"""What is compared, by name: `logits` (`features` of a backbone alone) and, with maps, those."""

ExportRunner: TypeAlias = "Callable[[dict[str, Tensor]], Outputs]"
"""An export opened again: from inputs by name (`image`; `input_ids` and `attention_mask`) to outputs."""


@dataclass(frozen=True)
class ExportFormat:
    """A registered export format.

    Args:
        suffix: of the file it writes; empty for a folder.
        parts: what it can write (`--what`), the first of them by default (`artifact` of a pre-tuned one).
        write: puts an export at a path, which lies in an empty folder; a second file beside it is kept, too.
        reopen: opens it in another process, by whatever means its users have, to be compared with the run.
        tolerance: the largest difference allowed from the run stored in that type, in standard deviations of the
            output, by storage type.
        graph: whether it is a graph of operations: folded always, with maps and normalisation if wanted.
        loads: what loads it, in words.
    """

    suffix: str
    parts: tuple[str, ...]
    write: Callable[[LoadedModel, ExportRequest, Path], None]
    reopen: Callable[[ExportRequest, Path], ExportRunner]
    tolerance: Mapping[str, float]
    graph: bool = False
    loads: str = "toast"


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
