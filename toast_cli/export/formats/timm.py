"""`timm`: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` opens, with the head as classifier."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.storage.load_model import LoadedModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
POOLING_TOLERANCE = 1e-4
"""Largest difference of a logit, in standard deviations, between the run and timm's model with the head of the run."""


def check_timm(loaded: LoadedModel, wanted: ExportRequest) -> None:
    """Check that one pass of a model of timm with a linear classifier computes the run.

    Raises:
        UsageError: It does not; the message names the reason.
    """
    import timm
    from torch import nn

    from toast_cli.model.model import NETWORK_PREFIX

    model, method = loaded.model, loaded.recipe.method.name
    own = {*model.get_trained_parameters(), *model.get_frozen_additions()}
    if model.adapted.steering is not None:
        raise UsageError(
            f"A run of '{method}' cannot be exported to timm.",
            "It runs two passes, and what the second one gets depends on the image: no weights of one pass equal it.",
            "Use --format onnx, openvino or torch-export (both passes in one graph), or --format hf.",
            code="export.two-passes",
        )
    if not all(name.startswith((NETWORK_PREFIX, "head.")) for name in own):
        raise UsageError(
            f"A run of '{method}' cannot be exported to timm.",
            "It adds tensors that timm's model has no place for.",
            "Use --format onnx, openvino or hf.",
            code="export.not-a-timm-model",
        )
    network: Any = model.backbone.module
    architecture = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    if not architecture or not timm.is_model(architecture) or not hasattr(network, "reset_classifier"):
        raise UsageError(
            f"'{loaded.recipe.backbone.name}' cannot be exported to timm.",
            f"Its {type(network).__name__} is not a classifier that timm builds by a name.",
            "Use --format onnx, openvino or hf.",
            code="export.not-a-timm-model",
        )
    if type(model.head) is not nn.Linear or model.objective.dense:
        raise UsageError(
            f"A run of the task '{loaded.recipe.task.name}' cannot be exported to timm.",
            "Its head is not one linear layer on the pooled features, as classifiers of timm are.",
            "Use --format onnx, openvino or hf.",
            code="export.no-classifier",
        )
    build_data_config(loaded)


def build_data_config(loaded: LoadedModel) -> dict[str, Any]:
    """Return how timm prepares images for the run: size, mean, std, interpolation and crop.

    Raises:
        UsageError: timm's evaluation transform has no such resizing.
    """
    preprocessing, images = loaded.model.backbone.require_preprocessing(), loaded.recipe.images
    height, width = preprocessing.image_size
    crop_pct, crop_mode = preprocessing.crop_pct, str(preprocessing.crop_mode)
    if images.squash:
        crop_pct, crop_mode = 1.0, "squash"
    elif images.resize is not None:
        if height != width:
            raise UsageError(
                f"images.resize={images.resize} with an input of {height} × {width} pixels cannot be exported to timm.",
                "timm resizes to a share of the input size, and the two have other shapes.",
                "Use --format onnx --resize, which has the run's own preprocessing inside.",
                code="export.unsupported-crop",
            )
        crop_pct, crop_mode = height / images.resize, "center"
        if math.floor(height / crop_pct) != images.resize:  # a last place lost in the division
            crop_pct = math.nextafter(crop_pct, 0.0)
    return {
        "input_size": (3, height, width),
        "mean": tuple(preprocessing.mean),
        "std": tuple(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }


def write_timm(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write timm's configuration and weights, a model card and the script that classifies files.

    The configuration has the class names (`label_names`), and under `toast` what the script reads.

    Raises:
        UsageError: timm's model pools its features in another way than the run.
    """
    import timm
    import torch

    from toast_cli.export.graph import build_graph_metadata
    from toast_cli.export.redact_paths import find_base_model, redact_config
    from toast_cli.export.standalone_script import write_inference_script
    from toast_cli.storage.export_card import format_timm_card
    from toast_cli.utils.files import write_tensors, write_text

    network: Any = build_timm_classifier(loaded)
    metadata = build_graph_metadata(loaded, wanted)
    del metadata["toast"]
    extra = {"label_names": list(loaded.classes), "toast": metadata}
    if loaded.recipe.backbone.weights is not None:
        network.pretrained_cfg.pop("tag", None)  # it names the weights that timm publishes
    timm.models.save_for_hf(
        network.to(getattr(torch, wanted.dtype)),
        str(path),
        model_config=extra,
        data_config=build_data_config(loaded),
        safe_serialization=True,
    )
    write_tensors(path / WEIGHTS_FILE, network.state_dict(), {"format": "pt"})  # with the permissions of other files
    write_inference_script(loaded, path)
    card = format_timm_card(loaded, redact_config(loaded.config), wanted.dtype, find_base_model(loaded))
    write_text(path / "README.md", card)


def build_timm_classifier(loaded: LoadedModel) -> nn.Module:
    """Return a copy of the backbone with its classifier in timm's place of it, which is the head of the run.

    Raises:
        UsageError: timm's model pools its features in another way than the run, or its classifier is not linear.
    """
    from copy import deepcopy

    import torch
    from torch import nn

    model = loaded.model
    head = model.head
    assert isinstance(head, nn.Linear)
    network: Any = deepcopy(model.backbone.module).cpu().eval()
    network.reset_classifier(head.out_features)
    network.eval()
    layers = network.get_classifier()
    # A distilled model has two classifiers on two tokens, and averages their logits.
    for layer in layers if isinstance(layers, tuple) else (layers,):
        _fill_classifier(layer, head)
    with torch.no_grad():
        example = model.backbone.example(2)
        ours, theirs = model(example), network(example)
    unit = max(1.0, float(ours.std()))
    if ours.shape != theirs.shape or not float((ours - theirs).abs().max()) <= POOLING_TOLERANCE * unit:
        raise UsageError(
            f"'{loaded.recipe.backbone.name}' cannot be exported to timm.",
            f"timm's {type(network).__name__} puts more between its pooled features and its classifier than the run "
            "does.",
            "Use --format onnx, openvino or hf.",
            code="export.other-pooling",
        )
    return network


def _fill_classifier(layer: nn.Module, head: nn.Linear) -> None:
    """Copy the head into a classifier of timm: a linear layer, or one after a batch norm, which becomes the identity.

    A convolution of 1 × 1 pixels on the pooled features is a linear layer too.

    Anything else is left as it is, and found by the comparison that follows.
    """
    import torch
    from torch import nn

    linear = getattr(layer, "linear", getattr(layer, "l", layer))
    norm = getattr(layer, "bn", None)
    if not isinstance(linear, nn.Linear | nn.Conv2d) or linear.weight.numel() != head.weight.numel():
        return
    with torch.no_grad():
        linear.weight.copy_(head.weight.view_as(linear.weight))
        if linear.bias is not None:
            linear.bias.copy_(head.bias)
        if isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1)
            norm.bias.zero_()


def reopen_timm(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with timm, and check that it names its classes.

    Raises:
        ValueError: The number of names is not that of the classes.
    """
    import timm

    model: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    names = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))["label_names"]
    if len(names) != model.num_classes:
        raise ValueError(f"{len(names)} names of {model.num_classes} classes")

    def run(named: dict[str, Tensor]) -> Outputs:
        return {"logits": model(named["image"])}

    return run


FORMAT = ExportFormat(
    "",
    ("full",),
    write_timm,
    reopen_timm,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # computes in float32, whatever the stored type
    loads="timm",
    merges=lambda loaded: True,
    check=check_timm,
)
