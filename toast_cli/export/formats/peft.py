"""`peft`: a folder with an adapter that PEFT loads onto the stock backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.export.redact_paths import find_base_model, get_backbone_folder, redact_config
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.model.model import Model
    from toast_cli.storage.load_model import LoadedModel

WEIGHTS_FILE = "adapter_model.safetensors"
"""PEFT's name of the file with the tensors of an adapter."""
PREFIX = "base_model.model."
"""Prefix of the names of tensors in that file: where a `PeftModel` keeps its network."""

_REASONS = {
    "full": "It trains the weights of the backbone themselves: there is no adapter.",
    "linear": "It trains a head alone.",
    "vpt": "Its tokens are not layers of PEFT.",
}
"""Why runs of other methods are no adapters of PEFT."""


def check_peft(loaded: LoadedModel, wanted: ExportRequest) -> None:
    """Check that a run has layers of PEFT, on a backbone that its users can load.

    Raises:
        UsageError: It has none, or nobody else can load the backbone, or the head is no classifier of a timm model.
    """
    model, recipe = loaded.model, loaded.recipe
    if not hasattr(model.backbone.module, "peft_config"):
        other = "It adds no layers of PEFT to the backbone."
        if model.adapted.steering is not None:
            other = "Its second pass is not a layer that PEFT could add."
        raise UsageError(
            f"A run of '{recipe.method.name}' cannot be exported to peft.",
            _REASONS.get(recipe.method.name, other),
            "Use --format hf, or --format safetensors.",
            code="export.not-a-peft-adapter",
        )
    if recipe.backbone.weights == "none" or (find_base_model(loaded) or _name_local_base(loaded)) is None:
        raise UsageError(
            "This run cannot be exported to peft: PEFT has to load its backbone.",
            "The backbone has random weights, or is neither on the hub nor a file or folder of yours.",
            "Use --format hf, or --format safetensors --what full.",
            code="export.backbone-without-source",
        )
    if model.backbone.preprocessing is not None and _find_classifier(model) is None:
        raise UsageError(
            "This run cannot be exported to peft.",
            "For images, the head has to take the place of the classifier of a timm model.",
            "Use --format hf, or --format safetensors.",
            code="export.no-classifier",
        )


