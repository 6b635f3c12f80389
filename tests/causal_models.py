"""Tiny models of every causal language model of transformers, by its model type, from their configurations."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
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
    "encoder_layers": 2,
    "decoder_layers": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "ffn_dim": 48,
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

_LAYERS = SIZES["num_hidden_layers"]
_HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 32,
    "sliding_window_size": 16,
}

OWN_SIZES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": _HYBRID},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "cpmant": {"dim_ff": 48, "dim_head": 8},
    "ctrl": {"dff": 48},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v32": {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 8},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "index_head_dim": 8,
        "index_n_heads": 2,
        "index_topk": 8,
        "shared_experts_intermediate_size": 16,
        "sliding_window": 16,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 40,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "intermediate_size": [48] * _LAYERS,
        "activation_sparsity_pattern": [0.0] * _LAYERS,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 40,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 2,
    },
    "gemma4_unified_text": {"attention_k_eq_v": True, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "glm_moe_dsa": {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16},
    "hy_v4": {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 8},
    "inkling_text": _INKLING,
    "inkling2_text": {**_INKLING, "unpadded_vocab_size": 40},
    "inkling2_loop_text": {**_INKLING, "unpadded_vocab_size": 40},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {"layer_types": _HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "minimax_m3_vl_text": {"dense_intermediate_size": 48, "shared_intermediate_size": 16, "rotary_dim": 8},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 16,
    },
    "olmo_hybrid": {"layer_types": _HYBRID},
    "qwen3_5_moe_text": {"layer_types": _HYBRID},
    "qwen3_5_text": {"layer_types": _HYBRID},
    "qwen3_next": {"layer_types": _HYBRID},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "attention_head_size": 8},
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 40,
        "shape_embed_dim": 8,
        "shape_vocab_size": 40,
    },
    "xlnet": {"d_head": 8, "d_inner": 48},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 4, "mamba_headdim": 16},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields of single families that are named otherwise, or that must fit to each other."""


TOWER_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "out_hidden_size": 32,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "d_model": 32,
    "base_channels": 32,
    "latent_channels": 4,
    "mm_embed_dim": 32,
    "mm_posemb_size": 32,
    "output_proj_dims": 32,
    "audio_embed_dim": 32,
    "ext_pw_out_channel": 32,
    "depthwise_separable_out_channel": 32,
    "nemo_conv_channels": 32,
}
"""Fields of the parts of composite models that read images or sound, each used where a part has it."""

PART_TYPES = {
    ("gemma3", "vision_config"): "siglip_vision_model",
    ("fuyu", "text_config"): "persimmon",
    ("got_ocr2", "text_config"): "qwen2",
    ("moss_transcribe_diarize", "text_config"): "qwen3",
}
"""Model types of parts that may be of any type."""


def _list_fields(config: Any) -> set[str]:
    own = (name for each in config.__mro__ for name in vars(each).get("__annotations__", ()))
    return {*config.attribute_map, *own}


def build_tiny_config(kind: str) -> Any:
    """Return a tiny configuration of a model type, with tiny parts if it is a composite."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind]
    fields = _list_fields(config)
    own = OWN_SIZES.get(kind, {})
    parts = {}
    for name, part in config.sub_configs.items():
        part_type = PART_TYPES.get((kind, name), getattr(part, "model_type", None))
        if name in own or not part_type:
            continue
        if name == "text_config":
            parts[name] = build_tiny_config(part_type).to_dict()
        else:
            known = _list_fields(CONFIG_MAPPING.get(part_type, part))
            parts[name] = {size: value for size, value in TOWER_SIZES.items() if size in known}
        parts[name]["model_type"] = part_type
    if "text_config" in parts:  # the sizes are those of the text model
        return config(**{**parts, **own})
    known = {name: value for name, value in SIZES.items() if name in fields}
    if "kv_lora_rank" in fields:  # the part of a head with positions, and every head has keys of its own
        known |= {"head_dim": SIZES["qk_rope_head_dim"], "num_key_value_heads": SIZES["num_attention_heads"]}
    return config(**{**known, **parts, **own})


DAILY = ("bloom", "deepseek_v3", "falcon", "gemma4_text", "gpt2", "gpt_neox", "mpt", "phi3", "qwen3_next")
"""Model types that differ most from LLaMA: fused projections of each layout, latents, shared keys, hybrids."""

NIGHTLY = (
    *("afmoe", "apertus", "apertus1p5_text", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "bamba"),
    *("beam", "bert", "bert-generation", "big_bird", "biogpt", "bitnet", "camembert", "codegen", "cohere"),
    *(
        "cohere2",
        "cohere2_moe",
        "ctrl",
        "cwm",
        "data2vec-text",
        "deepseek_v2",
        "deepseek_v32",
        "diffllama",
    ),
    *("dots1", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone", "exaone4", "exaone_moe", "falcon_h1"),
    *("flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe"),
    *("glm4_moe_lite", "gpt-sw3", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj", "granite"),
    *("granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium"),
    *("hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "inkling_text", "internlm3", "iquestcoder"),
    *("jais2", "jamba", "jetmoe", "kimi_linear", "kolibri1", "laguna", "lara_mini", "lfm2", "lfm2_moe", "lfm3"),
    *("llama", "llama4_text", "megatron-bert", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2"),
    *("minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "moshi"),
    *("nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt"),
    *("persimmon", "phi", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "sarvam_mla"),
    *(
        "sarvam_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "trocr",
        "vaultgemma",
    ),
    *("xglm", "xlm-roberta", "xlm-roberta-xl", "xmod", "youtu"),
    *("dbrx", "dots3_note_text", "emu3", "fuyu", "gemma3", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4"),
    *("moss_transcribe_diarize", "phi4_multimodal", "qwen3_5", "qwen3_5_moe"),
)
"""All other model types that can be steered."""


@cache
def get_folder() -> Path:
    """Return the folder of the tiny models of this process."""
    return Path(tempfile.mkdtemp(prefix="toast-tiny-models-"))


def get_model_folder(kind: str) -> Path:
    """Return the folder of a tiny model, which `write_model_folder` fills."""
    return get_folder() / kind


def write_model_folder(kind: str) -> None:
    """Write the configuration of a tiny model into its folder, unless it is there."""
    if not (get_model_folder(kind) / "config.json").is_file():
        build_tiny_config(kind).save_pretrained(get_model_folder(kind))
