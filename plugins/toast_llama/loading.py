"""Construction of backbones from causal language models of transformers: from a folder, the hub, or random."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from toast_cli.plugin import ToastError, UsageError, refuse_lfs_pointers, require_regular_file
from toast_llama.backbone import LlamaBackbone
from toast_llama.decoder import find_body
from toast_llama.language_model import LanguageModelBackbone
from toast_llama.one_pass import OnePassBackbone
from toast_llama.options import LlamaOptions
from toast_llama.quantized_loading import load_quantized_model, quantize_model
from toast_llama.tokenizer import load_tokenizer
from toast_transformers.folders import build_missing_config_error, build_unavailable_error
from toast_transformers.hub_lookup import require_model_source


def build_llama(
    source: str, architecture: Mapping[str, Any] | None, options: LlamaOptions, *, text_only: bool = False
) -> LanguageModelBackbone:
    """Build the model of a Hugging Face id or a folder, with its tokenizer if there is one.

    Attention is fused if the model supports it.

    Args:
        source: Hugging Face id, or folder in the layout of transformers.
        architecture: LLaMA configuration for random weights; None uses the configuration of the source.
        options: Weights, data type and quantization.
        text_only: Load only the language model of a source that also takes images.

    Raises:
        UsageError: The folder does not exist or holds no model, or it cannot be quantized.
        ToastError: The model cannot be loaded, is damaged, needs code of its own, or cannot be steered.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.weights == "none":
        config = _load_config(source) if architecture is None else _build_named_config(architecture)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if dtype == "auto" else dtype)
        if _looks_tokens_up(module.config):
            module = _take_language_model(module)
        _quantize(module, options)
        if architecture is not None:
            return build_language_backbone(module)
        return build_language_backbone(_load_generation_config(module, source), *load_tokenizer(source))
    place = source
    if options.weights is not None and options.weights.endswith(".safetensors"):
        module = _load_weights_file(source, Path(options.weights).expanduser(), dtype)
        _quantize(module, options)
        return build_language_backbone(_load_generation_config(module, source), *load_tokenizer(source))
    if options.weights is not None:
        folder = Path(options.weights).expanduser()
        if not (folder / "config.json").is_file():
            raise build_missing_config_error(folder)
        place = str(folder)
    config = _load_config(place)
    try:
        if options.quantize is not None:
            _require_unquantized(config, place, options.quantize)
            module = load_quantized_model(place, options.quantize, dtype=dtype, trust_remote_code=False)
        else:
            module = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, trust_remote_code=False)
    except ToastError:
        raise
    except Exception as error:  # the hub, a foreign folder or a damaged file may raise anything
        raise build_unavailable_error("llama", place, error) from error
    if text_only or _looks_tokens_up(module.config):
        module = _take_language_model(module)
    return build_language_backbone(module, *load_tokenizer(place))


def _looks_tokens_up(config: Any) -> bool:
    """Return whether a model of text and images looks token ids up for its layers, outside of its decoder (Gemma 4)."""
    text = config.get_text_config()
    return text is not config and bool(getattr(text, "hidden_size_per_layer_input", 0))


def _take_language_model(whole: PreTrainedModel) -> PreTrainedModel:
    """Return the language model of a model that also takes images, with its weights; one without a tower as it is."""
    config = whole.config.get_text_config()
    if config is whole.config:
        return whole
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=whole.dtype)
    body, head = find_body(module), module.get_output_embeddings()
    parts = {id(part): name for name, part in module.named_modules()}
    module.set_submodule(parts[id(body)], find_body(whole))
    module.set_submodule(parts[id(head)], whole.get_output_embeddings())
    module.generation_config = whole.generation_config
    return module.train(whole.training)


def build_language_backbone(
    module: PreTrainedModel, tokenizer: Any = None, tokenizer_error: ToastError | None = None
) -> LanguageModelBackbone:
    """Return a causal language model as a backbone: with two passes or, if it cannot be steered, with one."""
    try:
        return LlamaBackbone(module, tokenizer, tokenizer_error)
    except ToastError as error:
        if error.code != "backbone.cannot-steer":
            raise
        return OnePassBackbone(module, error, tokenizer, tokenizer_error)


