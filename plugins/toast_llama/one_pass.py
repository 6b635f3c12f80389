"""A causal language model that cannot be steered, as a backbone for methods with one pass, such as LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from toast_cli.plugin import Readout, Signal, State, ToastError, Trace
from toast_llama.kv_cache import CACHE_ARGUMENT
from toast_llama.language_model import LanguageModelBackbone


class OnePassBackbone(LanguageModelBackbone):
    """A language model without levels: its own forward pass is run as a whole, up to the output layer.

    Args:
        module: The stock model.
        steering_error: Why it cannot be steered, which methods with two passes raise.
        tokenizer: Its tokenizer, if any.
        tokenizer_error: Why there is no tokenizer.
    """

    levels = ()

    def __init__(
        self,
        module: Any,
        steering_error: ToastError,
        tokenizer: Any = None,
        tokenizer_error: ToastError | None = None,
    ) -> None:
        super().__init__(module, tokenizer, tokenizer_error)
        self.steering_error = steering_error

    def enter(self, inputs: Any) -> State:
        """Return the output of the whole decoder `[B, N, d]`."""
        caches, mask = inputs.get("caches"), inputs.get("attention_mask")
        arguments = {name: value for name, value in inputs.items() if name not in ("real", "caches")}
        if caches is not None:
            arguments[CACHE_ARGUMENT] = caches.first
        hidden = self.body(**arguments, use_cache=False).last_hidden_state
        real = inputs.get("real") if mask is None else mask[:, -inputs["input_ids"].shape[1] :].bool()
        return State(hidden, real)

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Raise the error that names why there is no level."""
        assert self.steering_error is not None
        raise self.steering_error

    def leave(self, state: State) -> Readout:
        """Return the features of every token."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden, real=state.context)

    def generator(self, pooled: Callable[[Any], Tensor]) -> Any:
        """Return the model itself: its own `generate` keeps whatever cache it has."""
        return self.module.eval()
