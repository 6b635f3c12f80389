"""The parts of a stock decoder of transformers: its layers, the attention of each, and what follows the last one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.func import functional_call

from toast_cli.plugin import ToastError
from toast_llama.value_rows import find_reason, find_value_layer
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
    "LayerNorm",
    "encoder.LayerNorm",
    "encoder.ln",
    "layernorm_embedding",
)
"""Names that a norm after the last layer has. Whether it is one is tried out: layers may also end with their own."""

OTHER_MIXERS = re.compile(r"Delta|Lightning|Mamba|ShortConv|RecurrentBlock|Rglru|Rwkv|LinearAttn|SSM")
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


def build_steering_error(module: nn.Module, why: str) -> ToastError:
    """Return the error that names why a model cannot be steered."""
    return ToastError(
        f"{type(module).__name__} cannot be steered.",
        why,
        "Train it with --method lora or --method full, or choose a LLaMA, Mistral, Qwen, Gemma or Phi model.",
        code="backbone.cannot-steer",
    )


def find_body(module: Any) -> Any:
    """Return the part of a causal language model before its output layer.

    transformers' `get_decoder` takes an output layer for it if that is called `decoder`, and the whole model if its
    parts are not called as usual.
    """
    for body in (module.get_decoder(), module.base_model, getattr(module, "model", None)):
        if isinstance(body, nn.Module) and body is not module and hasattr(body, "forward") and list(body.children()):
            return body
    return module.get_decoder()


def _run_without_data(body: nn.Module, ids: Tensor, settings: dict[str, Any]) -> Any:
    """Run a decoder on the meta device: with fake tensors, transformers asks for no value of a mask."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def fake(tensor: Any) -> Any:
            return mode.from_tensor(tensor) if isinstance(tensor, Tensor) else tensor

        weights = {name: fake(tensor) for name, tensor in (*body.named_parameters(), *body.named_buffers())}
        given = {name: fake(value) for name, value in settings.items()}
        return functional_call(body, weights, (fake(ids),), given, tie_weights=False)