def _quantize(module: PreTrainedModel, options: LlamaOptions) -> None:
    if options.quantize is not None:
        quantize_model(module, options.quantize)


def _require_unquantized(config: Any, place: str, kind: str) -> None:
    """Check that the weights of a model are not stored in a quantized form.

    Raises:
        UsageError: They are.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    raise UsageError(
        f"{place} cannot be quantized to {kind}: its weights are stored quantized, by {method}.",
        what_to_do="Give the model that it was made from, or leave backbone.quantize out.",
        code="backbone.cannot-quantize",
    )


def outline_llama(
    source: str, architecture: Mapping[str, Any] | None, options: LlamaOptions, levels: int | None
) -> LanguageModelBackbone:
    """Build the model on the meta device from its configuration alone, in the data type that `build_llama` would use.

    With `levels`, it has only its first layers and no tokenizer. Else its tokenizer is loaded if it is on this machine.

    Raises:
        UsageError: The folder does not exist or holds no model.
        ToastError: The configuration cannot be loaded, or the model cannot be steered.
    """
    weights = options.weights
    if weights in (None, "none") and architecture is not None:
        place, config = source, _build_named_config(architecture)
    else:
        given = weights is not None and weights != "none" and not weights.endswith(".safetensors")
        place = str(Path(str(weights)).expanduser()) if given else source
        config = _load_config(place)
    dtype = torch.float32 if weights == "none" else _find_stored_dtype(config, Path(place))
    if options.dtype != "auto":
        dtype = getattr(torch, options.dtype)

    def outline(config: Any, *tokenizer: Any) -> LanguageModelBackbone:
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config, dtype=dtype)
        _quantize(module, options)
        return build_language_backbone(module, *tokenizer)

    if levels is None:
        return outline(config, *load_tokenizer(place, download=False))
    part = outline(_keep_first_layers(config, levels))
    if len(part.levels) == levels:
        return part
    whole = outline(config)  # some layers are no level of their own
    layers = whole.count_layers(levels) if isinstance(whole, LlamaBackbone) else levels
    return outline(_keep_first_layers(config, layers))


def _build_named_config(architecture: Mapping[str, Any]) -> Any:
    """Build the configuration of a short name; its model type is LLaMA unless it has another."""
    fields = dict(architecture)
    return AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)


def _find_stored_dtype(config: Any, folder: Path) -> torch.dtype:
    """Return the data type of stored weights: that of the configuration, or of the first weight in the folder."""
    stored = config.get_text_config().dtype or config.dtype
    if stored is not None:
        return stored if isinstance(stored, torch.dtype) else getattr(torch, stored)
    for file in sorted(folder.glob("*.safetensors")):
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                dtype = opened.get_slice(name)[:0].dtype
                if dtype.is_floating_point:
                    return dtype
    return torch.float32


def _keep_first_layers(config: Any, levels: int) -> Any:
    """Return the configuration with fewer layers, and with what it lists for each layer cut to them."""
    config = deepcopy(config)
    text = config.get_text_config()
    lists = {name: value for name, value in vars(text).items() if isinstance(value, list)}
    for name, value in lists.items():
        if len(value) == text.num_hidden_layers:
            setattr(text, name, value[:levels])
    text.num_hidden_layers = levels
    if getattr(text, "num_kv_shared_layers", 0):
        text.num_kv_shared_layers = 0  # the last layers, which are cut
    return config


def wrap_llama(module: Any) -> LanguageModelBackbone | None:
    """Return the backbone of a causal language model, with the tokenizer of its folder or repository, or None."""
    if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is None:
        return None
    place = module.config.name_or_path
    if not place:
        return build_language_backbone(module)
    backbone = build_language_backbone(module, *load_tokenizer(place))
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
    require_model_source("llama", source)
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
