"""What a model answers in Python: a class, labels, numbers, or attention maps."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """The most likely class of an image.

    Args:
        label: Name of the class.
        probability: Probability of the class.
        probabilities: Probabilities of all classes in the order of `Steered.classes`, `[classes]`.
    """

    label: str
    probability: float
    probabilities: Tensor = field(compare=False)  # tensors compare elementwise


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """The labels of an image. `label` and `probability` are those of the most likely label, given or not.

    Args:
        labels: Probability of every label from its threshold on, the most likely first; may be empty.
    """

    labels: dict[str, float]


@dataclass(frozen=True)
class NumberPrediction:
    """The numbers that a model predicts for an image, in the units of the data.

    Args:
        values: The numbers by name.
    """

    values: dict[str, float]

    @property
    def value(self) -> float:
        """The number, or the first one of several."""
        return next(iter(self.values.values()))


@dataclass(frozen=True)
class Attention:
    """Attention maps of a batch, each of shape `[B, rows, columns]` over the image.

    Args:
        first: Attention in pass one. Sums to one.
        last: Attention in pass two. Sums to one. None for a model with a single pass.
        similarity: Similarity of each patch to xi, in [0, 1]. None for a model with a single pass.
    """

    first: Tensor
    last: Tensor | None
    similarity: Tensor | None
