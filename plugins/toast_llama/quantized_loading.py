"""Quantization of a language model's linear layers, one at a time: in memory, or while transformers reads its weights.

transformers passes every stored weight through its quantizer before it reads the next one. The quantizer that is
registered here puts a `QuantizedLinear` in the place of the layer. So the model never exists in full precision, and
renamed, merged and tied weights are handled as for any other model.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from toast_cli.plugin import WEIGHT_FORMATS, FormatName, QuantizedLinear, UsageError, replace_layers, require_format
from toast_llama.decoder import find_body

QUANTIZER = "toast-layers"
"""Name of the quantizer in transformers."""


def list_quantizable_layers(module: PreTrainedModel, kind: FormatName) -> dict[str, nn.Linear]:
    """Return the linear layers of the decoder that a format supports, by name.

    These are not: the embedding, the norms, the output layer, layers with a product of their own, and experts of a
    mixture whose weights are one tensor.

    Raises:
        UsageError: There are none.
    """
    supports = WEIGHT_FORMATS[kind].supports
    decoder = {id(part) for part in find_body(module).modules()} - {id(module.get_output_embeddings())}
    found = {
        name: part
        for name, part in module.named_modules()
        if id(part) in decoder and type(part) is nn.Linear and supports(part.out_features, part.in_features)
    }
    if not found:
        raise UsageError(
            f"{type(module).__name__} cannot be quantized to {kind}.",
            "None of its decoder's layers is a linear layer of a supported size.",
            "Leave backbone.quantize out, or choose another model.",
            code="backbone.cannot-quantize",
        )
    return found


def quantize_model(module: PreTrainedModel, kind: FormatName) -> None:
    """Replace the linear layers of a model by quantized ones, one after another.

    On the meta device, only their shapes are computed, which needs no library.

    Raises:
        UsageError: The model has no such layers, or the format's library is not installed.
    """
    replace_layers(
        module, lambda layer: QuantizedLinear.from_linear(layer, kind), dict(list_quantizable_layers(module, kind))
    )


def load_quantized_model(place: str, kind: FormatName, **settings: Any) -> PreTrainedModel:
    """Load the model of a folder or a Hugging Face id, with `settings` of transformers; quantize layers as it is read.

    Raises:
        UsageError: The format's library is not installed.
    """
    require_format(kind)
    module: Any = AutoModelForCausalLM.from_pretrained(place, quantization_config=LayerConfig(kind), **settings)
    module.hf_quantizer.remove_quantization_config(module)  # it is no part of the model: files() would describe it
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            vars(part.config).pop("_is_quantized", None)
    loaded: PreTrainedModel = module
    return loaded


@register_quantization_config(QUANTIZER)
class LayerConfig(QuantizationConfigMixin):
    """The configuration of `LayerQuantizer`."""

    def __init__(self, kind: FormatName = "nf4", **_: Any) -> None:
        self.quant_method: Any = QUANTIZER
        self.kind: FormatName = kind


@register_quantizer(QUANTIZER)
class LayerQuantizer(HfQuantizer):
    """The quantizer that transformers asks while it reads weights."""

    quantization_config: LayerConfig
    is_trainable = True

    def is_serializable(self) -> bool:
        """Return False: exports of toast write the packed weights."""
        return False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        self._names = frozenset(list_quantizable_layers(model, self.quantization_config.kind))

    def param_needs_quantization(self, model: Any, param_name: str, **others: Any) -> bool:
        """Return whether a parameter is the weight of a layer to quantize."""
        layer, _, part = param_name.rpartition(".")
        return part == "weight" and layer in self._names

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation that quantizes a weight."""
        return _QuantizeLayer(self.quantization_config.kind)


class _QuantizeLayer(ConversionOps):
    """Replace a layer by a quantized one with the weight that was read."""

    def __init__(self, kind: FormatName) -> None:
        self.kind = kind

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **context: Any,
    ) -> dict[str, Any]:
        """Quantize the only tensor given, and return no tensor that remains to be stored."""
        (found,) = input_dict.values()
        model, full_name, missing = (context[name] for name in ("model", "full_layer_name", "missing_keys"))
        name = full_name.removesuffix(".weight")
        weight = found[0] if isinstance(found, list) else found
        quantized: Any = QuantizedLinear.from_weight(weight, model.get_submodule(name).bias, self.kind)
        quantized._is_hf_initialized = True
        model.set_submodule(name, quantized)
        if missing is not None:
            missing.discard(full_name)
        return {}
