"""The configuration and the model classes with which transformers loads an export.

`toast_cli.register()` registers them with transformers' Auto classes, so no remote code is needed.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from toast_cli.data.text.chat_templates import find_end_text, format_prompt, set_chat_template
from toast_cli.data.text.turns import Turn
from toast_cli.model.generation import find_stop_tokens
from toast_cli.model.model import Model
from toast_cli.storage.adapter import FULL_MODEL_FILE as WEIGHTS
from toast_cli.storage.adapter import AdapterConfig, save_adapter_file
from toast_cli.storage.card_usage import EXAMPLE_QUESTION, PromptFormat
from toast_cli.storage.load_model import LoadedModel, load_model
from toast_cli.utils.errors import ToastError

SENTENCEPIECE_FILE = "tokenizer.model"
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


PROBLEM_TYPES = {"labels": "multi_label_classification", "number": "regression"}
"""What transformers calls the targets that are not one class per image."""


class ToastConfig(PreTrainedConfig):
    """Configuration of an exported model.

    Args:
        toast: Configuration of the adapter: recipe, classes, preprocessing and fingerprint.
        others: Options of `PreTrainedConfig`.

    Raises:
        ToastError: `toast` is not a mapping.
    """

    model_type = "toast"

    def __init__(self, toast: dict[str, Any] | None = None, **others: Any) -> None:
        if not isinstance(toast or {}, dict):
            raise ToastError(
                "The config.json of the export is damaged.",
                f"Expected its 'toast' entry to be a mapping, got {type(toast).__name__}.",
                "Export again.",
                code="export.damaged-config",
            )
        self.toast = toast or {}
        classes = self.toast.get("classes") or ()
        if classes:
            others.setdefault("id2label", dict(enumerate(classes)))
            others.setdefault("label2id", {name: index for index, name in enumerate(classes)})
        super().__init__(**others)


class _ToastPreTrainedModel(PreTrainedModel):
    """A full model (backbone, method and head) as a transformers model. Created only by `from_pretrained`."""

    config_class = ToastConfig
    base_model_prefix = "model"

    def __init__(self, config: ToastConfig, model: Model) -> None:
        super().__init__(config)
        self.model = model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *_: Any, config: ToastConfig | None = None, **settings: Any
    ) -> _ToastPreTrainedModel:
        """Load an export of 'toast export --format hf' from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: The folder or the repository.
            config: Configuration to use instead of the stored one.
            settings: `dtype`, `device_map` (a single device), and transformers' options for the Hub.

        Raises:
            ToastError: The weights are missing, damaged or do not match the configuration, or the model is of another
                class.
        """
        place = str(pretrained_model_name_or_path)
        hub = {name: settings[name] for name in _HUB_ARGUMENTS if name in settings}
        config = config or ToastConfig.from_pretrained(place, **hub)
        kind = (config.architectures or [cls.__name__])[0]
        if kind != cls.__name__:
            raise ToastError(
                f"{place} is a {kind}, not a {cls.__name__}.",
                what_to_do=f"Use {kind.replace('ToastFor', 'AutoModelFor')}.",
                code="export.wrong-model-class",
            )
        classes = list(config.toast.get("classes") or ())
        labels = {int(index): label for index, label in (config.id2label or {}).items()}
        if classes and [labels.get(index) for index in range(len(classes))] != classes:
            raise ToastError(
                f"The classes in {place} are in another order than the model's outputs.",
                "id2label in config.json does not match the exported classes.",
                "Correct id2label, or export again.",
                code="export.class-order",
            )
        found = cached_file(place, WEIGHTS, **hub)
        if found is None:
            raise ToastError(
                f"{place} contains no {WEIGHTS}.",
                what_to_do="Export the folder again.",
                code="export.missing-weights",
            )
        loaded = load_model(Path(found))
        if list(loaded.classes) != classes:
            raise ToastError(
                f"The classes in {place} do not match its weights.",
                f"'classes' in config.json differs from the classes in {WEIGHTS}.",
                "Export again.",
                code="export.class-mismatch",
            )
        model = cls(config, loaded.model)
        dtype, device = settings.get("dtype", settings.get("torch_dtype")), settings.get("device_map")
        if dtype not in (None, "auto"):
            model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        if isinstance(device, str | int | torch.device) and device != "auto":
            torch.nn.Module.to(model, torch.device(device))
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # type: ignore[override]
        """Write the configuration and the weights in the format of the export."""
        folder = Path(save_directory)
        config = AdapterConfig(**{**self.config.toast, "classes": tuple(self.config.toast["classes"])})
        save_adapter_file(folder / WEIGHTS, self.model, config, with_backbone=True)
        self.config.save_pretrained(folder)


class ToastForImageClassification(_ToastPreTrainedModel):
    """An image classifier. The logits are in the order of `config.id2label`.

    `config.problem_type` tells transformers that images have several labels, or that the outputs are numbers.
    """

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Return the logits `[B, classes]`, or the numbers, of normalized images `[B, 3, H, W]`."""
        logits = self.model(pixel_values.to(self.dtype))
        loss = None
        if labels is not None and self.model.objective.target == "class":
            loss = torch.nn.functional.cross_entropy(logits, labels)
        elif labels is not None:
            loss = self.model.objective.loss(logits, {"label": labels.to(logits.dtype)}) / len(labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class ToastForSemanticSegmentation(_ToastPreTrainedModel):
    """A segmentation model. The logits are in the order of `config.id2label`."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> SemanticSegmenterOutput:
        """Return the logits `[B, classes, H, W]` of normalized images `[B, 3, H, W]`. The label 255 is ignored."""
        logits = self.model(pixel_values.to(self.dtype))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class ToastForCausalLM(_ToastPreTrainedModel, GenerationMixin):
    """A causal language model. `generate` keeps one key-value cache per pass."""

    main_input_name = "input_ids"
    _writer: Any

    def __init__(self, config: ToastConfig, model: Model) -> None:
        super().__init__(config, model)
        self.__dict__["_writer"] = model.backbone.generator(lambda inputs: model.adapted(inputs).last.pooled)
        self.generation_config = build_generation_config(model, config.toast["recipe"]["dataset"].get("template"))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **others: Any
    ) -> CausalLMOutputWithPast:
        """Return the logits `[B, N, vocabulary]` of token ids `[B, N]`."""
        out = self._writer(input_ids, attention_mask, **others)
        if labels is not None:
            flat = out.logits[:, :-1].flatten(0, 1)
            out.loss = torch.nn.functional.cross_entropy(flat.float(), labels[:, 1:].flatten())
        return out

    def get_output_embeddings(self) -> Any:
        """Return the output layer of the underlying model."""
        return self.model.backbone.module.get_output_embeddings()

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """Generate token ids, as `GenerationMixin.generate`; texts at which it stops need no `tokenizer`."""
        self._writer.generation_config = self.generation_config  # the user may have replaced it
        settings.setdefault("tokenizer", self.model.backbone.tokenizer)
        return self._writer.generate(*arguments, **settings)


def build_hf_config(model: Model, config: AdapterConfig) -> ToastConfig:
    """Build the configuration of a full model.

    It includes the sizes and special tokens of a language model, which transformers' tools read.
    """
    kind: type[_ToastPreTrainedModel] = ToastForImageClassification
    if model.backbone.preprocessing is None:
        kind = ToastForCausalLM
    elif model.objective.dense:
        kind = ToastForSemanticSegmentation
    own: Any = getattr(model.backbone.module, "config", None)
    text = own.get_text_config().to_dict() if hasattr(own, "get_text_config") else {}
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "bos_token_id", "eos_token_id")
    sizes = {name: text[name] for name in kept if name in text}
    if model.backbone.tokenizer is not None:
        sizes["eos_token_id"] = build_generation_config(model, config.recipe["dataset"].get("template")).eos_token_id
    if model.objective.target in PROBLEM_TYPES:
        sizes["problem_type"] = PROBLEM_TYPES[model.objective.target]
        sizes["outputs"] = model.objective.describe_outputs()
    plain = json.loads(json.dumps(asdict(config)))
    return ToastConfig(plain, architectures=[kind.__name__], **sizes)


def build_generation_config(model: Model, template: str | None) -> Any:
    """Return the generation settings of a language model, which stop where answers end in training."""
    own: Any = model.backbone.module
    config, tokenizer = deepcopy(own.generation_config), model.backbone.tokenizer
    if tokenizer is not None:
        stops = find_stop_tokens(tokenizer, template, config.eos_token_id)
        config.eos_token_id = stops[0] if len(stops) == 1 else stops or None
        if (end_text := find_end_text(tokenizer, template)) is not None:
            own_texts = config.stop_strings or ()
            config.stop_strings = [*((own_texts,) if isinstance(own_texts, str) else own_texts), end_text]
    return config


def save_text_settings(loaded: LoadedModel, folder: Path) -> PromptFormat:
    """Write the tokenizer and the generation settings of a language model, and return the format of its prompts.

    The chat template is the format of the run, and generation stops where answers end in training.
    """
    model, template = loaded.model, getattr(loaded.recipe.dataset, "template", None)
    tokenizer: Any = model.backbone.tokenizer
    set_chat_template(tokenizer, template).save_pretrained(folder)
    # `save_pretrained` refuses a changed configuration with a temperature and no sampling, as some models have it.
    build_generation_config(model, template).to_json_file(folder / GENERATION_CONFIG_NAME)
    example = None if template is None else format_prompt([Turn("user", EXAMPLE_QUESTION)], tokenizer, template)
    return PromptFormat(example, find_end_text(tokenizer, template) is not None)


def save_merged_model(loaded: LoadedModel, dtype: torch.dtype, folder: Path) -> None:
    """Write a language model whose layers of PEFT are merged, as transformers writes it, in `dtype`.

    The end tokens of its configuration are those of its generation settings, for programs that read only the former.
    """
    module: Any = loaded.model.backbone.module.to(dtype)
    settings = build_generation_config(loaded.model, getattr(loaded.recipe.dataset, "template", None))
    module.config.eos_token_id = settings.eos_token_id
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    if module.config.tie_word_embeddings and inputs.weight is not outputs.weight:
        module.config.tie_word_embeddings = False  # the output layer was adapted, so it is no longer the embedding
    module.save_pretrained(folder)
    if loaded.model.backbone.tokenizer is not None:
        _copy_sentencepiece_model(loaded.model.backbone.tokenizer, folder)


def _copy_sentencepiece_model(tokenizer: Any, folder: Path) -> None:
    """Copy the file that the converter of llama.cpp reads for some families, such as Gemma, if the backbone has it.

    transformers writes only tokenizer.json.
    """
    with suppress(OSError):  # the tokenizer is from neither a folder nor the cache of the hub
        file = cached_file(tokenizer.name_or_path, SENTENCEPIECE_FILE, local_files_only=True)
        if file is not None and not (folder / SENTENCEPIECE_FILE).exists():
            shutil.copyfile(file, folder / SENTENCEPIECE_FILE)


def register() -> None:
    """Register the architecture `toast` with transformers' Auto classes. Repeated calls have no effect."""
    AutoConfig.register(ToastConfig.model_type, ToastConfig, exist_ok=True)
    AutoModelForImageClassification.register(ToastConfig, ToastForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ToastConfig, ToastForSemanticSegmentation, exist_ok=True)
    AutoModelForCausalLM.register(ToastConfig, ToastForCausalLM, exist_ok=True)
