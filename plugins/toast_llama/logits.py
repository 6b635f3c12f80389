"""A causal language model's own way from features to logits: its output layer, and whatever scales what comes out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast


class _FixedDecoder(nn.Module):
    """Takes the decoder's place while the model turns features to logits: it puts out the features it was given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, *_: Any, **__: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.features)


class LogitsHead(nn.Module):
    """Features after the final norm `[B, N, d]` to logits `[B, N, vocabulary]`, as the model itself computes them.

    Several families do more than multiply by their output layer: Cohere and Granite scale, Gemma caps. So the model's
    own forward pass is run, over a stand-in for its decoder. It holds no weights of its own.
    """

    _model: PreTrainedModel
    _holder: nn.Module

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        decoder = module.get_decoder()
        path = next(name for name, part in module.named_modules() if part is decoder)
        where, _, self._name = path.rpartition(".")
        self.__dict__["_model"] = module  # past Module's own bookkeeping: the weights are the backbone's
        self.__dict__["_holder"] = module.get_submodule(where)

    def forward(self, features: Tensor) -> Tensor:
        """The model's logits, had its decoder put out these features."""
        decoder = getattr(self._holder, self._name)
        setattr(self._holder, self._name, _FixedDecoder(features))
        try:
            return self._model(input_ids=None, inputs_embeds=features, use_cache=False).logits
        finally:
            setattr(self._holder, self._name, decoder)
