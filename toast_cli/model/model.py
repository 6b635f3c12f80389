"""The model of a recipe: backbone, method and task head."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Card, Trace
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.methods.peft_injection import (
    disable_peft_layers,
    merge_peft_layers,
    merge_peft_layers_in_place,
    remove_peft_layers,
)
from toast_cli.model.answer_ends import find_answer_ends
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.steering import PassOutputs, Steering, run_one_pass
from toast_cli.tasks.base import EpochSelection, Objective
from toast_cli.tasks.language import LanguageModeling
from toast_cli.tasks.output_rows import (
    disable_output_rows,
    get_merged_output_layer,
    merge_output_rows,
    remove_output_rows,
)
from toast_cli.utils.errors import ToastError, UsageError, require_type
from toast_cli.utils.tensor_fingerprints import hash_tensors

NETWORK_PREFIX = "adapted.network."
"""Prefix of the backbone's own tensors within a model."""


@dataclass(frozen=True)
class BackboneSnapshot:
    """The fingerprint of a backbone without a method, and the ids of its tensors."""

    fingerprint: str
    tensors: frozenset[int]

    @classmethod
    def from_backbone(cls, backbone: Backbone) -> BackboneSnapshot:
        """Return the snapshot of a backbone, without its unused parts."""
        unused = {id(tensor) for part in backbone.unused_parts for tensor in _list_tensors(part)}
        state = backbone.module.state_dict(keep_vars=True)
        used = {name: tensor for name, tensor in state.items() if id(tensor) not in unused}
        return cls(hash_tensors(used), frozenset(map(id, _list_tensors(backbone.module))) - unused)


@dataclass(frozen=True)
class BuiltBackbone:
    """A backbone that is already in memory, and its snapshot."""

    backbone: Backbone
    stock: BackboneSnapshot

    @classmethod
    def from_backbone(cls, backbone: Backbone) -> BuiltBackbone:
        """Return the backbone with its snapshot."""
        return cls(backbone, BackboneSnapshot.from_backbone(backbone))

    def share(self) -> BuiltBackbone:
        """Return a backbone with modules of its own and the same tensors, without the layers of PEFT.

        A method can add layers to it, and hooks, that calls of the given backbone do not see.
        """
        shared = [*_list_tensors(self.backbone.module), *filter(None, [self.backbone.tokenizer])]
        backbone = deepcopy(self.backbone, {id(part): part for part in shared})
        remove_peft_layers(backbone.module)
        remove_output_rows(backbone.module)
        return BuiltBackbone(backbone, self.stock)

    def copy(self) -> BuiltBackbone:
        """Return a backbone with tensors of its own."""
        backbone = deepcopy(self.backbone)
        return BuiltBackbone(backbone, replace(self.stock, tensors=frozenset(map(id, _list_tensors(backbone.module)))))


