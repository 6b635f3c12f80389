"""The stages of a timm model: what `feature_info` declares, checked against the shapes of a run without data."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from toast_cli.plugin import ToastError
from toast_convnet.feature_graph import FeatureGraph, GraphPart, SeveralOutputsError, trace_features
from toast_convnet.map_format import MapFormat, find_map_format

MIN_STAGES = 3
"""Fewer stages than this are one network that a signal enters at the image, and not the stages of the method."""


@dataclass(frozen=True)
class Stage:
    """A stage, from a map of `entry` format to a map of `exit` format with `width` channels.

    `reduction` is the size of the image relative to its map. A stage that `overwrites` its input must get a copy of it.
    """

    part: GraphPart
    entry: MapFormat
    exit: MapFormat
    width: int
    reduction: int
    overwrites: bool

    def run(self, module: nn.Module, map: Tensor) -> Tensor:
        """Return the map `[B, C', H', W']` at the end of the stage, given that before it."""
        return self.exit.to_map(self.part.run(module, self.entry.from_map(map)))


@dataclass(frozen=True)
class StagedNetwork:
    """The stages of a network; `tail` is what `forward_features` computes after the last one.

    `merged` are the declared stages that are no stage here: more than one map runs between them and the next.
    """

    stages: tuple[Stage, ...]
    tail: GraphPart
    tail_overwrites: bool
    head_width: int
    merged: tuple[str, ...]


@dataclass
class _Run:
    """The values of a run without data, the version of every tensor when it was made, and the pooled features."""

    values: dict[fx.Node, Any]
    versions: dict[fx.Node, tuple[int, ...]]
    pooled: Tensor

    def is_overwritten(self, node: fx.Node) -> bool:
        """Return whether a later operation writes into this value."""
        return _get_versions(self.values[node]) != self.versions[node]


def cut_into_stages(module: Any, size: tuple[int, int]) -> StagedNetwork:
    """Cut a timm model into the stages that its `feature_info` names, given the (height, width) of its images.

    If the end of a stage is inside a block, where more than one value is needed later, the stage ends with the last
    single map of its size before. Where there is none, it is merged with the next.

    Raises:
        ToastError: The model cannot be cut into stages of maps.
    """
    declared = list(getattr(module, "feature_info", ()) or ())
    name = type(module).__name__
    if not declared:
        raise refuse(name, "timm declares no stages for it (feature_info).")
    try:
        graph = trace_features(module, [info["module"] for info in declared])
    except SeveralOutputsError as error:
        raise refuse(name, "It ends with more than one map, and features are selected from a single one.") from error
    except fx.proxy.TraceError as error:
        why = "Its forward pass depends on the values of tensors or loops over them, so it cannot be cut into stages."
        raise refuse(name, why) from error
    except Exception as error:  # any other error of foreign code is no verdict on the network
        raise _build_unknown_error(name, "cannot be traced", error) from error
    try:
        run = _run_without_data(copy_without_data(module), graph, size)
    except Exception as error:  # any error of foreign code is no verdict on the network
        what = f"does not run on images of {size[0]} × {size[1]} pixels"
        raise _build_unknown_error(name, what, error) from error
    return _build_stages(name, declared, graph, run, size)


def refuse(name: str, reason: str) -> ToastError:
    """Return the error that a model cannot be steered."""
    return ToastError(
        f"This {name} cannot be steered.",
        f"TOAST adds its signals to the maps between stages. {reason}",
        "Choose a network with stages, such as resnet50 or convnext_t, or a vision transformer.",
        code="backbone.cannot-steer",
    )


def _build_unknown_error(name: str, what: str, error: Exception) -> ToastError:
    """Return the error of a network that fails in a way that says nothing about whether it can be steered."""
    return ToastError(
        f"This {name} {what}.",
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "Choose a network with stages, such as resnet50 or convnext_t, or a vision transformer.",
        code="backbone.cannot-run",
    )


def copy_without_data(module: nn.Module) -> nn.Module:
    """Return a copy of a module on the meta device: it has the shapes of the weights, but no data."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(module, memo)


