"""The cards of the language models and the source of their weights. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Card, Family
from toast_llama.options import LlamaOptions
from toast_transformers.folders import list_model_classes

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone

CAUSAL_MODEL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "LMHead", "ForConditionalGeneration", "GenerationDecoder")
"""Ends of the names of classes that write text. One with an encoder is refused when it is built."""


def _build(
    source: str,
    architecture: Mapping[str, Any] | None,
    licence: str | None,
    text_only: bool,
    options: LlamaOptions,
) -> Backbone:
    from huggingface_hub import try_to_load_from_cache

    from toast_cli.plugin import announce_licence
    from toast_llama.loading import build_llama

    if licence is not None and options.weights is None and try_to_load_from_cache(source, "config.json") is None:
        announce_licence(source, licence, f"https://huggingface.co/{source}")
    return build_llama(source, architecture, options, text_only=text_only)


def _outline(
    source: str, architecture: Mapping[str, Any] | None, options: LlamaOptions, levels: int | None
) -> Backbone:
    from toast_llama.loading import outline_llama

    return outline_llama(source, architecture, options, levels)


def _rebuild(options: LlamaOptions, folder: Path) -> Backbone:
    from toast_llama.loading import build_llama

    return build_llama(str(folder), None, options)


def build_language_card(
    name: str,
    source: str,
    parameters: int | None = None,
    architecture: Mapping[str, Any] | None = None,
    licence: str | None = None,
    *,
    text_only: bool = False,
) -> Card:
    """Build the card of a model; `licence` is the one that the hub records for the weights.

    With `text_only`, only the language model of a source that also takes images is loaded.
    """
    return Card(
        name,
        "llama",
        parameters,
        f"transformers, {source}",
        partial(_build, source, architecture, licence, text_only),
        LlamaOptions,
        rebuild=_rebuild,
        licence=licence,
        published=True if licence else None,
        outline=partial(_outline, source, architecture),
    )


def _build_hub_card(prefix: str, source: str) -> Card:
    return build_language_card(f"{prefix}:{source}", source)


def _wrap(module: Any) -> Backbone | None:
    from toast_llama.loading import wrap_llama

    return wrap_llama(module)


def _recognize_folder(folder: Path) -> bool:
    return any(name.endswith(CAUSAL_MODEL_SUFFIXES) for name in list_model_classes(folder))


FAMILY = Family("llama", "transformers", partial(_build_hub_card, "llama"), _wrap)
LM_FAMILY = Family("lm", "transformers", partial(_build_hub_card, "lm"), recognize=_recognize_folder)
"""The same family under a prefix that does not name one of its models."""

# The shapes of each model and the data type of its weights, to count parameters and estimate memory without a download.
_LLAMA_1_CONFIG = {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "dtype": "float16"}
_LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA_3_CONFIG = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "dtype": "bfloat16",
}


def build_size_config(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    """Return the fields of a configuration for these sizes."""
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _build_rope_config(factor: float) -> dict[str, Any]:
    return {"rope_parameters": {**_LLAMA_3_ROPE, "factor": factor, "original_max_position_embeddings": 8192}}


LLAMA_7B = build_language_card(
    "llama_7b",
    "huggyllama/llama-7b",
    6_738_415_616,
    {**_LLAMA_1_CONFIG, **build_size_config(4096, 11008, 32, 32)},
    "other",
)
LLAMA_13B = build_language_card(
    "llama_13b",
    "huggyllama/llama-13b",
    13_015_864_320,
    {**_LLAMA_1_CONFIG, **build_size_config(5120, 13824, 40, 40)},
    "other",
)
LLAMA_3_2_1B_CONFIG = {
    **_LLAMA_3_CONFIG,
    **build_size_config(2048, 8192, 16, 32),
    **_build_rope_config(32.0),
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LLAMA_3_2_3B_CONFIG = {
    **_LLAMA_3_CONFIG,
    **build_size_config(3072, 8192, 28, 24),
    **_build_rope_config(32.0),
    "head_dim": 128,
    "tie_word_embeddings": True,
}
LLAMA_3_2_1B = build_language_card(
    "llama_3_2_1b", "meta-llama/Llama-3.2-1B", 1_235_814_400, LLAMA_3_2_1B_CONFIG, "llama3.2"
)
LLAMA_3_2_3B = build_language_card(
    "llama_3_2_3b", "meta-llama/Llama-3.2-3B", 3_212_749_824, LLAMA_3_2_3B_CONFIG, "llama3.2"
)
LLAMA_3_1_8B = build_language_card(
    "llama_3_1_8b",
    "meta-llama/Llama-3.1-8B",
    8_030_261_248,
    {**_LLAMA_3_CONFIG, **build_size_config(4096, 14336, 32, 32), **_build_rope_config(8.0)},
    "llama3.1",
)
