"""The language models by name: what each is and where its weights come from. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.backbones.base import Card, Family
from toast_llama.options import LlamaOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone


def _build(source: str, architecture: Mapping[str, Any] | None, options: LlamaOptions) -> Backbone:
    from toast_llama.loading import build

    return build(source, architecture, options)


def _rebuild(options: LlamaOptions, folder: Path) -> Backbone:
    from toast_llama.loading import build

    return build(str(folder), None, options)


def _card(name: str, source: str, parameters: int | None = None, architecture: Mapping[str, Any] | None = None) -> Card:
    return Card(
        name,
        "llama",
        parameters,
        f"transformers, {source}",
        partial(_build, source, architecture),
        LlamaOptions,
        rebuild=_rebuild,
    )


def _any_model(source: str) -> Card:
    return _card(f"llama:{source}", source)


def _wrap(module: Any) -> Backbone | None:
    from toast_llama.loading import wrap

    return wrap(module)


FAMILY = Family("llama", "transformers", _any_model, _wrap)

# The shapes of each, so that it can be counted and estimated without a download.
_FIRST = {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_THIRD = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _shape(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _scaled(factor: float) -> dict[str, Any]:
    return {"rope_parameters": {**_ROPE, "factor": factor, "original_max_position_embeddings": 8192}}


LLAMA_7B = _card("llama_7b", "huggyllama/llama-7b", 6_738_415_616, {**_FIRST, **_shape(4096, 11008, 32, 32)})
LLAMA_13B = _card("llama_13b", "huggyllama/llama-13b", 13_015_864_320, {**_FIRST, **_shape(5120, 13824, 40, 40)})
LLAMA_3_2_1B = _card(
    "llama_3_2_1b",
    "meta-llama/Llama-3.2-1B",
    1_235_814_400,
    {**_THIRD, **_shape(2048, 8192, 16, 32), **_scaled(32.0), "head_dim": 64, "tie_word_embeddings": True},
)
LLAMA_3_2_3B = _card(
    "llama_3_2_3b",
    "meta-llama/Llama-3.2-3B",
    3_212_749_824,
    {**_THIRD, **_shape(3072, 8192, 28, 24), **_scaled(32.0), "head_dim": 128, "tie_word_embeddings": True},
)
LLAMA_3_1_8B = _card(
    "llama_3_1_8b", "meta-llama/Llama-3.1-8B", 8_030_261_248, {**_THIRD, **_shape(4096, 14336, 32, 32), **_scaled(8.0)}
)
