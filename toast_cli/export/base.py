"""Export formats, export requests, and progress messages of an export. Does not import torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel

SCRIPT_FILE = "infer.py"
"""Script that some formats write next to the export. It serves every such export in its folder."""

SCRIPT_BEGINNING = '"""Classify images with an '
"""The first words of that script in every version. A file of the user's own does not begin with them."""

LOGGER = logging.getLogger(__name__)
"""Logger of the export stages. `ExportFormat.write` needs no extra argument for them."""


@dataclass(frozen=True)
class ExportRequest:
    """Contents and options of an export.

    Args:
        part: `adapter`, `full`, `backbone` or `artifact`. Output of 'toast pretune' can only be exported as `artifact`.
        dtype: Data type of the stored weights: `float32`, `float16` or `bfloat16`.
        fold: Whether to merge the feedback path into one matrix per level (see `steering.folding`).
        maps: Whether to output similarity and attention maps in addition to the logits.
        normalize: Whether to normalize inside the graph, so that the input is pixels in [0, 1].
        resize: Whether to resize and crop inside the graph, so that the input is an image of any size; it has
            `normalize` too.
        quantize: Integer type of the weights and activations of a quantized graph: `int8`; None for none.
        backbone_weights: Source of the backbone weights (file, folder or keyword); None uses that of the run.
        backbone_options: Backbone section of the run's recipe.
        merge: Whether to export a model of the backbone's own library: PEFT's layers are merged into its weights.
    """

    part: str
    dtype: str = "float32"
    fold: bool = False
    maps: bool = False
    normalize: bool = False
    resize: bool = False
    quantize: str | None = None
    backbone_weights: str | None = None
    backbone_options: Mapping[str, Any] | None = None
    merge: bool = False


ALLOWED_LOSS = 0.01
"""Accuracy that a recipe may lose on validation: one point."""


@dataclass(frozen=True)
class QuantizationReport:
    """What quantization changed.

    Args:
        type: `int8`.
        scheme: The scheme that was used.
        calibration_images: Number of training images that set the ranges.
        split: Split that the accuracies are of.
        images: Number of its images.
        accuracy_float: Accuracy of the graph before.
        accuracy: Accuracy of the quantized graph.
        bytes_float: Size of the graph before.
        bytes: Size of the quantized graph.
        tried: Accuracy of every scheme that was tried.
        allowed_loss: Loss of accuracy above which the export warns.
    """

    type: str
    scheme: str
    calibration_images: int
    split: str
    images: int
    accuracy_float: float
    accuracy: float
    bytes_float: int
    bytes: int
    tried: dict[str, float]
    allowed_loss: float = ALLOWED_LOSS

    @property
    def loses_too_much(self) -> bool:
        """Return whether the loss of accuracy is above the allowed one."""
        return exceeds_allowed_loss(self.accuracy_float, self.accuracy, self.allowed_loss)


def exceeds_allowed_loss(before: float, after: float, allowed: float = ALLOWED_LOSS) -> bool:
    """Return whether an accuracy lies more than `allowed` below another one, rounding of shares aside."""
    return before - after > allowed + 1e-9


Outputs: TypeAlias = "dict[str, Tensor]"
"""Outputs to compare by name: `logits` (`features` for a backbone), and the maps if requested."""

ExportRunner: TypeAlias = "Callable[[dict[str, Tensor]], Outputs]"
"""A loaded export: maps inputs by name (`image`, or `input_ids` and `attention_mask`) to outputs by name."""


@dataclass(frozen=True)
class ExportFormat:
    """A registered export format.

    Args:
        suffix: Suffix of the file; empty for a folder.
        parts: Values of `--what` that the format supports. The first one is the default (`artifact` if pre-tuned).
        write: Writes an export to a path in an empty folder. Further files next to it are also kept. If the request has
            `fold`, the feedback path of the given model is folded already; if it has `merge`, PEFT's layers are merged.
        reopen: Loads the export in another process, as its users would, to compare it with the run. It must accept
            batches of any size.
        tolerance: Largest allowed difference by data type, in standard deviations of the output. The reference is the
            run with its weights rounded to that type. Its keys are the values of `--dtype` that the format supports.
        graph: Whether the format is a graph of operations, which is always folded and supports maps and normalization.
        loads: Name of the software that loads the export.
        merges: Returns whether a run is exported as a model of its own library (see `ExportRequest.merge`).
        quantizes: Functions that quantize a verified export in place, by value of `--quantize`.
        check: Raises a UsageError for a run that the format cannot hold, before anything is computed.
    """

    suffix: str
    parts: tuple[str, ...]
    write: Callable[[LoadedModel, ExportRequest, Path], None]
    reopen: Callable[[ExportRequest, Path], ExportRunner]
    tolerance: Mapping[str, float]
    graph: bool = False
    loads: str = "toast"
    merges: Callable[[LoadedModel], bool] = lambda loaded: False
    quantizes: Mapping[str, Callable[[LoadedModel, ExportRequest, Path], QuantizationReport]] = field(
        default_factory=dict
    )
    check: Callable[[LoadedModel, ExportRequest], None] = lambda loaded, wanted: None


def log_stage(text: str) -> None:
    """Log the start of a stage."""
    LOGGER.info(text)


@contextmanager
def forward_stages(callback: Callable[[str], object]) -> Iterator[None]:
    """Call `callback` with every stage that is logged within the block."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            callback(record.getMessage())

    handler, level = Handler(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