def _list_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class Model(nn.Module):
    """An adapted backbone with a task head.

    Args:
        adapted: the backbone with a method.
        objective: the task's head, loss and metrics.
        stock: the snapshot of the backbone before the method was added.
    """

    def __init__(self, adapted: AdaptedModel, objective: Objective, stock: BackboneSnapshot) -> None:
        super().__init__()
        self.adapted = adapted
        self.objective = objective
        self.head = objective.head
        self.stock = stock
        self.backbone_fingerprint = stock.fingerprint
        named = [*self.adapted.named_parameters(prefix="adapted"), *self.adapted.named_buffers(prefix="adapted")]
        named += self.head.named_buffers(prefix="head")
        unused = {id(tensor) for part in adapted.backbone.unused_parts for tensor in _list_tensors(part)}
        self._unused = frozenset(name for name, tensor in named if id(tensor) in unused)
        self._added = frozenset(name for name, tensor in named if id(tensor) not in stock.tensors) - self._unused
        for part in adapted.backbone.unused_parts:
            part.requires_grad_(False)

    @property
    def backbone(self) -> Backbone:
        """Return the backbone."""
        return self.adapted.backbone

    @property
    def trains_backbone(self) -> bool:
        """Return whether weights of the backbone itself are trained."""
        return any(id(weight) in self.stock.tensors for weight in self.get_trained_parameters().values())

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits."""
        if not self.objective.reads_levels:
            return self.head(self.adapted.features(inputs))
        return self._run_passes(inputs)[0]

    def forward_passes(
        self, inputs: Any, first_trace: Trace | None = None, last_trace: Trace | None = None
    ) -> tuple[Tensor, PassOutputs]:
        """Return the logits and the outputs of both passes."""
        return self._run_passes(inputs, first_trace, last_trace)

    def _run_passes(
        self, inputs: Any, first_trace: Trace | None = None, last_trace: Trace | None = None
    ) -> tuple[Tensor, PassOutputs]:
        two = self.adapted.steering is not None
        counts = last_trace if two else first_trace
        if self.objective.reads_levels:
            counts = counts or Trace()
            counts.levels = True
            first_trace, last_trace = (first_trace, counts) if two else (counts, last_trace)
        passes = self.adapted(inputs, first_trace, last_trace)
        return self.apply_head(passes, counts, inputs), passes

    def forward_plain(self, inputs: Any) -> Tensor:
        """Return the logits of a single pass without feedback."""
        trace = Trace(levels=True) if self.objective.reads_levels else None
        return self.apply_head(run_one_pass(self.backbone, inputs, trace), trace, inputs)

    def apply_head(self, passes: PassOutputs, trace: Trace | None, inputs: Any) -> Tensor:
        """Return the logits of the last pass; `trace` has its levels if the objective reads them."""
        levels = trace.outputs if trace is not None else ()
        return self.head(self.objective.features(self.backbone, passes.last, levels, inputs))

    def initialize_method(
        self, start: Callable[[Any, AdaptedModel, Iterable[Any]], None], options: Any, batches: Iterable[Any]
    ) -> None:
        """Compute a method's initial weights with `start`, also on a sharded model."""
        start(options, self.adapted, batches)

    def compute_features(self, inputs: Any, *, first_pass: bool = False) -> Tensor:
        """Return the pooled features of the last pass, or of the first, which no feedback has reached."""
        if first_pass and self.adapted.steering is not None:
            return run_one_pass(self.backbone, inputs).last.pooled
        return self.adapted.features(inputs)

    def compute_outputs(self, pooled: Tensor) -> Tensor:
        """Return the logits of pooled features."""
        return self.head(pooled)

    def get_trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def get_frozen_additions(self) -> dict[str, Tensor]:
        """Return the tensors of method and head that are not trained, such as Lite's path; an adapter needs them."""
        state, trained = self.state_dict(), self.get_trained_parameters()
        return {name: state[name] for name in sorted(self._added) if name in state and name not in trained}

    def get_network_tensors(self) -> dict[str, Tensor]:
        """Return the backbone's weights and buffers by their name in the model; tied weights appear once."""
        state = self.state_dict()
        names = (name for name, _ in (*self.named_parameters(), *self.named_buffers()) if name not in self._unused)
        return {name: state[name] for name in names if name.startswith(NETWORK_PREFIX) and name in state}


class PlainPass(nn.Module):
    """A plain pass of a model, without the layers that a method has added."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of the plain pass."""
        network = self.model.backbone.module
        with disable_peft_layers(network), disable_output_rows(network):
            return self.model.forward_plain(inputs)


def build_model(
    recipe: Recipe,
    classes: tuple[str, ...],
    files: Mapping[str, str] | None = None,
    built: BuiltBackbone | None = None,
) -> Model:
    """Build the backbone, the method and the head of a recipe.

    With `files` (see `Backbone.files`), the backbone is built from them; with `built`, it is that one. Random weights
    follow from the recipe's seed. This includes the weights of a randomly initialized backbone, so an adapter trained
    on one can be loaded again.

    Raises:
        UsageError: the method trains nothing.
        ToastError: a name is not registered, or the backbone's weights cannot be found.
    """
    torch.manual_seed(recipe.seed)
    plugins = recipe.plugins
    card, options, packages = plugins.backbone, recipe.backbone, plugins.packages
    if built is not None:
        backbone = built.backbone
    else:
        backbone = _rebuild_backbone(card, options, files) if files else card.build(options)
    require_type(backbone, Backbone, f"'build' of the backbone '{options.name}'", packages.get("backbone", ""))
    if backbone.preprocessing is not None:
        mean, std = recipe.images.normalization(backbone.preprocessing.mean, backbone.preprocessing.std)
        backbone.preprocessing = replace(backbone.preprocessing, mean=mean, std=std)
    backbone.checkpointing = recipe.training.checkpoint_gradients
    stock = BackboneSnapshot.from_backbone(backbone) if built is None else built.stock
    adapted = plugins.method.build(recipe.method, backbone)
    require_type(adapted, AdaptedModel, f"'build' of the method '{recipe.method.name}'", packages.get("method", ""))
    objective = plugins.task.build(recipe.task, backbone, classes)
    require_type(objective, Objective, f"'build' of the task '{recipe.task.name}'", packages.get("task", ""))
    if isinstance(objective, LanguageModeling):
        objective.ends = find_answer_ends(backbone.tokenizer, getattr(recipe.dataset, "template", None))
    if recipe.pretuning is None:
        objective.metrics = {
            name: partial(metric.build, classes) for name, metric in plugins.metrics.items() if metric.needs == "logits"
        }
    if (select := getattr(recipe.task, "select", None)) is not None:
        objective.selection = EpochSelection(select, plugins.task.list_selectable_metrics(plugins.metrics)[select])
    model = Model(adapted, objective, stock)
    if not model.get_trained_parameters():
        raise UsageError(
            f"The method '{recipe.method.name}' trains nothing on {recipe.backbone.name} for {recipe.task.name}.",
            "It trains only a new head, and this task uses the head of the model.",
            "Choose toast, toast-lite, lora, peft:KIND or full.",
            code="method.trains-nothing",
        )
    return model


