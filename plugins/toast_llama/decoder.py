"""The parts of a stock decoder of transformers: its layers, the attention of each, and what follows the last one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.plugin import ToastError
from toast_llama.value_rows import find_value_layer
from toast_transformers.value_layers import ValueLayer

LAYER_LISTS = ("layers", "h", "blocks", "layer")
"""Names of the list of layers."""

FINAL_NORMS = (
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "norm_f",
    "embedding_norm",
    "final_norm",
    "layer_norm",
    "output_layernorm",
    "layernorm",
)
"""Names that a norm after the last layer has. Whether it is one is tried out: layers may also end with their own."""

OTHER_MIXERS = re.compile(r"Delta|Lightning|Mamba|ShortConv|Recurrent|Rwkv|LinearAttn|SSM")
"""Classes that mix tokens in another way than with attention scores, and have no values in the sense of the paper."""

PROBE_TOKENS = 4
"""Length of the text with which a decoder is asked what it expects of its layers."""

CROSS_ATTENTIONS = ("encoder_attn", "crossattention", "cross_attn")
"""Names of attentions over the output of an encoder."""


@dataclass(frozen=True)
class SteeredAttention:
    """The attention of a decoder layer, and the layer of its values. `index` is that of the decoder layer."""

    index: int
    attention: nn.Module
    values: ValueLayer


def build_unsteerable_error(module: nn.Module, why: str) -> ToastError:
    """Return the error that names why a model cannot be steered."""
    return ToastError(
        f"{type(module).__name__} cannot be steered.",
        why,
        "Train it with --method lora or --method full, or choose a LLaMA, Mistral, Qwen, Gemma or Phi model.",
        code="backbone.cannot-steer",
    )


class Decoder:
    """The decoder of a causal language model: `body`, its `layers`, and its steered attentions.

    `returns_tuple`: its layers return a tuple that begins with the hidden state.

    A layer without an attention that makes values of its own is not steered: one that mixes tokens in another way
    (Mamba, convolutions, linear attention), or one that uses the keys and values of an earlier layer.

    Raises:
        ToastError: The layers or the norm are not where transformers puts them, no layer has attention, or the values
            of one are not a function of its input that is known.
    """

    def __init__(self, module: Any) -> None:
        self.body = module.get_decoder()
        self.width = module.config.get_text_config().hidden_size
        if module.config.is_encoder_decoder:
            raise build_unsteerable_error(module, "It has an encoder, and TOAST only supports decoder-only models.")
        found = [
            (holder, name)
            for holder in (self.body, getattr(self.body, "encoder", None), getattr(self.body, "transformer", None))
            for name in LAYER_LISTS
            if isinstance(getattr(holder, name, None), nn.ModuleList)
        ]
        if not found:
            raise build_unsteerable_error(module, "Its layers are not in one list, so they cannot be run one by one.")
        self._holder, self._name = found[0]
        if self._holder is not self.body and not module.config.is_decoder:
            raise build_unsteerable_error(
                module, "It attends to later tokens too: its configuration does not set is_decoder."
            )
        self.steered = self._find_attentions(module)
        self._end = self._find_end(module)

    @property
    def layers(self) -> Sequence[Any]:
        """All decoder layers."""
        layers: Sequence[Any] = getattr(self._holder, self._name)
        return layers

    @layers.setter
    def layers(self, layers: nn.ModuleList) -> None:
        setattr(self._holder, self._name, layers)

    def finish(self, hidden: Tensor) -> Tensor:
        """Return the features of the last layer's output `[B, N, d]`, as the decoder itself does."""
        for name in self._end:
            hidden = getattr(self.body, name)(hidden)
        return hidden

    def _find_attentions(self, module: nn.Module) -> list[SteeredAttention]:
        steered = []
        for index, layer in enumerate(self.layers):
            parts = [part for name, part in layer.named_modules() if not any(each in name for each in CROSS_ATTENTIONS)]
            mixers = [part for part in parts if not OTHER_MIXERS.search(type(part).__name__)]
            found = [(part, values) for part in mixers if (values := find_value_layer(part, self.width)) is not None]
            if len(found) > 1:
                raise build_unsteerable_error(
                    module, f"A layer has {len(found)} attentions after each other, and a signal is for one."
                )
            steered += [SteeredAttention(index, part, values) for part, values in found]
            unknown = [
                part
                for part in mixers
                if re.search(r"Attention|MLA", type(part).__name__) and not getattr(part, "is_kv_shared_layer", False)
            ]
            if unknown and not found:
                raise build_unsteerable_error(
                    module,
                    f"TOAST adds its signal to the input of the values, and the values of {type(unknown[-1]).__name__} "
                    "are not made of the tokens by a layer that is known.",
                )
        if not steered:
            raise build_unsteerable_error(module, "It has no attention, whose values TOAST would steer.")
        return steered

    def _find_end(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of the parts after the last layer, and set `returns_tuple`.

        The decoder runs on a few tokens with replacements of its layers that return their input. One that takes the
        first element of what a layer returns then loses the dimension of the batch.

        Raises:
            ToastError: The decoder does more than to run its layers one after the other and these parts.
        """
        passed, features = self._run_without_layers(returns_tuple=False)
        self.returns_tuple = any(each.ndim < passed[0].ndim for each in (*passed, features))
        if self.returns_tuple:
            passed, features = self._run_without_layers(returns_tuple=True)
        if len(passed) != len(self.layers) or any(each is not passed[0] for each in passed):
            raise build_unsteerable_error(
                module, "It does more between its layers than to run one after the other, so they cannot be run alone."
            )
        names = [(name,) for name in FINAL_NORMS if getattr(self.body, name, None) is not None]
        ends: list[tuple[str, ...]] = [*names, ()]
        if getattr(self.body, "project_out", None) is not None:  # OPT 350M
            ends = [(*end, "project_out") for end in ends]
        if features.is_meta:
            return ends[0]
        for end in ends:
            self._end = end
            with torch.no_grad():
                ours = self.finish(passed[0])
            if ours.shape == features.shape and torch.allclose(ours, features, rtol=0, atol=0, equal_nan=True):
                return end
        raise build_unsteerable_error(
            module,
            f"What follows its last layer is not a norm called {', '.join(FINAL_NORMS[:-1])} or {FINAL_NORMS[-1]}.",
        )

    @torch.no_grad()
    def _run_without_layers(self, *, returns_tuple: bool) -> tuple[list[Tensor], Tensor]:
        """Return the hidden state that each layer would receive if none changed it, and the decoder's output."""
        layers, passed = self.layers, list[Tensor]()

        class _Echo(nn.Module):
            def __init__(self, layer: nn.Module) -> None:
                super().__init__()
                self.__dict__["_layer"] = layer

            def __getattr__(self, name: str) -> Any:
                return getattr(self.__dict__["_layer"], name)

            def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
                passed.append(hidden)
                if returns_tuple:
                    return (hidden,)
                return hidden if hidden.ndim == passed[0].ndim else hidden.unsqueeze(0)

        device = next(self.body.parameters()).device
        ids = torch.arange(2 * PROBE_TOKENS, device=device).view(2, PROBE_TOKENS) + 1
        self.layers = nn.ModuleList(map(_Echo, layers))
        try:
            with torch.random.fork_rng(devices=[]):  # dropout of the embeddings
                out = self.body(ids, use_cache=False)
        finally:
            self.layers = layers
        return passed, out.last_hidden_state
