"""The structure of a vision encoder of transformers: its layers, their value projections, and what follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from toast_cli.plugin import ToastError

VALUE_NAMES = ("v_proj", "value")
"""Names of the value projection. Query projections have the same names with q."""

QUERY_NAMES = {"v_proj": "q_proj", "value": "query"}

FINAL_NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm", "rms_norm")
"""Names of the norm after the last layer."""


@dataclass(frozen=True)
class EncoderStructure:
    """The paths of the parts of an encoder: `layers` and `norm` in the model, `value` and `attention` in a layer."""

    layers: str
    norm: str
    attention: str
    value: str

    @property
    def adapter_targets(self) -> tuple[str, str]:
        """The names of the query and the value projection."""
        name = self.value.rpartition(".")[2]
        return QUERY_NAMES[name], name


def find_encoder(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return the part of a model that turns images into tokens, or None if the model does not read images.

    It is the model itself, the base of a model with a head, or the image tower of a model of images and texts.
    """
    tower = getattr(model, "vision_model", None)
    reads_images = model.main_input_name == "pixel_values"
    if isinstance(tower, PreTrainedModel) and (reads_images or hasattr(model, "text_model")):
        return tower
    if not reads_images or model.config.is_encoder_decoder:
        return None
    base = model.base_model
    return base if isinstance(base, PreTrainedModel) and not _find_final_norm(model) else model


def find_structure(encoder: PreTrainedModel) -> EncoderStructure:
    """Return the structure of an encoder.

    Raises:
        ToastError: The encoder is no sequence of equal layers with a value projection, or has no final norm.
    """
    lists = {path: part for path, part in encoder.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    layers = {
        path: (part, values)
        for path, part in lists.items()
        if len({type(layer) for layer in part}) == 1 and (values := _find_values(part[0]))
    }
    if not layers:
        raise build_unsteerable_error(encoder, "No layer of it has a value projection (v_proj or value) of its own.")
    if len(layers) > 1 or any(len(values) > 1 for _, values in layers.values()):
        raise build_unsteerable_error(
            encoder, "Its layers form stages or several parts. TOAST supports encoders that are one sequence of layers."
        )
    ((path, (part, (value,))),) = layers.items()
    width = getattr(encoder.config, "hidden_size", None)
    if any(getattr(layer.get_submodule(value), "in_features", None) != width for layer in part):
        raise build_unsteerable_error(encoder, "Its value projections do not read the whole width of a token.")
    norm = _find_final_norm(encoder)
    if norm is None:
        raise build_unsteerable_error(encoder, f"It has no final norm called {', '.join(FINAL_NORMS)}.")
    return EncoderStructure(path, norm, value.rpartition(".")[0], value)


def count_class_tokens(encoder: Any, prefix_tokens: int) -> int:
    """Return the number of class tokens, the first of the tokens that have no place in the image."""
    return min(getattr(encoder.embeddings, "n_cls_tokens", 1), prefix_tokens)


def build_unsteerable_error(module: nn.Module, why: str) -> ToastError:
    """Return the error of a vision model that cannot be steered."""
    return ToastError(
        f"{type(module).__name__} cannot be steered.",
        why,
        "Choose a ViT, DINOv2, DINOv3, SigLIP or CLIP model, or a timm model: toast backbones --search NAME",
        code="backbone.cannot-steer",
    )


def _find_final_norm(model: nn.Module) -> str | None:
    return next((name for name in FINAL_NORMS if isinstance(getattr(model, name, None), nn.Module)), None)


def _find_values(layer: nn.Module) -> list[str]:
    return [path for path, _ in layer.named_modules() if path.rpartition(".")[2] in VALUE_NAMES]
