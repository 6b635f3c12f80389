"""What every data source owes the rest of the house: named classes and splits of labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from toast_cli.options import Named

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One labelled image as it lies on disk, before any transform.

    `mask` is `[H, W]` bool at the image's own size, True on the labelled object (a bounding box becomes
    a filled rectangle), None where the source has neither. `name` is what an error or a table calls the image.
    """

    image: Image
    label: int
    name: str
    mask: np.ndarray | None = None


class Split(Protocol):
    """An ordered set of samples whose labels are known without opening a single image."""

    @property
    def labels(self) -> Sequence[int]:
        """Class index of every sample."""

    @property
    def names(self) -> Sequence[str]:
        """What an error or a table calls every sample."""

    @property
    def has_masks(self) -> bool:
        """Whether every sample brings a mask."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample:
        """Read one sample; raises a ToastError that names it when it cannot be read."""


@dataclass(frozen=True)
class DataSet:
    """Splits that share one class map.

    `splits` maps `train`, `val` and `test` to their samples; a source that has no `val` or `test` leaves it out.
    `notes` are sentences a user should read before trusting a number (a split we made, a count that differs).
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Source:
    """A registered data source: its settings, how it is opened, and what it needs on disk.

    `open(options, data_dir)` returns the `DataSet`; `data_dir` is what the user gave as `--data-dir`, or None.
    """

    options: type[Named]
    open: Callable[[Any, Path | None], DataSet]
    needs: str
