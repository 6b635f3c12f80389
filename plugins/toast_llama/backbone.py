"""A stock causal language model of transformers as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from toast_cli.plugin import AuthorsCheckpoint, Level, Readout, Signal, State, ToastError, Trace
from toast_llama.decoder import Decoder
from toast_llama.generation import TwoPassLanguageModel
from toast_llama.kv_cache import CACHE_ARGUMENT, TwoPassCache
from toast_llama.language_model import LanguageModelBackbone
from toast_transformers.attention_maps import has_attention_map, record_layer_attention
from toast_transformers.layers import LayerInputRecorder

AT_THE_LATENT = "the tokens from which the values of every level are computed; queries and keys do not change"


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of the decoder layers except hidden states, the cache, and the real tokens.

    `arguments` and `keywords` have an entry for every layer from the first steered one on. `real` is a mask `[B, N]`;
    None: all tokens are real.
    """

    arguments: tuple[tuple[Any, ...], ...]
    keywords: tuple[dict[str, Any], ...]
    cache: Any
    real: Tensor | None


class LlamaBackbone(LanguageModelBackbone):
    """Any decoder of transformers that has attention: LLaMA, Mistral, Qwen, Gemma, Phi, GPT-2, DeepSeek, hybrids.

    Inputs are those of `LanguageModelBackbone`. `z` is the last layer's output before the final norm, including
    padding. The pooled features are all tokens after the final norm.

    A level is a layer with attention, and the layers after it that have none. Layers before the first attention belong
    to `enter`: no signal enters there, so both passes share them.

    Masks, positions and rotary tables are the model's own: its forward pass runs once with replacements of its layers,
    which record the inputs of each layer. Logits are also the model's own, see `LogitsHead`.

    Raises:
        ToastError: The model cannot be steered, see `Decoder`.
    """

    def __init__(
        self, module: PreTrainedModel, tokenizer: Any = None, tokenizer_error: ToastError | None = None
    ) -> None:
        self.decoder = Decoder(module)
        super().__init__(module, tokenizer, tokenizer_error)
        layers, begins = self.decoder.layers, [steered.index for steered in self.decoder.steered]
        self._spans = [range(*pair) for pair in zip(begins, [*begins[1:], len(layers)], strict=True)]
        self.levels = [Level(self.width, self.width)] * len(begins)
        self.level_modules = list(layers)[begins[0] :]
        self.has_attention = all(has_attention_map(steered.attention) for steered in self.decoder.steered)
        if any(steered.values.weight is None for steered in self.decoder.steered):
            self.signal_entry = AT_THE_LATENT

    def count_layers(self, levels: int) -> int:
        """Return the number of decoder layers up to the end of the first levels."""
        return self._spans[levels - 1].stop

    def enter(self, inputs: Any) -> State:
        """Return the input of the first steered layer `[B, N, d]`: the embeddings, if that is the first layer."""
        layers, first = self.decoder.layers, self._spans[0].start
        caches: TwoPassCache | None = inputs.get("caches")
        cache = None if caches is None else caches.first
        is_tuple, extra = self.decoder.returns_tuple, self.decoder.extra_outputs
        recorders = [
            LayerInputRecorder(layer, returns_tuple=is_tuple, extra_outputs=extra) for layer in list(layers)[first:]
        ]
        self.decoder.layers = nn.ModuleList([*list(layers)[:first], *recorders])
        try:
            given = {name: value for name, value in inputs.items() if name not in ("real", "caches")}
            self.body(**given, **{CACHE_ARGUMENT: cache}, use_cache=False)
        finally:
            self.decoder.layers = layers
        mask = inputs.get("attention_mask")
        real = inputs.get("real") if mask is None else mask[:, -inputs["input_ids"].shape[1] :].bool()
        arguments, keywords = (tuple(each.arguments for each in recorders), tuple(each.keywords for each in recorders))
        return State(recorders[0].hidden, LayerInputs(arguments, keywords, cache, real))

    def again(self, state: State, inputs: Any) -> State:
        """Return the state with the cache of the second pass, and with what layers share in a pass of their own."""
        caches: TwoPassCache | None = inputs.get("caches")
        context: LayerInputs = state.context
        copies: dict[int, Any] = {} if caches is None else {id(caches.first): caches.second}

        def replace_shared(value: Any) -> Any:
            if isinstance(value, MutableMapping):  # keys and values that layers leave for later ones
                return copies.setdefault(id(value), copy(value))
            return copies.get(id(value), value)

        return State(
            state.hidden,
            replace(
                context,
                arguments=tuple(tuple(map(replace_shared, each)) for each in context.arguments),
                keywords=tuple(
                    {name: replace_shared(value) for name, value in each.items()} for each in context.keywords
                ),
                cache=None if caches is None else caches.second,
            ),
        )

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run the stock decoder layers of a level. The signal `[B, N, d]` is added to the input of the values."""
        steered, context, hidden = self.decoder.steered[index], state.context, state.hidden
        for position in self._spans[index]:
            layer, place = self.decoder.layers[position], position - self._spans[0].start
            with ExitStack() as attached:
                if signal is not None and position == steered.index:
                    attached.enter_context(steered.values.steer(signal, context.cache))
                if (
                    trace is not None
                    and self.has_attention
                    and index in trace.attention_of
                    and position == steered.index
                ):
                    attached.enter_context(record_layer_attention(steered.attention, trace, index))
                out = layer(hidden, *context.arguments[place], **context.keywords[place])
            hidden = out if isinstance(out, Tensor) else out[0]
        return State(hidden, context)

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

    def value_weight(self, index: int) -> Tensor | None:
        """Return `W_V`, `[values, d]`; None for latent attention, whose values are no linear function of the tokens."""
        return self.decoder.steered[index].values.weight

    def value_width(self, index: int) -> int | None:
        """Return the number of values; None for latent attention."""
        return self.decoder.steered[index].values.count_values()

    def leave(self, state: State) -> Readout:
        """Return the last layer's output `[B, N, d]`, before and after the final norm."""
        z = state.hidden
        return Readout(z=z, compared=z, pooled=self.decoder.finish(z), real=state.context.real)

    def generator(self, pooled: Callable[[Any], Tensor]) -> TwoPassLanguageModel:
        """Return a model with transformers' `generate` for two passes."""
        return TwoPassLanguageModel(self.module, pooled).eval()
