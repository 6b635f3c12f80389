"""The forward pass of a timm model as a sequence of stages, cut out of a trace of `forward_features`.

timm's `feature_info` names the modules whose outputs end a stage. Only modules that contain such a module are traced;
all others, whole stages as a rule, are single calls. Every stage is then run by calling the model's own modules in the
order of its own code, so that a network cut into stages computes what the network computes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn


@dataclass(frozen=True)
class GraphPart:
    """Consecutive operations of a traced forward pass, from one value to another.

    `steps` are operations with the values that no later operation needs. The modules are looked up in each call, so
    that layers that a method has replaced are used.
    """

    source: fx.Node
    result: fx.Node
    steps: tuple[tuple[fx.Node, tuple[fx.Node, ...]], ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphPart:
        """Return the part itself: it holds names of modules, not modules."""
        return self

    def run(self, module: nn.Module, value: Any, record: Callable[[fx.Node, Any], None] | None = None) -> Any:
        """Return the last value, given the first; call `record` with every operation and its value."""
        values: dict[fx.Node, Any] = {self.source: value}

        def look_up(node: fx.Node) -> Any:
            return operator.attrgetter(str(node.target))(module) if node.op == "get_attr" else values[node]

        for node, released in self.steps:
            values[node] = _call(module, node, _resolve(node.args, look_up), _resolve(node.kwargs, look_up))
            if record is not None:
                record(node, values[node])
            for each in released:
                del values[each]
        return look_up(self.result)

    def list_modules(self) -> list[str]:
        """Return the names of the modules that are called, in order."""
        return [str(node.target) for node, _ in self.steps if node.op == "call_module"]


class FeatureTracer(fx.Tracer):
    """A tracer of `forward_features` that records the outputs of modules by name.

    Args:
        names: The modules whose outputs end a stage.
    """

    traced_func_name = "forward_features"

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._containers = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
        self.outputs: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one call: it contains no end of a stage."""
        return module_qualified_name not in self._containers

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a call of a module and record its output."""
        output = super().call_module(m, forward, args, kwargs)
        self.outputs[self.path_of_module(m)] = output
        return output


@dataclass(frozen=True)
class FeatureGraph:
    """A traced forward pass: its operations in order, and the values at which it can be cut.

    `cuts` maps the position of an operation to the only value that later operations need. `outputs` are the values that
    modules return, by their names.
    """

    nodes: Sequence[fx.Node]
    result: fx.Node
    cuts: dict[int, fx.Node]
    outputs: dict[str, fx.Node]

    def extract_part(self, first: int, last: int) -> GraphPart:
        """Return the operations after position `first` up to and including `last`, both of which are cuts."""
        nodes, result = self.nodes[first + 1 : last + 1], self.cuts[last]
        inside = set(nodes) | {self.cuts[first]}
        last_use = {value: node for node in nodes for value in node.all_input_nodes if value in inside}
        released: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
        for value, node in last_use.items():
            if value is not result:
                released[node].append(value)
        return GraphPart(self.cuts[first], result, tuple((node, tuple(released[node])) for node in nodes))


class SeveralOutputsError(Exception):
    """`forward_features` returns more than one value."""


def trace_features(module: nn.Module, names: Sequence[str]) -> FeatureGraph:
    """Trace `forward_features` and find the values at which it can be cut.

    Raises:
        SeveralOutputsError: It returns more than one value.
        Exception: Its code cannot be traced.
    """
    tracer = FeatureTracer(names)
    graph = tracer.trace(module)
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = output.args[0]
    if not isinstance(result, fx.Node):
        raise SeveralOutputsError
    outputs = {name: value.node for name, value in tracer.outputs.items() if isinstance(value, fx.Proxy)}
    return FeatureGraph(nodes, result, _find_cuts(nodes, result), outputs)


def _find_cuts(nodes: Sequence[fx.Node], result: fx.Node) -> dict[int, fx.Node]:
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {
        node: max((position.get(user, len(nodes)) for user in node.users), default=position[node]) for node in nodes
    }
    last_use[result] = len(nodes)
    cuts: dict[int, fx.Node] = {}
    live: set[fx.Node] = set()
    for index, node in enumerate(nodes):
        live = {each for each in live | {node} if last_use[each] > index}
        if len(live) == 1:
            (cuts[index],) = live
    return cuts


def _resolve(argument: Any, look_up: Callable[[fx.Node], Any]) -> Any:
    """Return an argument with values in the place of nodes, and with lists that a network may change."""
    if isinstance(argument, fx.Node):
        return look_up(argument)
    if isinstance(argument, dict):
        return {name: _resolve(each, look_up) for name, each in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_resolve(each, look_up) for each in (argument.start, argument.stop, argument.step)))
    if isinstance(argument, (list, tuple)):
        resolved = [_resolve(each, look_up) for each in argument]
        return resolved if isinstance(argument, list) else tuple(resolved)
    return argument


def _call(module: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
