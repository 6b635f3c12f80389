"""Tiny configurations of every causal language model of transformers, for the count of coverage and for tests."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "qk_head_dim": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # Mamba
    "mamba_d_state": 8,
    "state_size": 8,
}
"""Fields of configurations, each used where a family has it."""

OWN_SIZES: dict[str, dict[str, Any]] = {}
"""Fields of single families that are named otherwise, or that must fit to each other."""


def build_tiny_config(kind: str) -> Any:
    """Return a tiny configuration of a model type."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind]
    fields = {
        *config.attribute_map,
        *(name for each in config.__mro__ for name in vars(each).get("__annotations__", ())),
    }
    known = {name: value for name, value in SIZES.items() if name in fields}
    own = OWN_SIZES.get(kind, {})
    if "text_config" in fields and kind not in OWN_SIZES:
        own = {"text_config": known}
    return config(**{**known, **own})
