"""A stock causal language model of transformers as a backbone that can run twice: signals enter at the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from toast_cli.plugin import AuthorsCheckpoint, Backbone, Level, Readout, Signal, State, ToastError, Trace, ValueSignal
from toast_llama.attention_maps import record_layer_attention
from toast_llama.generation import TwoPassLanguageModel
from toast_llama.kv_cache import CACHE_ARGUMENT, TwoPassCache
from toast_llama.logits import LogitsHead

EXAMPLE_TOKENS = 16

FINAL_NORMS = ("norm", "final_layernorm")
"""What models call the norm after their last layer."""


@contextmanager
def steer_value_projection(v_proj: nn.Module, signal: Signal) -> Iterator[None]:
    """Within the block, `V = W_V (X + signal)` (section 3.1, step iv); Q and K stay untouched.

    The signal `[B, N, d]` is added to what goes into the projection, `Values` to what comes out of it.
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


class _LayerInputRecorder(nn.Module):
    """Takes a decoder layer's place while the model prepares its inputs, and keeps what that layer would be given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # past Module's own bookkeeping: the layer is not ours to register

    def __getattr__(self, name: str) -> Any:
        # A few models ask their layers what kind of mask they want.
        return getattr(self.__dict__["_layer"], name)

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
        self.__dict__["given"] = hidden, arguments
        return hidden


@dataclass(frozen=True)
class LayerInputs:
    """What every level is given besides hidden states, and which tokens are real (`[B, N]`, None: all of them)."""

    arguments: tuple[dict[str, Any], ...]
    real: Tensor | None


def _build_unsteerable_error(module: nn.Module, why: str) -> ToastError:
    return ToastError(
        f"{type(module).__name__} cannot be steered.",
        why,
        "Choose a model of the LLaMA, Mistral, Qwen or Gemma kind.",
        code="backbone.cannot-steer",
    )


class LlamaBackbone(Backbone):
    """Any decoder of transformers whose layers attend with a `v_proj` of their own: LLaMA, Mistral, Qwen, Gemma, Phi.

    Inputs are a mapping as the model itself takes it: `input_ids` `[B, N]` and, where they matter, `attention_mask`,
    `position_ids` and `caches` (a `TwoCaches`). `z` is the last layer's output before the final norm, padding
    included; the pooled features are every token after it. `real` `[B, N]` says which tokens are no padding where
    there is no mask to say so.

    Masks, positions and rotary tables are the model's own: its forward pass is run once over stand-ins for its
    layers, which keep what each would have been given. So are its logits: see `OwnLogits`.

    Raises:
        ToastError: the layers are not where transformers puts them or have no `v_proj` over all of their input, or
            there is no final norm.
    """

    has_attention = True
    adapter_targets = ("q_proj", "v_proj")
    preprocessing = None
    module: PreTrainedModel

    def __init__(self, module: PreTrainedModel, tokenizer: Any = None) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.body = module.get_decoder()
        width = module.config.get_text_config().hidden_size
        if module.config.is_encoder_decoder:
            raise _build_unsteerable_error(
                module, "It has an encoder besides, and TOAST is written for decoders alone."
            )
        layers = list(getattr(self.body, "layers", ()))
        values = [getattr(getattr(layer, "self_attn", None), "v_proj", None) for layer in layers]
        if not values or any(getattr(v_proj, "in_features", None) != width for v_proj in values):
            raise _build_unsteerable_error(
                module,
                "TOAST adds its signal to the values, and not every layer of this model has a v_proj that takes what "
                "its attention receives.",
            )
        norm = next((name for name in FINAL_NORMS if getattr(self.body, name, None) is not None), None)
        if norm is None:
            raise _build_unsteerable_error(module, f"Its final norm is not called {' or '.join(FINAL_NORMS)}.")
        self._norm = norm
        self.width = self.head_width = width
        self.levels = [Level(self.width, self.width)] * len(layers)
        self.level_modules = layers
        if module.config.get_text_config()._attn_implementation == "eager":
            self.notes = (f"{type(module).__name__} has no fused attention: it takes more time and memory.",)

    def enter(self, inputs: Any) -> State:
        """Token ids to embeddings `[B, N, d]`."""
        body, layers = self.body, self.body.layers
        caches: TwoPassCache | None = inputs.get("caches")
        stand_ins = [_LayerInputRecorder(layer) for layer in layers]
        body.layers = nn.ModuleList(stand_ins)
        try:
            given = {name: value for name, value in inputs.items() if name not in ("real", "caches")}
            body(**given, **{CACHE_ARGUMENT: None if caches is None else caches.first}, use_cache=False)
        finally:
            body.layers = layers
        embedded, _ = stand_ins[0].given
        arguments = tuple(stand_in.given[1] for stand_in in stand_ins)
        mask = inputs.get("attention_mask")
        real = inputs.get("real") if mask is None else mask[:, -inputs["input_ids"].shape[1] :].bool()
        return State(embedded, LayerInputs(arguments, real))

    def again(self, state: State, inputs: Any) -> State:
        """The second pass has keys and values of its own, where they are kept at all."""
        caches: TwoPassCache | None = inputs.get("caches")
        if caches is None:
            return state
        arguments = tuple({**given, CACHE_ARGUMENT: caches.second} for given in state.context.arguments)
        return State(state.hidden, replace(state.context, arguments=arguments))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock decoder layer; the signal `[B, N, d]` is added to what its attention projects to values."""
        layer = self.body.layers[index]
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_projection(layer.self_attn.v_proj, signal))
            if trace is not None and index in trace.attention_of:
                attached.enter_context(record_layer_attention(layer.self_attn, trace, index))
            out = layer(state.hidden, **state.context.arguments[index])
        return State(out[0] if isinstance(out, tuple) else out, state.context)

    def authors(self, tensors: Mapping[str, Tensor]) -> AuthorsCheckpoint:
        """As everywhere, but that what the authors added lies in the decoder, under `model.`."""
        added = ("prompt", "top_down_transform", "decoders.")
        found = super().authors(
            {
                bare if (bare := name.removeprefix("model.")).startswith(added) else name: tensor
                for name, tensor in tensors.items()
            }
        )
        for name in [name for name in found.network if name.endswith("rotary_emb.inv_freq")]:
            del found.network[name]
            found.left_out[name] = "computed from the configuration"
        return found

    def value_weight(self, index: int) -> Tensor:
        """`W_V`, `[values, d]`."""
        weight = self.body.layers[index].self_attn.v_proj.weight
        assert isinstance(weight, Tensor)
        return weight

    def leave(self, state: State) -> Readout:
        """The last layer's output `[B, N, d]`, and the same after the final norm."""
        z = state.hidden
        return Readout(z=z, compared=z, pooled=getattr(self.body, self._norm)(z), real=state.context.real)

    def stock(self, inputs: Any) -> Tensor:
        """transformers' own forward pass up to the final norm `[B, N, d]`."""
        return self.body(**inputs, use_cache=False).last_hidden_state

    def example(self, batch: int) -> dict[str, Tensor]:
        """Random token ids `[batch, 16]`, all real."""
        ids = torch.randint(self.module.config.get_text_config().vocab_size, (batch, EXAMPLE_TOKENS))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def grid(self, inputs: Any) -> tuple[int, int]:
        """A text is one row of tokens."""
        return 1, inputs["input_ids"].shape[1]

    def output(self) -> nn.Module:
        """From pooled features to the model's own logits."""
        return LogitsHead(self.module)

    def generator(self, pooled: Callable[[Any], Tensor]) -> TwoPassLanguageModel:
        """transformers' `generate` over two passes."""
        return TwoPassLanguageModel(self.module, pooled).eval()

    def files(self) -> dict[str, str]:
        """Configuration, generation settings and, where there is one, the tokenizer, as transformers writes them."""
        with TemporaryDirectory(prefix="toast-") as folder:
            for part in (self.module.config, self.module.generation_config, self.tokenizer):
                if part is not None:
                    part.save_pretrained(folder)
            return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}

    def query_tokens(self) -> slice:
        """The last token, which has seen all others."""
        return slice(-1, None)
