"""What transformers needs to load an exported folder: a configuration and three models, this package's own code.

`toast_cli.register()` names them to transformers' Auto classes, so that no code comes from a hub.
"""

from __future__ import annotations

import json
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
from transformers.utils import cached_file

from toast_cli.model.model import Model
from toast_cli.storage.adapter import FULL_MODEL_FILE as WEIGHTS
from toast_cli.storage.adapter import AdapterConfig, save_adapter_file
from toast_cli.storage.load_model import load_model
from toast_cli.utils.errors import ToastError

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ToastConfig(PreTrainedConfig):
    """`toast` is the adapter's configuration: recipe, classes, preprocessing, fingerprint."""

    model_type = "toast"

    def __init__(self, toast: dict[str, Any] | None = None, **others: Any) -> None:
        if not isinstance(toast or {}, dict):
            raise ToastError(
                "The folder's config.json is damaged.",
                f"'toast' in it is a {type(toast).__name__}.",
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
    """A backbone with a method on it, whole, as transformers knows models. Made by `from_pretrained` alone."""

    config_class = ToastConfig
    base_model_prefix = "model"

    def __init__(self, config: ToastConfig, model: Model) -> None:
        super().__init__(config)
        self.model = model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *_: Any, config: ToastConfig | None = None, **settings: Any
    ) -> _ToastPreTrainedModel:
        """Load a folder, or a repository of the hub, that 'toast export --format hf' wrote.

        Args:
            pretrained_model_name_or_path: the folder or the repository.
            config: as it lies there, unless given.
            settings: `dtype`, `device_map` (one device), and where the hub is asked, transformers' own.

        Raises:
            ToastError: the weights are damaged or do not fit, or the model is of another kind.
        """
        place = str(pretrained_model_name_or_path)
        hub = {name: settings[name] for name in _HUB_ARGUMENTS if name in settings}
        config = config or ToastConfig.from_pretrained(place, **hub)
        kind = (config.architectures or [cls.__name__])[0]
        if kind != cls.__name__:
            raise ToastError(
                f"{place} holds a {kind}.",
                what_to_do=f"Use {kind.replace('ToastFor', 'AutoModelFor')}.",
                code="export.wrong-model-class",
            )
        classes, named = (
            list(config.toast.get("classes") or ()),
            {int(i): n for i, n in (config.id2label or {}).items()},
        )
        if classes and [named.get(index) for index in range(len(classes))] != classes:
            raise ToastError(
                f"The classes in {place} are not in the order of the model's outputs.",
                "id2label in config.json differs from the classes that were exported.",
                "Put id2label right, or export again.",
                code="export.class-order",
            )
        found = cached_file(place, WEIGHTS, **hub)
        if found is None:
            raise ToastError(
                f"There is no {WEIGHTS} in {place}.",
                what_to_do="Export the folder again.",
                code="export.missing-weights",
            )
        loaded = load_model(Path(found))
        if list(loaded.classes) != classes:
            raise ToastError(
                f"The classes in {place} are not those of its weights.",
                f"'classes' in config.json differs from what is recorded in {WEIGHTS}.",
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
        """Write configuration and weights as they were exported."""
        folder = Path(save_directory)
        config = AdapterConfig(**{**self.config.toast, "classes": tuple(self.config.toast["classes"])})
        save_adapter_file(folder / WEIGHTS, self.model, config, with_backbone=True)
        self.config.save_pretrained(folder)


class ToastForImageClassification(_ToastPreTrainedModel):
    """Images to logits, in the order of `config.id2label`."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Normalised images `[B, 3, H, W]` to logits `[B, classes]`."""
        logits = self.model(pixel_values.to(self.dtype))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class ToastForSemanticSegmentation(_ToastPreTrainedModel):
    """Images to logits for every pixel, in the order of `config.id2label`."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> SemanticSegmenterOutput:
        """Normalised images `[B, 3, H, W]` to logits `[B, classes, H, W]`; the label 255 is ignored."""
        logits = self.model(pixel_values.to(self.dtype))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class ToastForCausalLM(_ToastPreTrainedModel, GenerationMixin):
    """Token ids to logits; `generate` keeps a cache for either pass."""

    main_input_name = "input_ids"
    _writer: Any

    def __init__(self, config: ToastConfig, model: Model) -> None:
        super().__init__(config, model)
        self.__dict__["_writer"] = model.backbone.generator(lambda inputs: model.adapted(inputs).last.pooled)
        self.generation_config = self._writer.generation_config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **others: Any
    ) -> CausalLMOutputWithPast:
        """Token ids `[B, N]` to logits `[B, N, vocabulary]`."""
        out = self._writer(input_ids, attention_mask, **others)
        if labels is not None:
            flat = out.logits[:, :-1].flatten(0, 1)
            out.loss = torch.nn.functional.cross_entropy(flat.float(), labels[:, 1:].flatten())
        return out

    def get_output_embeddings(self) -> Any:
        """The stock model's output layer."""
        return self.model.backbone.module.get_output_embeddings()

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """As transformers'."""
        self._writer.generation_config = self.generation_config  # which a user may have set anew
        return self._writer.generate(*arguments, **settings)


def build_hf_config(model: Model, config: AdapterConfig) -> ToastConfig:
    """The configuration of a whole model; the language model's own beside it, as transformers' tools ask for it."""
    kind: type[_ToastPreTrainedModel] = ToastForImageClassification
    if model.backbone.preprocessing is None:
        kind = ToastForCausalLM
    elif model.objective.dense:
        kind = ToastForSemanticSegmentation
    own: Any = getattr(model.backbone.module, "config", None)
    text = own.get_text_config().to_dict() if hasattr(own, "get_text_config") else {}
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "bos_token_id", "eos_token_id")
    plain = json.loads(json.dumps(asdict(config)))
    return ToastConfig(plain, architectures=[kind.__name__], **{name: text[name] for name in kept if name in text})


def register() -> None:
    """Name the architecture `toast` to transformers' Auto classes; doing so twice does no harm."""
    AutoConfig.register(ToastConfig.model_type, ToastConfig, exist_ok=True)
    AutoModelForImageClassification.register(ToastConfig, ToastForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ToastConfig, ToastForSemanticSegmentation, exist_ok=True)
    AutoModelForCausalLM.register(ToastConfig, ToastForCausalLM, exist_ok=True)