def write_peft(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write the tensors and the configuration as PEFT names them, and a model card.

    For a language model, tokenizer and generation settings are written too, see `save_text_settings`.
    """
    import torch
    from peft import get_peft_model_state_dict

    from toast_cli.model.model import find_trained_output_layer
    from toast_cli.storage.model_card import format_peft_card
    from toast_cli.utils.files import write_tensors, write_text

    model, dtype = loaded.model, getattr(torch, wanted.dtype)
    network: Any = model.backbone.module
    ((name, config),) = network.peft_config.items()
    tensors = dict(get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False))
    config = _sort_sets(config)
    base = find_base_model(loaded)
    config.inference_mode, config.base_model_name_or_path = True, base or _name_local_base(loaded)
    mapping = None
    if model.backbone.preprocessing is None:
        config.task_type = "CAUSAL_LM"
        if (output := find_trained_output_layer(model)) is not None:
            name, weight = output
            config.modules_to_save = [name.rpartition(".")[2]]
            tensors[f"{name}.weight"] = weight
    else:
        classifier = _find_classifier(model)
        assert classifier is not None
        config.modules_to_save = [classifier]
        tensors |= {f"{classifier}.{key}": tensor for key, tensor in model.head.state_dict().items()}
        mapping = {"base_model_class": type(network).__name__, "parent_library": type(network).__module__}
    path.mkdir()
    stored = {f"{PREFIX}{key}": tensor.detach().to(dtype).contiguous() for key, tensor in tensors.items()}
    write_tensors(path / WEIGHTS_FILE, stored, {"format": "pt"})
    config.save_pretrained(path, auto_mapping_dict=mapping)
    usage = _describe_usage(loaded, config.base_model_name_or_path, path)
    card = format_peft_card(loaded, redact_config(loaded.config), wanted.dtype, usage, base)
    write_text(path / "README.md", card)


def reopen_peft(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with PEFT onto the backbone as its library builds it."""
    from peft import PeftModel
    from safetensors import safe_open

    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    base: Any = _load_base(wanted, config)
    for classifier in config.get("modules_to_save") or () if config["task_type"] is None else ():
        with safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            base.reset_classifier(file.get_slice(f"{PREFIX}{classifier}.weight").get_shape()[0])
    model: Any = PeftModel.from_pretrained(base, path).eval()

    def run(named: dict[str, Tensor]) -> Outputs:
        return {"logits": model(named["image"]) if "image" in named else model(**named, use_cache=False).logits}

    return run


def _load_base(wanted: ExportRequest, config: Mapping[str, Any]) -> nn.Module:
    """Return the backbone: from a folder or the hub without code of toast, else as the run's recipe builds it."""
    options = dict(wanted.backbone_options or {})
    place = wanted.backbone_weights or config["base_model_name_or_path"]
    if config["task_type"] and not options.get("quantize") and not place.endswith(".safetensors"):
        from transformers import AutoModelForCausalLM

        plain: nn.Module = AutoModelForCausalLM.from_pretrained(place, dtype=options.get("dtype", "auto"))
        return plain
    from toast_cli import registry

    card = registry.load_backbone_card(options["name"])
    built: nn.Module = card.build(card.options(**options)).module
    return built


def _sort_sets(config: Any) -> Any:
    """Return a copy of a configuration of PEFT with lists instead of sets: the same run gives the same file."""
    config = copy(config)
    for field in fields(config):
        if isinstance(value := getattr(config, field.name), set):
            setattr(config, field.name, sorted(value))
    return config


def _name_local_base(loaded: LoadedModel) -> str | None:
    """Return the name of the folder of a backbone that is on no hub, without the path to it."""
    named = loaded.recipe.backbone
    place = named.weights or get_backbone_folder(named.name)
    return None if place is None else f"./{Path(place).name}"


def _find_classifier(model: Model) -> str | None:
    """Return the name of the classifier in timm's model, whose place the head of the run can take; None without one."""
    from torch import nn

    config: Any = getattr(model.backbone.module, "pretrained_cfg", None) or {}
    name = config.get("classifier")
    if not isinstance(name, str) or type(model.head) is not nn.Linear or model.objective.dense:
        return None
    return name if hasattr(model.backbone.module, "reset_classifier") else None


def _describe_usage(loaded: LoadedModel, base: str | None, path: Path) -> str:
    """Return how to load the adapter; for a language model, write its tokenizer and generation settings."""
    from toast_cli.export.hf_model import save_text_settings
    from toast_cli.storage.card_usage import PromptFormat, format_peft_image_usage, format_peft_text_usage

    backbone = loaded.model.backbone
    if backbone.preprocessing is None:
        prompt = PromptFormat(None, False) if backbone.tokenizer is None else save_text_settings(loaded, path)
        return format_peft_text_usage(base or "BACKBONE", prompt)
    timm_config: Any = getattr(backbone.module, "pretrained_cfg", {})
    name = ".".join(part for part in (timm_config.get("architecture"), timm_config.get("tag")) if part)
    named = loaded.recipe.backbone
    arguments = ", pretrained=True"
    if named.weights is not None:
        arguments += f', pretrained_cfg_overlay={{"file": "{base}"}}'
    if (size := getattr(named, "image_size", None)) is not None:
        arguments += f", img_size={size}"
    return format_peft_image_usage(name, len(loaded.classes), arguments, backbone.require_preprocessing())


FORMAT = ExportFormat(
    "",
    ("adapter",),
    write_peft,
    reopen_peft,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # PEFT computes with factors in float32
    loads="PEFT",
    check=check_peft,
)
