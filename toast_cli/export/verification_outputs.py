"""What a run gives for inputs by name: the same, whatever it is exported as."""

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
    """Inputs as a backbone takes them: the images themselves, or a mapping of what belongs to texts."""
    return named.get("image", named)


def to_named_inputs(inputs: Any) -> dict[str, Tensor]:
    """The way back."""
    return dict(inputs) if not isinstance(inputs, Tensor) else {"image": inputs}


def has_dynamic_image_size(model: Model) -> bool:
    """Whether a graph of this model is one for images of every size.

    One that labels pixels is for its backbone's input size, the window that slides over larger images: what it pools
    to a fixed number of cells could not be translated otherwise.
    """
    return model.backbone.any_image_size and not model.objective.dense


def compute_outputs(model: Model, named: dict[str, Tensor], maps: bool = False) -> Outputs:
    """`logits` and, if asked for, what the model looked at.

    `similarity` is that of every token or cell to xi; where there is attention to show in images, it is laid out as the
    image's grid, beside `attention_first` and `attention_last`: the last level's, as `attention.maps` draws it.
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
    """Of a pre-tuned artifact: the steered `features`, and its own tensors, for a start may well steer nothing yet."""
    assert isinstance(model.adapted.steering, Steering)
    return {
        "features": model.adapted.features(to_backbone_inputs(named)),
        **get_feedback_tensors(model.adapted.steering),
    }


def compute_backbone_features(backbone: Backbone, named: dict[str, Tensor]) -> Tensor:
    """What a plain pass of the backbone puts out for the head."""
    return run_one_pass(backbone, to_backbone_inputs(named)).last.pooled


def compute_requested_outputs(model: Model, wanted: ExportRequest, named: dict[str, Tensor]) -> Outputs:
    """What the part of a run that is wanted gives for inputs by name."""
    if wanted.part == "artifact":
        return compute_artifact_outputs(model, named)
    if wanted.part == "backbone":
        return {"features": compute_backbone_features(model.backbone, named)}
    return compute_outputs(model, named, wanted.maps)


class ModelGraph(nn.Module):
    """A model as one graph: pixels (or token ids) in, logits and maybe maps out, all float32.

    Args:
        model: folded or not; it is cast to `dtype`.
        dtype: what the graph computes in.
        maps: whether maps come out, too.
        normalize: whether pixels come in as 0..1 and are normalised here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, dtype: torch.dtype, maps: bool, normalize: bool) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype, self.maps = dtype, maps
        self.normalize = normalize
        if normalize:
            seen = model.backbone.require_preprocessing()
            self.register_buffer("mean", torch.tensor(seen.mean)[:, None, None])
            self.register_buffer("std", torch.tensor(seen.std)[:, None, None])

    def run(self, named: dict[str, Tensor]) -> Outputs:
        """Outputs by name."""
        if "image" in named:
            image = named["image"]
            if self.normalize:
                image = (image - self.mean) / self.std
            named = {"image": image.to(self.dtype)}
        return {name: tensor.float() for name, tensor in compute_outputs(self.model, named, self.maps).items()}


class ImageGraph(ModelGraph):
    """A graph over images `[B, 3, H, W]`."""

    def forward(self, image: Tensor) -> Outputs:
        """Outputs by name."""
        return self.run({"image": image})


class TextGraph(ModelGraph):
    """A graph over token ids and their mask, both `[B, N]`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """Outputs by name."""
        return self.run({"input_ids": input_ids, "attention_mask": attention_mask})
