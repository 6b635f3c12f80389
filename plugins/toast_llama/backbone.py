"""A stock causal language model of transformers as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from toast_cli.plugin import (
    AuthorsCheckpoint,
    Backbone,
    Level,
    Readout,
    Signal,
    State,
    TextLimits,
    ToastError,
    Trace,
    describe_quantization,
)
from toast_llama.generation import TwoPassLanguageModel
from toast_llama.kv_cache import CACHE_ARGUMENT, TwoPassCache
from toast_llama.logits import LogitsHead
from toast_transformers.attention_maps import record_layer_attention
from toast_transformers.layers import LayerInputRecorder, steer_value_projection

EXAMPLE_TOKENS = 16

FINAL_NORMS = ("norm", "final_layernorm")
"""Names of the norm after the last layer."""


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of every level except hidden states, and the mask of real tokens (`[B, N]`; None: all are real)."""

    arguments: tuple[dict[str, Any], ...]
    real: Tensor | None


def get_window(config: Any) -> int | None:
    """Return the number of positions that a model reads, as scaled by its rotary embedding; None if it has no limit.

    The configurations of LLaMA 3 and of `longrope` give the scaled number. Others give the one before scaling.
    """
    window = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if window is None or kind not in ("linear", "dynamic", "yarn") or not factor:
        return window
    return max(window, int(factor * rope.get("original_max_position_embeddings", window)))


def _list_notes(module: PreTrainedModel, tokenizer: Any, vocabulary: int) -> Iterator[str]:
    if (quantization := describe_quantization(module)) is not None:
        yield quantization
    if module.config.get_text_config()._attn_implementation == "eager":
        yield f"{type(module).__name__} has no fused attention, so it needs more time and memory."
    if tokenizer is not None and len(tokenizer) > vocabulary:
        yield (
            f"The tokenizer has {len(tokenizer):,} tokens, and the embedding of the model has {vocabulary:,}. "
            "Texts with one of the others are refused."
        )


def _build_unsteerable_error(module: nn.Module, why: str) -> ToastError:
    return ToastError(
        f"{type(module).__name__} cannot be steered.",
        why,
        "Choose a LLaMA, Mistral, Qwen or Gemma model.",
        code="backbone.cannot-steer",
    )


