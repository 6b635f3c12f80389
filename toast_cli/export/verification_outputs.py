"""Outputs of a run for named inputs, in the form that all export formats share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.attention.maps import AttentionRecorder
from toast_cli.backbones.base import Backbone
from toast_cli.export.base import ExportRequest, Outputs
from toast_cli.model.model import Model
from toast_cli.steering.steering import Steering, run_one_pass
from toast_cli.storage.pretuned import get_feedback_tensors


def to_backbone_inputs(named: dict[str, Tensor]) -> Any:
    """Convert named inputs to those of a backbone: an image tensor, or a mapping of text inputs."""
    return named.get("image", named)


def to_named_inputs(inputs: Any) -> dict[str, Tensor]:
    """Convert the inputs of a backbone to named inputs."""
    return dict(inputs) if not isinstance(inputs, Tensor) else {"image": inputs}


def has_dynamic_image_size(model: Model) -> bool:
    """Return whether a graph of this model supports images of any size.

    A segmentation model has a fixed input size, that of its sliding window: its pooling to a fixed number of cells
    cannot be exported with a dynamic size.
    """
    return model.backbone.any_image_size and not model.objective.dense


def compute_outputs(model: Model, named: dict[str, Tensor], maps: bool = False) -> Outputs:
    """Compute the `logits` and, with `maps`, the maps of the model.

    `similarity` is the similarity of every token or cell to xi. For image models with attention, it has the shape of
    the image grid, and the attention of the last level in both passes is added as `attention_first` and
    `attention_last` (see `attention.maps`).
    """
    inputs = to_backbone_inputs(named)
    if not maps:
        return {"logits": model(inputs)}
    if model.backbone.has_attention and model.backbone.preprocessing is not None:
        recorded = AttentionRecorder(model, checked=False).record(inputs)
        found = {"similarity": recorded.similarity, "attention_first": recorded.first, "attention_last": recorded.last}
        logits = recorded.logits
    else:
        logits, passes = model.forward_passes(inputs)
        found = {"similarity": passes.similarity}
    return {"logits": logits, **{name: tensor for name, tensor in found.items() if tensor is not None}}


def compute_artifact_outputs(model: Model, named: dict[str, Tensor]) -> Outputs:
    """Compute the steered `features` of a pre-tuned artifact, and add its tensors.

    The tensors are compared too, because the signals of an artifact can be zero.
    """
    assert isinstance(model.adapted.steering, Steering)
    return {
        "features": model.adapted.features(to_backbone_inputs(named)),
        **get_feedback_tensors(model.adapted.steering),
    }


def compute_backbone_features(backbone: Backbone, named: dict[str, Tensor]) -> Tensor:
    """Return the pooled features of a single pass of the backbone."""
    return run_one_pass(backbone, to_backbone_inputs(named)).last.pooled


def compute_requested_outputs(model: Model, wanted: ExportRequest, named: dict[str, Tensor]) -> Outputs:
    """Compute the outputs of the exported part of a run."""
    if wanted.part == "artifact":
        return compute_artifact_outputs(model, named)
    if wanted.part == "backbone":
        return {"features": compute_backbone_features(model.backbone, named)}
    return compute_outputs(model, named, wanted.maps)


class ModelGraph(nn.Module):
    """A model with named inputs and float32 outputs, for tracing.

    Args:
        model: The model; it is cast to `dtype`.
        dtype: Data type that the graph computes in.
        maps: Whether to output the maps.
        normalize: Whether to normalize images, which are pixels in [0, 1].
        resize: Resizes and crops images before they are normalized; None if they have the input size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: Model, dtype: torch.dtype, maps: bool, normalize: bool, resize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype, self.maps = dtype, maps
        self.normalize = normalize
        self.resize = resize
        if normalize:
            preprocessing = model.backbone.require_preprocessing()
            self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
            self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def run(self, named: dict[str, Tensor]) -> Outputs:
        """Return the outputs by name."""
        if "image" in named:
            image = named["image"]
            if self.resize is not None:
                image = self.resize(image)
            if self.normalize:
                image = (image - self.mean) / self.std
            named = {"image": image.to(self.dtype)}
        return {name: tensor.float() for name, tensor in compute_outputs(self.model, named, self.maps).items()}


class ImageGraph(ModelGraph):
    """A graph with images `[B, 3, H, W]` as input."""

    def forward(self, image: Tensor) -> Outputs:
        """Return the outputs by name."""
        return self.run({"image": image})


class TextGraph(ModelGraph):
    """A graph with token ids and an attention mask, both `[B, N]`, as input."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """Return the outputs by name."""
        return self.run({"input_ids": input_ids, "attention_mask": attention_mask})