def make_images_without_data(module: nn.Module, size: tuple[int, int]) -> Tensor:
    """Return images `[2, 3, height, width]` on the meta device, in the data type of a module."""
    return torch.empty(2, 3, *size, device="meta", dtype=next(module.parameters()).dtype)


@torch.no_grad()
def accepts_size(module: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether a model accepts images of this (height, width)."""
    network: Any = copy_without_data(module)
    try:
        network.forward_head(network.forward_features(make_images_without_data(network, size)), pre_logits=True)
    except Exception:  # any failure means that it does not
        return False
    return True


@torch.no_grad()
def _run_without_data(module: Any, graph: FeatureGraph, size: tuple[int, int]) -> _Run:
    values: dict[fx.Node, Any] = {}
    versions: dict[fx.Node, tuple[int, ...]] = {}

    def record(node: fx.Node, value: Any) -> None:
        values[node], versions[node] = value, _get_versions(value)

    images = make_images_without_data(module, size)
    record(graph.nodes[0], images)
    features = graph.extract_part(0, len(graph.nodes) - 1).run(module, images, record)
    return _Run(values, versions, module.forward_head(features, pre_logits=True))


def _build_stages(
    name: str, declared: Sequence[dict[str, Any]], graph: FeatureGraph, run: _Run, size: tuple[int, int]
) -> StagedNetwork:
    stages: list[Stage] = []
    merged: list[str] = []
    at, entry, reduction = 0, MapFormat(), 1
    for info in declared:
        found = _find_end(info, declared, graph, run, at, size)
        if found is None:
            merged.append(str(info["module"]))
            continue
        end, exit = found
        if info["reduction"] % reduction:
            raise refuse(name, f"Stage '{info['module']}' divides the image by {info['reduction']}, not an integer.")
        overwrites = run.is_overwritten(graph.cuts[at])
        width = exit.to_map(run.values[graph.cuts[end]]).shape[1]
        stages.append(Stage(graph.extract_part(at, end), entry, exit, width, info["reduction"], overwrites))
        at, entry, reduction = end, exit, info["reduction"]
    if any(stage.exit.grid for stage in stages) and stages[0].reduction == stages[-1].reduction:
        raise refuse(name, "Its blocks pass on tokens of one size, as a plain transformer's do: it has no stages.")
    if merged and merged[-1] == declared[-1]["module"]:
        raise refuse(name, f"Its last stage, '{merged[-1]}', does not put out one map of the size that timm declares.")
    if len(stages) < min(MIN_STAGES, len(declared)):
        raise refuse(name, f"Only {len(stages)} of its {len(declared)} stages pass a single map to the next.")
    if run.pooled.ndim != 2:
        raise refuse(name, "It does not pool its last map to one vector per image.")
    tail = graph.extract_part(at, len(graph.nodes) - 1)
    return StagedNetwork(tuple(stages), tail, run.is_overwritten(graph.cuts[at]), run.pooled.shape[1], tuple(merged))


def _find_end(
    info: dict[str, Any],
    declared: Sequence[dict[str, Any]],
    graph: FeatureGraph,
    run: _Run,
    after: int,
    size: tuple[int, int],
) -> tuple[int, MapFormat] | None:
    """Return the position and the format of the map that ends a stage, or None."""
    node = graph.outputs.get(info["module"])
    cells = tuple(-(-side // info["reduction"]) for side in size)
    for position, value in graph.cuts.items():
        if value is node and position > after:
            format = find_map_format(run.values[value], cells, info["num_chs"])
            if format is not None:
                return position, format
    limit = len(graph.nodes) if node is None or info is declared[-1] else list(graph.nodes).index(node)
    for position in sorted((each for each in graph.cuts if after < each < limit), reverse=True):
        format = find_map_format(run.values[graph.cuts[position]], cells, None)
        if format is not None:
            return position, format
    return None


def _get_versions(value: Any) -> tuple[int, ...]:
    tensors = value if isinstance(value, (tuple, list)) else [value]
    return tuple(each._version for each in tensors if isinstance(each, Tensor))