class LlamaBackbone(Backbone):
    """Any decoder of transformers whose attention layers have a `v_proj`: LLaMA, Mistral, Qwen, Gemma, Phi.

    Inputs are a mapping as for the model itself: `input_ids` `[B, N]` and, if needed, `attention_mask`, `position_ids`
    and `caches` (a `TwoPassCache`). `z` is the last layer's output before the final norm, including padding. The pooled
    features are all tokens after the final norm. `real` `[B, N]` marks the tokens that are not padding if there is no
    mask.

    Masks, positions and rotary tables are the model's own: its forward pass runs once with replacements of its layers,
    which record the inputs of each layer. Logits are also the model's own, see `LogitsHead`.

    Raises:
        ToastError: The layers are not where transformers puts them, a layer has no `v_proj` on all of its input, or
            there is no final norm.
    """

    has_attention = True
    adapter_targets = ("q_proj", "v_proj")
    preprocessing = None
    module: PreTrainedModel

    def __init__(
        self, module: PreTrainedModel, tokenizer: Any = None, tokenizer_error: ToastError | None = None
    ) -> None:
        self.module = module
        self.tokenizer, self.tokenizer_error = tokenizer, tokenizer_error
        self.body = module.get_decoder()
        width = module.config.get_text_config().hidden_size
        if module.config.is_encoder_decoder:
            raise _build_unsteerable_error(module, "It has an encoder, and TOAST only supports decoder-only models.")
        layers = list(getattr(self.body, "layers", ()))
        values = [getattr(getattr(layer, "self_attn", None), "v_proj", None) for layer in layers]
        if not values or any(getattr(v_proj, "in_features", None) != width for v_proj in values):
            raise _build_unsteerable_error(
                module,
                "TOAST adds its signal to the values, and not every layer of this model has a v_proj that takes the "
                "input of its attention.",
            )
        norm = next((name for name in FINAL_NORMS if getattr(self.body, name, None) is not None), None)
        if norm is None:
            raise _build_unsteerable_error(module, f"Its final norm is not called {' or '.join(FINAL_NORMS)}.")
        self._norm = norm
        self.width = self.head_width = width
        self.levels = [Level(self.width, self.width)] * len(layers)
        self.level_modules = layers
        heads: tuple[Any, ...] = (module.get_input_embeddings(), module.get_output_embeddings())
        vocabulary = min(len(part.weight) for part in heads if part is not None)
        self.text_limits = TextLimits(get_window(module.config.get_text_config()), vocabulary)
        self.notes = tuple(_list_notes(module, tokenizer, vocabulary))

    def enter(self, inputs: Any) -> State:
        """Return the embeddings `[B, N, d]` of token ids."""
        body, layers = self.body, self.body.layers
        caches: TwoPassCache | None = inputs.get("caches")
        recorders = [LayerInputRecorder(layer) for layer in layers]
        body.layers = nn.ModuleList(recorders)
        try:
            arguments = {name: value for name, value in inputs.items() if name not in ("real", "caches")}
            body(**arguments, **{CACHE_ARGUMENT: None if caches is None else caches.first}, use_cache=False)
        finally:
            body.layers = layers
        embedded = recorders[0].hidden
        layer_arguments = tuple(recorder.keywords for recorder in recorders)
        mask = inputs.get("attention_mask")
        real = inputs.get("real") if mask is None else mask[:, -inputs["input_ids"].shape[1] :].bool()
        return State(embedded, LayerInputs(layer_arguments, real))

    def again(self, state: State, inputs: Any) -> State:
        """Return the state with the cache of the second pass, if there is one."""
        caches: TwoPassCache | None = inputs.get("caches")
        if caches is None:
            return state
        arguments = tuple({**each, CACHE_ARGUMENT: caches.second} for each in state.context.arguments)
        return State(state.hidden, replace(state.context, arguments=arguments))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock decoder layer. The signal `[B, N, d]` is added to the input of the value projection."""
        layer = self.body.layers[index]
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_projection(layer.self_attn.v_proj, signal))
            if trace is not None and index in trace.attention_of:
                attached.enter_context(record_layer_attention(layer.self_attn, trace, index))
            out = layer(state.hidden, **state.context.arguments[index])
        return State(out[0] if isinstance(out, tuple) else out, state.context)

    def authors(self, tensors: Mapping[str, Tensor]) -> AuthorsCheckpoint:
        """Sort the tensors; those that the authors added are in the decoder, under `model.`."""
        added = ("prompt", "top_down_transform", "decoders.")
        checkpoint = super().authors(
            {
                bare if (bare := name.removeprefix("model.")).startswith(added) else name: tensor
                for name, tensor in tensors.items()
            }
        )
        for name in [name for name in checkpoint.network if name.endswith("rotary_emb.inv_freq")]:
            del checkpoint.network[name]
            checkpoint.left_out[name] = "computed from the configuration"
        return checkpoint

    def value_weight(self, index: int) -> Tensor:
        """Return `W_V`, `[values, d]`, dequantized."""
        weight = self.body.layers[index].self_attn.v_proj.weight
        assert isinstance(weight, Tensor)
        return weight

    def value_width(self, index: int) -> int:
        """Return the number of values."""
        width: int = self.body.layers[index].self_attn.v_proj.out_features
        return width

    def leave(self, state: State) -> Readout:
        """Return the last layer's output `[B, N, d]`, before and after the final norm."""
        z = state.hidden
        return Readout(z=z, compared=z, pooled=getattr(self.body, self._norm)(z), real=state.context.real)

    def stock(self, inputs: Any) -> Tensor:
        """Run transformers' own forward pass up to the final norm `[B, N, d]`."""
        return self.body(**inputs, use_cache=False).last_hidden_state

    def example(self, batch: int) -> dict[str, Tensor]:
        """Return random token ids `[batch, 16]`, all real."""
        ids = torch.randint(self.module.config.get_text_config().vocab_size, (batch, EXAMPLE_TOKENS))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def grid(self, inputs: Any) -> tuple[int, int]:
        """Return one row of tokens."""
        return 1, inputs["input_ids"].shape[1]

    def output(self) -> nn.Module:
        """Return the module from pooled features to the model's own logits."""
        return LogitsHead(self.module)

    def generator(self, pooled: Callable[[Any], Tensor]) -> TwoPassLanguageModel:
        """Return a model with transformers' `generate` for two passes."""
        return TwoPassLanguageModel(self.module, pooled).eval()

    def files(self) -> dict[str, str]:
        """Return configuration, generation settings and tokenizer, if any, as transformers writes them."""
        with TemporaryDirectory(prefix="toast-") as folder:
            for part in (self.module.config, self.module.generation_config, self.tokenizer):
                if part is not None:
                    part.save_pretrained(folder)
            return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}

    def query_tokens(self) -> slice:
        """Return the last token, which attends to all others."""
        return slice(-1, None)
