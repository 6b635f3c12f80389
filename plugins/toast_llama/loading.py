"""A causal language model of transformers as a backbone: from a folder, from the hub, or, when typed, random."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from toast_cli.plugin import ToastError, UsageError, require_regular_file
from toast_llama.backbone import LlamaBackbone
from toast_llama.options import LlamaOptions


def build_llama(source: str, architecture: Mapping[str, Any] | None, options: LlamaOptions) -> LlamaBackbone:
    """The model of a Hugging Face id or of a folder, with its tokenizer where one lies beside it.

    Attention is fused where the model can have it so.

    Args:
        source: Hugging Face id, or folder in transformers' layout.
        architecture: LLaMA's settings for random weights; None takes those that lie with the source.
        options: which weights, and in what precision.

    Raises:
        UsageError: a folder that was named is not there.
        ToastError: the model cannot be had or is damaged, has code of its own, or cannot be steered.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.weights == "none":
        config = _load_config(source) if architecture is None else LlamaConfig(**architecture)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if dtype == "auto" else dtype)
        if architecture is not None:
            return LlamaBackbone(module)
        return LlamaBackbone(_load_generation_config(module, source), _load_tokenizer(source))
    place = source
    if options.weights is not None and options.weights.endswith(".safetensors"):
        module = _load_weights_file(source, Path(options.weights).expanduser(), dtype)
        return LlamaBackbone(_load_generation_config(module, source), _load_tokenizer(source))
    if options.weights is not None:
        folder = Path(options.weights).expanduser()
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"There is no model in {folder}.",
                "It holds no config.json.",
                "Give the folder that transformers' save_pretrained wrote, or a download of the model's repository.",
                code="weights.missing-model",
            )
        place = str(folder)
    _load_config(place)
    try:
        module = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # the hub, a foreign folder and a damaged file fail in any way
        raise _build_unavailable_error(place, error) from error
    return LlamaBackbone(module, _load_tokenizer(place))


def wrap_llama(module: Any) -> LlamaBackbone | None:
    """A causal language model that is there already, with the tokenizer of its own folder or repository; else None."""
    if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is None:
        return None
    place = module.config.name_or_path
    return LlamaBackbone(module, _load_tokenizer(place) if place else None)


def _load_weights_file(source: str, file: Path, dtype: Any) -> PreTrainedModel:
    """The source's architecture with the weights of one file, as 'toast export --what backbone' writes it."""
    module = AutoModelForCausalLM.from_config(_load_config(source), dtype=None if dtype == "auto" else dtype)
    try:
        load_model(module, require_regular_file(file))
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no weights file {file}.", what_to_do="Check --weights.", code="weights.missing-file"
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ToastError(
            f"{file} does not hold the weights of '{source}'.",
            " ".join(str(error).split())[:300],
            "Give the file that was exported from this model.",
            code="weights.wrong-model",
        ) from error
    return module


def _load_config(source: str) -> Any:
    """The model's settings.

    Raises:
        ToastError: they cannot be had, or are those of a model that is no causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _build_unavailable_error(source, error) from error
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ToastError(
            f"'{source}' is a model of the kind {config.model_type}, and no decoder-only causal language model.",
            what_to_do="Choose a model of the LLaMA, Mistral, Qwen or Gemma kind.",
            code="backbone.wrong-family",
        )
    return config


def _load_generation_config(module: PreTrainedModel, place: str) -> PreTrainedModel:
    """The model with the generation settings that lie beside it: where its answers end, above all."""
    with suppress(OSError):  # many have none, and those of the configuration then stand
        module.generation_config = GenerationConfig.from_pretrained(place)
    return module


def _load_tokenizer(place: str) -> Any:
    """The tokenizer that lies beside the model; None where there is none (random weights need none)."""
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception:  # whoever needs it says that it is missing
        return None


def _build_unavailable_error(place: str, error: Exception) -> ToastError:
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if Path(place).is_dir():
        return ToastError(
            f"The model in {place} could not be loaded.", why, "Fetch it again, whole.", code="weights.cannot-load"
        )
    if place.startswith(("/", ".", "~")) or place.count("/") > 1:  # no repository is called so
        return ToastError(
            f"There is no model in {place}.",
            "There is no such folder.",
            "Say where it is: --weights FOLDER.",
            code="weights.missing-model",
        )
    return ToastError(
        f"The model '{place}' could not be fetched.",
        why,
        f"There is no folder {place} here either: a run that was made of one is given it by --weights FOLDER. With a "
        "network, run again (a gated model needs 'hf auth login'). Without one, --weights FOLDER or --backbone "
        "llama:FOLDER names a folder that holds it; --weights none starts from random weights.",
        code="weights.cannot-download",
    )