def find_width(module: Any) -> int:
    """Return the number of channels of a token between layers, as in the configuration or else in the embedding."""
    width = getattr(module.config.get_text_config(), "hidden_size", None)
    return int(width or module.get_input_embeddings().weight.shape[-1])


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same values; of tensors without data, whether they have the same shape."""
    if one is other or one.is_meta or isinstance(one, FakeTensor):
        return one.shape == other.shape
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


class Decoder:
    """The decoder of a causal language model: `body`, its `layers`, and its steered attentions.

    `returns_tuple`: its layers return a tuple that begins with the hidden state, and has `extra_outputs` more.

    A layer without an attention that makes values of its own is not steered: one that mixes tokens in another way
    (Mamba, convolutions, linear attention), or one that uses the keys and values of an earlier layer.

    Raises:
        ToastError: The layers or the norm are not where transformers puts them, no layer has attention, or the values
            of one are not a function of its input that is known.
    """

    def __init__(self, module: Any) -> None:
        self.body = find_body(module)
        self.width = find_width(module)
        if module.config.is_encoder_decoder:
            raise build_steering_error(module, "It has an encoder, and TOAST only supports decoder-only models.")
        found = [
            (holder, name)
            for holder in (self.body, getattr(self.body, "encoder", None), getattr(self.body, "transformer", None))
            for name in LAYER_LISTS
            if isinstance(getattr(holder, name, None), nn.ModuleList)
        ]
        if not found:
            raise build_steering_error(module, "Its layers are not in one list, so they cannot be run one by one.")
        self._holder, self._name = found[0]
        if self._holder is not self.body and not getattr(module.config, "is_decoder", True):
            raise build_steering_error(
                module, "It attends to later tokens too: its configuration does not set is_decoder."
            )
        self.steered = self._find_attentions(module)
        self._end = self._find_end(module)

    @property
    def layers(self) -> nn.ModuleList:
        """All decoder layers."""
        layers: nn.ModuleList = getattr(self._holder, self._name)
        return layers

    @layers.setter
    def layers(self, layers: nn.ModuleList) -> None:
        setattr(self._holder, self._name, layers)

    def finish(self, hidden: Tensor) -> Tensor:
        """Return the features of the last layer's output `[B, N, d]`, as the decoder itself does."""
        for name in self._end:
            hidden = self.body.get_submodule(name)(hidden)
        return hidden

    def _find_attentions(self, module: nn.Module) -> list[SteeredAttention]:
        steered = []
        for index, layer in enumerate(self.layers):
            parts = [part for name, part in layer.named_modules() if not any(each in name for each in CROSS_ATTENTIONS)]
            mixers = [part for part in parts if not OTHER_MIXERS.search(type(part).__name__)]
            found = [(part, values) for part in mixers if (values := find_value_layer(part, self.width)) is not None]
            if len(found) > 1:
                raise build_steering_error(
                    module, f"A layer has {len(found)} attentions after each other, and a signal is for one."
                )
            steered += [SteeredAttention(index, part, values) for part, values in found]
            if reason := next((why for part in parts if (why := find_reason(part))), None):
                raise build_steering_error(module, reason)
            unknown = [
                part
                for part in mixers
                if re.search(r"(Attention|MLA)$", type(part).__name__)
                and not getattr(part, "is_kv_shared_layer", False)
            ]
            if unknown and not found:
                raise build_steering_error(
                    module,
                    f"TOAST adds its signal to the input of the values, and the values of {type(unknown[-1]).__name__} "
                    "are not made of the tokens by a layer that is known.",
                )
        if not steered:
            if any(getattr(part, "is_kv_shared_layer", False) for part in self.layers.modules()):
                raise build_steering_error(module, "Its attention uses the keys and values of another model.")
            raise build_steering_error(module, "It has no attention, whose values TOAST would steer.")
        return steered

    def _find_end(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of the parts after the last layer, and set `returns_tuple`.

        The decoder runs on a few tokens with replacements of its layers that return their input. One that takes the
        first element of what a layer returns then loses the dimension of the batch.

        Raises:
            ToastError: The decoder does more than to run its layers one after the other and these parts.
        """
        for self.returns_tuple, self.extra_outputs in ((False, 0), (True, 0), (True, 1)):
            try:
                passed, features = self._run_without_layers()
            except (RuntimeError, ValueError, AttributeError, TypeError):  # the decoder expects another form
                if self.extra_outputs:
                    raise build_steering_error(
                        module, "Its layers hand on more than hidden states, so they cannot be run one by one."
                    ) from None
                continue
            if self.returns_tuple or not (any(each.ndim < passed[0].ndim for each in passed) or features.ndim < 3):
                break
        if len(passed) != len(self.layers) or not all(_are_equal(each, passed[0]) for each in passed):
            raise build_steering_error(
                module, "It does more between its layers than to run one after the other, so they cannot be run alone."
            )
        if passed[0].ndim != 3:
            raise build_steering_error(
                module,
                "Its layers hand on several streams of every token (as AltUp does), and TOAST feeds one back.",
            )
        parts = dict(self.body.named_modules())
        names = [(name,) for name in FINAL_NORMS if name in parts]
        ends: list[tuple[str, ...]] = [*names, ()]
        if getattr(self.body, "project_out", None) is not None:  # OPT 350M
            ends = [(*end, "project_out") for end in ends]
        if features.is_meta or isinstance(features, FakeTensor):
            return ends[0]
        for end in ends:
            self._end = end
            with torch.no_grad():
                ours = self.finish(passed[0])
            if _are_equal(ours, features):
                return end
        raise build_steering_error(
            module,
            "What follows its last layer is more than a norm.",
        )

    @torch.no_grad()
    def _run_without_layers(self) -> tuple[list[Tensor], Tensor]:
        """Return the hidden state that each layer would receive if none changed it, and the decoder's output.

        Raises:
            ValueError: The decoder uses another output of a layer than the hidden state.
        """
        layers, passed, rest = self.layers, list[Tensor](), [object() for _ in range(self.extra_outputs)]
        returns_tuple = self.returns_tuple

        class _Echo(nn.Module):
            def __init__(self, layer: nn.Module) -> None:
                super().__init__()
                self.__dict__["_layer"] = layer

            def __getattr__(self, name: str) -> Any:
                return getattr(self.__dict__["_layer"], name)

            def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
                if any(each is other for each in (*arguments, *keywords.values()) for other in rest):
                    raise ValueError("A layer receives an output of the layer before.")
                passed.append(hidden)
                if returns_tuple:
                    return (hidden, *rest)
                return hidden if hidden.ndim == passed[0].ndim else hidden.unsqueeze(0)

        device = next(self.body.parameters()).device
        ids = torch.arange(2 * PROBE_TOKENS, device=device).view(2, PROBE_TOKENS) + 1
        self.layers = nn.ModuleList(map(_Echo, layers))
        settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "use_cache": False}
        try:
            with torch.random.fork_rng(devices=[]):  # dropout of the embeddings
                out = _run_without_data(self.body, ids, settings) if ids.is_meta else self.body(ids, **settings)
        finally:
            self.layers = layers
        return passed, out.last_hidden_state
