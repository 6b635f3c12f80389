"""What all causal language models of transformers share as backbones, with one pass or two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from toast_cli.plugin import Backbone, TextLimits, ToastError, describe_quantization
from toast_llama.decoder import find_body, find_width
from toast_llama.logits import LogitsHead

EXAMPLE_TOKENS = 16

UNADAPTED_CLASSES = re.compile(r"Router|Grouped")
"""Subclasses of linear layers that return more than a product, or take several inputs."""

MAMBA_MODEL_TYPES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
"""Model types for which PEFT refuses factors on `out_proj`."""

QUERY_AND_VALUE = ("q_proj", "v_proj")
"""The layers that PEFT adapts by default in most language models."""


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
    has_attention = any(type(part).__name__.endswith("Attention") for part in module.modules())
    if has_attention and module.config.get_text_config()._attn_implementation == "eager":
        yield f"{type(module).__name__} has no fused attention, so it needs more time and memory."
    if tokenizer is not None and len(tokenizer) > vocabulary:
        yield (
            f"The tokenizer has {len(tokenizer):,} tokens, and the embedding of the model has {vocabulary:,}. "
            "Texts with one of the others are refused."
        )


def list_unadapted_layers(module: PreTrainedModel, body: nn.Module) -> list[str]:
    """Return the names of the linear layers that PEFT's factors are not for.

    Towers of images beside the decoder are not run. Routers and grouped layers are no plain products. PEFT has no
    factors for the output layers of Mamba, whose kernels use the weights without calling them.
    """
    own = {id(part) for part in body.modules()}
    return [
        name
        for name, part in module.named_modules()
        if hasattr(part, "in_features")
        and (
            id(part) not in own
            or UNADAPTED_CLASSES.search(type(part).__name__)
            or (name.endswith(".out_proj") and module.config.model_type in MAMBA_MODEL_TYPES)
        )
    ]


class LanguageModelBackbone(Backbone):
    """A causal language model of transformers, without its levels.

    Inputs are a mapping as for the model itself: `input_ids` `[B, N]` and, if needed, `attention_mask`, `position_ids`
    and `caches` (a `TwoPassCache`). `real` `[B, N]` marks the tokens that are not padding if there is no mask.
    """

    preprocessing = None
    module: PreTrainedModel
    adapter_targets: Sequence[str] | str = "all-linear"

    def __init__(
        self, module: PreTrainedModel, tokenizer: Any = None, tokenizer_error: ToastError | None = None
    ) -> None:
        self.module = module
        self.tokenizer, self.tokenizer_error = tokenizer, tokenizer_error
        self.body = find_body(module)
        self.width = self.head_width = find_width(module)
        heads: tuple[Any, ...] = (module.get_input_embeddings(), module.get_output_embeddings())
        vocabulary = min(len(part.weight) for part in heads if part is not None)
        self.text_limits = TextLimits(get_window(module.config.get_text_config()), vocabulary)
        linear = ((name, part) for name, part in self.body.named_modules() if hasattr(part, "in_features"))
        names = {name.rpartition(".")[2] for name, _ in linear}
        if names.issuperset(QUERY_AND_VALUE):
            self.adapter_targets = QUERY_AND_VALUE
        self.adapter_exclusions = list_unadapted_layers(module, self.body)
        self.notes = tuple(_list_notes(module, tokenizer, vocabulary))

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
