"""The run as an export stores it, built in memory: folded if requested, and rounded to a data type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from toast_cli.backbones.base import Backbone
from toast_cli.export.base import ExportRequest, Outputs
from toast_cli.export.verification_outputs import ModelGraph, compute_backbone_features, compute_requested_outputs
from toast_cli.model.model import fold_model, get_merged_state_dict, merge_model
from toast_cli.steering.steering import Steering
from toast_cli.storage.load_model import LoadedModel
from toast_cli.storage.pretuned import get_feedback_tensors


def make_reference_runner(
    loaded: LoadedModel, wanted: ExportRequest, graph: bool, dtype: str
) -> Callable[[dict[str, Tensor]], Outputs]:
    """Return a function that runs the model with the weights of an export, without writing it.

    The exported weights are folded or merged if requested, and rounded to `dtype`. A graph also computes in `dtype`;
    other formats compute in float32.
    """
    kind: torch.dtype = getattr(torch, dtype)
    model = loaded.model
    if wanted.part == "backbone":
        network = {name: _round_to_dtype(tensor, kind) for name, tensor in get_merged_state_dict(model).items()}
        refilled = _rebuild_backbone(loaded, network)
        return lambda named: {"features": compute_backbone_features(refilled, named)}
    if wanted.merge:
        model = merge_model(model)
        for tensor in (*model.get_network_tensors().values(), *model.head.state_dict().values()):
            tensor.data.copy_(_round_to_dtype(tensor.data, kind))
        return lambda named: compute_requested_outputs(model, wanted, named)
    if wanted.fold and isinstance(model.adapted.steering, Steering):
        model = fold_model(model)
    # Copy after folding: a model finds the parameters of its method by tensor identity with the backbone's. In a copy
    # all tensors are new, so folding it would treat the whole backbone as part of the adapter.
    model = deepcopy(model)
    if graph:
        shell: ModelGraph = ModelGraph(model, kind, wanted.maps, normalize=False)
        return shell.run
    held: dict[str, Tensor] = {**model.get_trained_parameters(), **model.get_frozen_additions()}
    if wanted.part == "artifact":
        assert isinstance(model.adapted.steering, Steering)
        held = get_feedback_tensors(model.adapted.steering)
    elif wanted.part == "full":
        held |= model.get_network_tensors()
    for tensor in held.values():
        tensor.data.copy_(_round_to_dtype(tensor.data, kind))
    return lambda named: compute_requested_outputs(model, wanted, named)


def _round_to_dtype(tensor: Tensor, kind: torch.dtype) -> Tensor:
    return tensor.to(kind).to(tensor.dtype) if tensor.is_floating_point() else tensor


def _rebuild_backbone(loaded: LoadedModel, network: Mapping[str, Tensor]) -> Backbone:
    """Build the run's backbone with the weights `network`."""
    options = loaded.recipe.backbone.model_dump(mode="json", exclude={"quantize"})  # the weights are dequantized
    card = loaded.recipe.plugins.backbone
    backbone = card.build(card.options(**{**options, "weights": "none"}))
    backbone.module.float().load_state_dict(dict(network), strict=False)
    backbone.module.eval()
    return backbone
