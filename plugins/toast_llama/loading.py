"""Construction of backbones from causal language models of transformers: from a folder, the hub, or random."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from toast_cli.plugin import ToastError, UsageError, refuse_lfs_pointers, require_regular_file
from toast_llama.backbone import LlamaBackbone
from toast_llama.options import LlamaOptions
from toast_llama.tokenizer import load_tokenizer
from toast_transformers.folders import build_missing_config_error, build_unavailable_error


def build_llama(source: str, architecture: Mapping[str, Any] | None, options: LlamaOptions) -> LlamaBackbone:
    """Build the model of a Hugging Face id or a folder, with its tokenizer if there is one.

    Attention is fused if the model supports it.

    Args:
        source: Hugging Face id, or folder in the layout of transformers.
        architecture: LLaMA configuration for random weights; None uses the configuration of the source.
        options: Weights and data type.

    Raises:
        UsageError: The folder does not exist or holds no model.
        ToastError: The model cannot be loaded, is damaged, needs code of its own, or cannot be steered.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.weights == "none":
        config = _load_config(source) if architecture is None else LlamaConfig(**architecture)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if dtype == "auto" else dtype)
        if architecture is not None:
            return LlamaBackbone(module)
        return LlamaBackbone(_load_generation_config(module, source), *load_tokenizer(source))
    place = source
    if options.weights is not None and options.weights.endswith(".safetensors"):
        module = _load_weights_file(source, Path(options.weights).expanduser(), dtype)
        return LlamaBackbone(_load_generation_config(module, source), *load_tokenizer(source))
    if options.weights is not None:
        folder = Path(options.weights).expanduser()
        if not (folder / "config.json").is_file():
            raise build_missing_config_error(folder)
        place = str(folder)
    _load_config(place)
    try:
        module = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # the hub, a foreign folder or a damaged file may raise anything
        raise build_unavailable_error("llama", place, error) from error
    return LlamaBackbone(module, *load_tokenizer(place))


def wrap_llama(module: Any) -> LlamaBackbone | None:
    """Return the backbone of a causal language model, with the tokenizer of its folder or repository, or None."""
    if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is None:
        return None
    place = module.config.name_or_path
    if not place:
        return LlamaBackbone(module)
    backbone = LlamaBackbone(module, *load_tokenizer(place))
    dtype = str(module.dtype).removeprefix("torch.")
    source = str(Path(place).absolute()) if Path(place).is_dir() else place
    known = dtype in get_args(LlamaOptions.model_fields["dtype"].annotation)
    backbone.origin = {"name": f"llama:{source}", **({"dtype": dtype} if known else {})}
    return backbone


def _load_weights_file(source: str, file: Path, dtype: Any) -> PreTrainedModel:
    """Load weights from one file, as written by 'toast export --what backbone', into the source's architecture."""
    module = AutoModelForCausalLM.from_config(_load_config(source), dtype=None if dtype == "auto" else dtype)
    try:
        load_model(module, require_regular_file(file))
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no weights file {file}.", what_to_do="Check --weights.", code="weights.missing-file"
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        refuse_lfs_pointers(file)
        raise ToastError(
            f"{file} does not hold the weights of '{source}'.",
            " ".join(str(error).split())[:300],
            "Give the file that was exported from this model.",
            code="weights.wrong-model",
        ) from error
    return module


def _load_config(source: str) -> Any:
    """Load the configuration of a model.

    Raises:
        ToastError: The configuration cannot be loaded, or the model is not a decoder-only causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise build_unavailable_error("llama", source, error) from error
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ToastError(
            f"'{source}' has the model type {config.model_type}, which is not a decoder-only causal language model.",
            what_to_do="Choose a LLaMA, Mistral, Qwen or Gemma model.",
            code="backbone.wrong-family",
        )
    return config


def _load_generation_config(module: PreTrainedModel, place: str) -> PreTrainedModel:
    """Set the generation settings stored with the model, such as its end-of-text tokens, and return it."""
    with suppress(OSError):  # many models have none; the settings of the configuration then apply
        module.generation_config = GenerationConfig.from_pretrained(place)
    return module