def _rebuild_backbone(card: Card, options: Any, files: Mapping[str, str]) -> Backbone:
    if card.rebuild is None or any(Path(name).name != name or name.startswith(".") for name in files):
        raise ToastError(
            "The exported file is damaged, or was written by another version of toast.",
            f"'{card.name}' cannot be built from {', '.join(list(files)[:3])}.",
            "Export it again.",
            code="export.damaged",
        )
    with tempfile.TemporaryDirectory(prefix="toast-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return card.rebuild(options, Path(folder))


def fold_model(model: Model) -> Model:
    """Return the model for inference, with one matrix per level between the passes (see `steering.folding`).

    It shares the weights that folding does not change with the given model.

    Raises:
        UsageError: the model has no feedback path.
    """
    steering = model.adapted.steering
    if not isinstance(steering, Steering):
        raise UsageError("The model has no feedback path, so it cannot be folded.", code="method.no-feedback-path")
    path = FoldedSteering(steering, model.backbone)
    return Model(AdaptedModel(model.backbone, path.parameters(), path), model.objective, model.stock).eval()


def merge_model(model: Model) -> Model:
    """Return a copy of the model, for inference, with PEFT's layers and trained output rows merged into its backbone.

    Raises:
        UsageError: the PEFT layers cannot be merged.
    """
    merged = deepcopy(model).eval()
    merge_peft_layers_in_place(merged.backbone.module)
    merge_output_rows(merged.backbone.module, untie=True)
    return merged.requires_grad_(False)


def find_trained_output_layer(model: Model) -> tuple[str, Tensor] | None:
    """Return the name of the output layer with trained rows and its weight `[V, d]` with them; None without any."""
    return get_merged_output_layer(model.backbone.module)


def get_merged_state_dict(model: Model) -> dict[str, Tensor]:
    """Return the backbone's tensors by their names in its library, with PEFT layers and trained output rows merged.

    Tied weights appear once.

    Raises:
        UsageError: the PEFT layers or the output rows cannot be merged.
    """
    network = merge_peft_layers(model.backbone.module)
    merge_output_rows(network)
    state = network.state_dict()
    names = (name for name, _ in (*network.named_parameters(), *network.named_buffers()))
    return {name: state[name] for name in names if name in state}


def count_elements(tensors: Iterable[Tensor]) -> int:
    """Return the total number of elements of the tensors."""
    return sum(tensor.numel() for tensor in tensors)


@torch.no_grad()
def count_flops(model: Model) -> dict[str, Any]:
    """Return the counted FLOPs per image (or token) of the model, and of one plain pass with the same head.

    The plain pass is the library's own forward pass, without the layers that the method added.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which models alone do not need

    was_training, trained = model.training, list(model.get_trained_parameters().values())
    model.eval()
    checkpointed, model.backbone.checkpointing = (
        model.backbone.checkpointing,
        False,
    )  # recomputation costs FLOPs in training only
    example = send_to_device(model.backbone.example(1), next(model.parameters()).device)
    for weight in trained:  # the counter hooks into gradients, and fails on a module that returns one of its weights
        weight.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as adapted_flops:
            model(example)
        network = model.backbone.module
        with disable_peft_layers(network), disable_output_rows(network), FlopCounterMode(display=False) as plain_flops:
            model.forward_plain(example)
    finally:
        for weight in trained:
            weight.requires_grad_(True)
        model.backbone.checkpointing = checkpointed
    model.train(was_training)
    unit, units = ("token", example["input_ids"].numel()) if model.backbone.preprocessing is None else ("image", 1)
    return {
        "flops": adapted_flops.get_total_flops() // units,
        "flops_plain": plain_flops.get_total_flops() // units,
        "flops_per": unit,
    }
