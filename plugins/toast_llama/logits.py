"""The computation of logits by a causal language model: its output layer and any scaling or capping."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from toast_llama.decoder import find_body


class _FixedOutput(MoeModelOutputWithPast):
    """The output of a decoder that only has features: whatever else a model asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _FixedDecoder(nn.Module):
    """A replacement of the decoder that returns given features. Other attributes are those of the decoder."""

    def __init__(self, decoder: nn.Module, features: Tensor) -> None:
        super().__init__()
        self.__dict__["_decoder"] = decoder  # not registered as a submodule
        self.features = features

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_decoder"], name)

    def forward(self, *_: Any, **__: Any) -> _FixedOutput:
        return _FixedOutput(last_hidden_state=self.features)


class LogitsHead(nn.Module):
    """Map features after the final norm `[B, N, d]` to logits `[B, N, vocabulary]`, as the model itself does.

    Several families do more than apply their output layer: Cohere and Granite scale, Gemma caps. Therefore the model's
    own forward pass is run, with a replacement of its decoder. This module has no weights of its own.
    """

    _model: PreTrainedModel
    _holder: nn.Module

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        decoder = find_body(module)
        path = next(name for name, part in module.named_modules() if part is decoder)
        where, _, self._name = path.rpartition(".")
        self.__dict__["_model"] = module  # not registered as a submodule: the weights belong to the backbone
        self.__dict__["_holder"] = module.get_submodule(where)

    def forward(self, features: Tensor) -> Tensor:
        """Return the model's logits for these outputs of its decoder."""
        decoder = getattr(self._holder, self._name)
        setattr(self._holder, self._name, _FixedDecoder(decoder, features))
        try:
            return self._model(input_ids=None, inputs_embeds=features, use_cache=False).logits
        finally:
            setattr(self._holder, self._name, decoder)
