"""What a task is: a head on the pooled features, a loss, and the numbers reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone, Readout


class Meter(ABC):
    """Numbers over a split, gathered batch by batch so that no split has to fit into memory.

    All that a meter has counted is in `sums`, numbers or tensors of whole numbers by name: what is added up over
    processes, and kept for a run that is interrupted.
    """

    def __init__(self, **sums: Any) -> None:
        self.sums = sums

    @abstractmethod
    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Count one batch in."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return the numbers so far, the `loss` among them."""

    def merge(self, other: Meter) -> None:
        """Count in what another meter of the same kind counted, in another process."""
        self.sums = {name: value + other.sums[name] for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """Return the sums as plain values that JSON can hold."""
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in self.sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the sums of `state`."""
        for name, value in self.sums.items():
            self.sums[name] = value.new_tensor(state[name]) if hasattr(value, "new_tensor") else state[name]


class Objective(ABC):
    """What is learned: `head` turns features into outputs, the rest says how good they are.

    An objective that `reads_levels` has `features` of its own, made of every level's output; of others, the pooled
    features are all that is computed. The outputs of a `dense` one have a place for every pixel. An `uneven` one may
    run the model more often for one batch than for another in `predict`. Where `class_scores` is False, the outputs
    are no scores of the classes: such a task is for training a backbone, and gives no predictions.
    """

    head: nn.Module
    reads_levels: bool = False
    dense: bool = False
    has_variable_cost: bool = False
    class_scores: bool = True

    @abstractmethod
    def inputs(self, batch: Mapping[str, Any]) -> Any:
        """The part of a batch that the backbone looks at."""

    def features(self, backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Any) -> Any:
        """What the head takes of the pass that counts: the pooled features.

        Args:
            backbone: what was run.
            readout: what the pass put out.
            levels: every level's output, if the objective `reads_levels`.
            inputs: what the backbone looked at.
        """
        return readout.pooled

    def predict(self, model: Callable[[Any], Tensor], batch: Mapping[str, Any]) -> Tensor:
        """The outputs for a batch that nothing is learned from; `model` goes from inputs to outputs."""
        return model(self.inputs(batch))

    @abstractmethod
    def count(self, batch: Mapping[str, Any]) -> int:
        """How many things the batch's loss is a sum over; what a step's gradient is divided by."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The training loss, summed over the batch."""

    def apply_mixup(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch that training uses: its samples mixed with each other, where the task does that."""
        return batch

    def predict_classes(self, outputs: Tensor) -> Tensor | None:
        """Return the class predicted for each sample `[B]`; None for a task that predicts no single class."""
        return None

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter."""

    @abstractmethod
    def score(self, metrics: Mapping[str, Any]) -> float:
        """What decides which epoch is kept, from its validation metrics: higher is better."""


@dataclass(frozen=True)
class Task:
    """A registered task: its settings, and `build(options, backbone, classes)` for its `Objective`."""

    options: type[NamedOptions]
    build: Callable[[Any, Backbone, tuple[str, ...]], Objective]
