"""Attachments to the stock layers of transformers: signals at the value projection, and records of layer inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from toast_cli.plugin import Signal, ValueSignal


@contextmanager
def steer_value_projection(v_proj: nn.Module, signal: Signal) -> Iterator[None]:
    """Inside the block, `V = W_V (X + signal)` (section 3.1, step iv); Q and K are unchanged.

    The signal `[B, N, d]` is added to the input of the projection, a `ValueSignal` to its output.
    """
    if isinstance(signal, ValueSignal):
        handle = v_proj.register_forward_hook(lambda _, __, values: values + signal.tensor.to(values.dtype))
    else:
        handle = v_proj.register_forward_pre_hook(
            lambda _, inputs: (inputs[0] + signal.to(inputs[0].dtype), *inputs[1:])
        )
    try:
        yield
    finally:
        handle.remove()


class LayerInputRecorder(nn.Module):
    """A replacement of a layer that records its inputs while the model prepares them, and returns its hidden state.

    With `returns_tuple`, the hidden state is returned as the first element of a tuple, as some layers do, which has
    `extra_outputs` more.
    """

    def __init__(self, layer: nn.Module, *, returns_tuple: bool = False, extra_outputs: int = 0) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not registered as a submodule
        self.__dict__["_returns_tuple"] = returns_tuple
        self.__dict__["_extra_outputs"] = (None,) * extra_outputs

    def __getattr__(self, name: str) -> Any:
        # A few models read the kind of mask from their layers.
        return getattr(self.__dict__["_layer"], name)

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Record the inputs, and return the hidden state."""
        self.__dict__.update(hidden=hidden, arguments=arguments, keywords=keywords)
        return (hidden, *self.__dict__["_extra_outputs"]) if self.__dict__["_returns_tuple"] else hidden
