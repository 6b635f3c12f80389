"""The short names of small instruction models, which answer in the chat template of their tokenizer. Torch-free."""

from __future__ import annotations

from toast_llama.cards import LLAMA_3_2_1B_CONFIG, LLAMA_3_2_3B_CONFIG, build_language_card, build_size_config

LLAMA_3_2_1B_INSTRUCT = build_language_card(
    "llama_3_2_1b_instruct", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, LLAMA_3_2_1B_CONFIG, "llama3.2"
)
LLAMA_3_2_3B_INSTRUCT = build_language_card(
    "llama_3_2_3b_instruct", "meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824, LLAMA_3_2_3B_CONFIG, "llama3.2"
)
_QWEN3_CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "eos_token_id": 151645,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
QWEN3_0_6B = build_language_card(
    "qwen3_0_6b",
    "Qwen/Qwen3-0.6B",
    596_049_920,
    {**_QWEN3_CONFIG, **build_size_config(1024, 3072, 28, 16)},
    "apache-2.0",
)
QWEN3_1_7B = build_language_card(
    "qwen3_1_7b",
    "Qwen/Qwen3-1.7B",
    1_720_574_976,
    {**_QWEN3_CONFIG, **build_size_config(2048, 6144, 28, 16)},
    "apache-2.0",
)
QWEN3_4B = build_language_card(
    "qwen3_4b",
    "Qwen/Qwen3-4B",
    4_022_468_096,
    {**_QWEN3_CONFIG, **build_size_config(2560, 9728, 36, 32)},
    "apache-2.0",
)

_GEMMA_3_CONFIG = {
    "model_type": "gemma3_text",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "eos_token_id": [1, 106],
    "dtype": "bfloat16",
}
GEMMA_3_1B = build_language_card(
    "gemma_3_1b",
    "google/gemma-3-1b-it",
    999_885_952,
    {
        **_GEMMA_3_CONFIG,
        **build_size_config(1152, 6912, 26, 4),
        "vocab_size": 262144,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
    },
    "gemma",
)
GEMMA_3_4B = build_language_card(
    "gemma_3_4b",
    "google/gemma-3-4b-it",
    3_880_263_168,
    {
        **_GEMMA_3_CONFIG,
        **build_size_config(2560, 10240, 34, 8),
        "vocab_size": 262208,
        "num_key_value_heads": 4,
        "sliding_window": 1024,
        "max_position_embeddings": 131072,
    },
    "gemma",
    text_only=True,
)
SMOLLM3_3B = build_language_card(
    "smollm3_3b",
    "HuggingFaceTB/SmolLM3-3B",
    3_075_098_624,
    {
        **build_size_config(2048, 11008, 36, 16),
        "model_type": "smollm3",
        "vocab_size": 128256,
        "num_key_value_heads": 4,
        "max_position_embeddings": 65536,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
        "eos_token_id": 128012,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
    "apache-2.0",
)
PHI_4_MINI = build_language_card(
    "phi_4_mini",
    "microsoft/Phi-4-mini-instruct",
    3_836_021_760,
    {
        **build_size_config(3072, 8192, 32, 24),
        "model_type": "phi3",
        "vocab_size": 200064,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        "bos_token_id": 199999,
        "eos_token_id": 199999,
        "pad_token_id": 199999,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
    "mit",
)
