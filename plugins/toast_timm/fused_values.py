"""The value projections that are not the last rows of a linear layer: those of every head apart, and convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal
from toast_timm.value_projection import ValueProjection


class FusedValues(ValueProjection):
    """The values of a layer that is linear, with channels last, or a 1 by 1 convolution of maps `[B, C, H, W]`.

    Its output channels are `groups` equal parts (one, or the heads), each of which ends with its own values. A signal
    has the shape of the layer's input; a `ValueSignal` has the values as channels.
    """

    def __init__(self, attention: nn.Module, name: str, width: int, groups: int) -> None:
        super().__init__(attention, name, width)
        self.groups = groups

    @property
    def value_weight(self) -> Tensor:
        """`W_V`, `[values, C]`."""
        weight: Tensor = self.layer.weight
        return self._select(weight.flatten(1), 0).flatten(0, 1)

    def select_values(self, projected: Tensor) -> Tensor:
        """Return the view of the values in the output of the layer: its channels become `[groups, values / groups]`."""
        return self._select(projected, self._channels(projected))

    def project_signal(self, signal: Signal, bias_twice: bool = False) -> Tensor:
        """Return what a signal adds to the values."""
        if isinstance(signal, ValueSignal):
            return signal.tensor
        weight = self.value_weight
        return F.linear(signal, weight) if self.layer.weight.ndim == 2 else F.conv2d(signal, weight[..., None, None])

    @property
    def _is_plain(self) -> bool:
        return False

    def _add_to_values(self, projected: Tensor, added: Tensor) -> Tensor:
        values = self.select_values(projected)
        values += added.unflatten(self._channels(added), (self.groups, -1))
        return projected

    def _select(self, tensor: Tensor, channels: int) -> Tensor:
        parts, width = tensor.unflatten(channels, (self.groups, -1)), self.width // self.groups
        return parts.narrow(channels + 1, parts.shape[channels + 1] - width, width)

    def _channels(self, tensor: Tensor) -> int:
        return tensor.ndim - 1 if self.layer.weight.ndim == 2 else 1
