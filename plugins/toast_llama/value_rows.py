"""Where each kind of attention makes its values: a layer of its own, or rows of a fused one, by the attention's class.

The rows of a fused layer follow from how the attention of transformers splits its output, which no attribute tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from toast_llama.latent_values import LatentValueLayer
from toast_transformers.value_layers import FusedValueLayer, KeyAsValueLayer, SeparateValueLayer, ValueLayer

VALUE_NAMES = ("v_proj", "value", "project_v", "Wv")
"""Attributes of a linear layer that only makes values."""

CODEGEN_SHARDS = 4
"""Parts of CodeGen's weight, in each of which queries, values and keys follow each other."""


def _find_last_rows(attention: Any) -> FusedValueLayer:
    """All queries, then all keys, then all values, in `qkv_proj`."""
    return FusedValueLayer(attention, "qkv_proj", attention.num_key_value_heads * attention.head_dim)


def _find_rows_of_heads(attention: Any) -> FusedValueLayer:
    """Query, key and value of one head after the other, in `query_key_value`."""
    heads = getattr(attention, "num_heads", None) or getattr(attention, "num_attention_heads", None)
    width = len(attention.query_key_value.weight) // 3
    return FusedValueLayer(attention, "query_key_value", width, heads or attention.config.num_attention_heads)


def _find_falcon_rows(attention: Any) -> FusedValueLayer:
    """The queries of a group of heads, their key and their value; one group if all heads share them."""
    groups = attention.num_kv_heads
    return FusedValueLayer(attention, "query_key_value", groups * attention.head_dim, groups)


def _find_gpt2_rows(attention: Any) -> FusedValueLayer:
    """All queries, then all keys, then all values, in a `Conv1D` with a transposed weight."""
    return FusedValueLayer(attention, "c_attn", attention.c_attn.nf // 3, transposed=True)


def _find_bigcode_rows(attention: Any) -> FusedValueLayer:
    """All queries, one key and one value if all heads share them, else query, key and value of each head."""
    return FusedValueLayer(attention, "c_attn", attention.kv_dim, 1 if attention.multi_query else attention.num_heads)


def _find_mpt_rows(attention: Any) -> FusedValueLayer:
    """All queries, then all keys, then all values, in `Wqkv`."""
    heads = getattr(attention, "num_key_value_heads", None) or attention.n_heads
    return FusedValueLayer(attention, "Wqkv", heads * attention.head_dim)


def _find_codegen_rows(attention: Any) -> FusedValueLayer:
    """Queries, values and keys of a quarter of the heads after each other, in `qkv_proj`."""
    width = attention.embed_dim
    return FusedValueLayer(attention, "qkv_proj", width, CODEGEN_SHARDS, width // CODEGEN_SHARDS)


def _find_jetmoe_rows(attention: Any) -> FusedValueLayer:
    """All keys, then all values, in `kv_proj`."""
    return FusedValueLayer(attention, "kv_proj", attention.kv_projection_size)


FUSED_ROWS: Mapping[str, Callable[[Any], FusedValueLayer]] = {
    "Phi3Attention": _find_last_rows,
    "Phi4MultimodalAttention": _find_last_rows,
    "GPTNeoXAttention": _find_rows_of_heads,
    "GPTNeoXJapaneseAttention": _find_rows_of_heads,
    "BloomAttention": _find_rows_of_heads,
    "PersimmonAttention": _find_rows_of_heads,
    "FalconAttention": _find_falcon_rows,
    "FalconFlashAttention2": _find_falcon_rows,
    "GPT2Attention": _find_gpt2_rows,
    "Attention": _find_gpt2_rows,  # of the first GPT
    "GPTBigCodeAttention": _find_bigcode_rows,
    "MptAttention": _find_mpt_rows,
    "DbrxAttention": _find_mpt_rows,
    "CodeGenAttention": _find_codegen_rows,
    "JetMoeAttention": _find_jetmoe_rows,
}
"""The rows of fused layers by the class of their attention."""


UNSTEERABLE: Mapping[str, str] = {
    "DogeAttention": "It makes its mask of the values, so a signal at the values would also change where it attends.",
    "MiniMaxLightningAttention": "Its linear attention needs a cache of its own kind, which holds one pass.",
    "ZayaAttention": "Half of its values are made of the token before, so a signal for one token would steer two.",
    "DeepseekV4Attention": "One projection is both key and value, so a signal at the values would change the keys.",
    "ProphetNetNgramSelfAttention": "It predicts several tokens at once, each from values of its own.",
    "XLNetRelativeAttention": "Its projections are bare parameters, which no layer applies.",
    "Zamba2Attention": "Its attention projects every token together with its embedding, and z has no part for that.",
    "RecurrentGemmaRecurrentBlock": "Its recurrent layers keep their state in the model, and two passes need two.",
    "ZambaAttention": "Its attention projects every token together with its embedding, and z has no part for that.",
}
"""Why attentions of a class cannot be steered."""


def find_reason(attention: nn.Module) -> str | None:
    """Return why the attention cannot be steered, if its class is known for it."""
    return UNSTEERABLE.get(type(attention).__name__)


def find_value_layer(attention: nn.Module, width: int) -> ValueLayer | None:
    """Return the layer that makes the values of an attention; None if this is no attention, or it is not known.

    Args:
        attention: Any module of a decoder.
        width: Channels of a token. A layer with another number of inputs does not project tokens alone.
    """
    if (find_rows := FUSED_ROWS.get(type(attention).__name__)) is not None:
        return find_rows(attention)
    if hasattr(attention, "kv_a_proj_with_mqa") and hasattr(attention, "expand_kv"):
        return LatentValueLayer(attention)
    if getattr(attention, "use_alternative_attention", False) and getattr(attention, "k_proj", None) is not None:
        return KeyAsValueLayer(attention, "k_proj", "v_proj")
    for name in VALUE_NAMES:
        layer: Any = getattr(attention, name, None)
        if getattr(layer, "in_features", None) == width:
            return SeparateValueLayer(attention, name)
        if getattr(getattr(layer, "linear", None), "in_features", None) == width:  # Moshi
            return SeparateValueLayer(layer, "linear")
    return None
