"""The run as an export stores it, put together in memory: folded if wanted, and rounded to a type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from toast_cli import registry
from toast_cli.backbones.base import Backbone, Card
from toast_cli.export.base import Outputs, Wanted
from toast_cli.export.verification_outputs import Graph, features_of, wanted_of
from toast_cli.model.model import folded, plain_network
from toast_cli.steering.steering import Steering
from toast_cli.storage.load_model import Loaded
from toast_cli.storage.pretuned import feedback_tensors


def as_stored(loaded: Loaded, wanted: Wanted, graph: bool, dtype: str) -> Callable[[dict[str, Tensor]], Outputs]:
    """The run with everything that an export holds folded, if wanted, and rounded to a type, but never written.

    A graph also computes in that type; what other formats hold is computed with in float32.
    """
    kind: torch.dtype = getattr(torch, dtype)
    model = loaded.model
    if wanted.part == "backbone":
        network = {name: _rounded(tensor, kind) for name, tensor in plain_network(model).items()}
        refilled = _refilled(loaded, network)
        return lambda named: {"features": features_of(refilled, named)}
    if wanted.fold and isinstance(model.adapted.steering, Steering):
        model = folded(model)
    # Copied last: a model knows what its method added by telling its tensors from the backbone's, and a copy's are
    # all new, so that folding one would take the whole backbone for part of the adapter.
    model = deepcopy(model)
    if graph:
        shell: Graph = Graph(model, kind, wanted.maps, normalize=False)
        return shell.run
    held: dict[str, Tensor] = {**model.trained(), **model.frozen_additions()}
    if wanted.part == "artifact":
        assert isinstance(model.adapted.steering, Steering)
        held = feedback_tensors(model.adapted.steering)
    elif wanted.part == "full":
        held |= model.network_tensors()
    for tensor in held.values():
        tensor.data.copy_(_rounded(tensor.data, kind))
    return lambda named: wanted_of(model, wanted, named)


def _rounded(tensor: Tensor, kind: torch.dtype) -> Tensor:
    return tensor.to(kind).to(tensor.dtype) if tensor.is_floating_point() else tensor


def _refilled(loaded: Loaded, network: Mapping[str, Tensor]) -> Backbone:
    """The run's backbone, built anew around other numbers."""
    options = loaded.recipe.backbone.model_dump(mode="json")
    card: Card = registry.backbone_card(options["name"])
    backbone = card.build(card.options(**{**options, "weights": "none"}))
    backbone.module.float().load_state_dict(dict(network), strict=False)
    backbone.module.eval()
    return backbone
