"""The cost of a method on a backbone that is not built: its outline on the meta device has shapes and no data.

Levels are alike in most language models, so a pass is measured with a few of them, and its cost is extrapolated to all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from toast_cli.backbones.base import Backbone
from toast_cli.backbones.quantized_linear import count_parameters
from toast_cli.model.model import BackboneSnapshot, BuiltBackbone, Model, PlainPass, build_model, count_elements
from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.memory import (
    Activations,
    MemoryByBatchSize,
    estimate_held_memory,
    extrapolate_to_levels,
    make_fake_tensors,
    measure_activations,
)
from toast_cli.training.plan.text_lengths import TextLength
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

MEASURED_LEVELS = (2, 4)
"""Numbers of levels with which a pass is measured. Both are even, as early and late feedback halve them."""


@dataclass(frozen=True)
class Outline:
    """A backbone on the meta device: `whole`, and `parts` with `MEASURED_LEVELS` if it has more."""

    whole: BuiltBackbone
    parts: tuple[BuiltBackbone, ...]

    @property
    def backbone(self) -> Backbone:
        """Return the whole backbone, without data."""
        return self.whole.backbone


@dataclass(frozen=True)
class OutlinedModel:
    """A method on an outline: the `whole` model for its sizes, and the models whose passes are measured."""

    whole: Model
    measured: tuple[Model, ...]


def build_outline(recipe: Recipe) -> Outline:
    """Build the outline of a recipe's backbone, which allocates nothing and reads no weights.

    Raises:
        ToastError: the configuration of the model cannot be loaded, or it cannot be steered.
    """
    make = recipe.plugins.backbone.outline
    assert make is not None, "only language models are planned by their outline"
    whole = _snapshot(make(recipe.backbone, None))
    if len(whole.backbone.levels) <= MEASURED_LEVELS[-1]:
        return Outline(whole, ())
    return Outline(whole, tuple(_snapshot(make(recipe.backbone, levels)) for levels in MEASURED_LEVELS))


def _snapshot(backbone: Backbone) -> BuiltBackbone:
    tensors = (*backbone.module.parameters(), *backbone.module.buffers())
    return BuiltBackbone(backbone, BackboneSnapshot("", frozenset(map(id, tensors))))  # there is no data to hash


def outline_model(recipe: Recipe, outline: Outline) -> OutlinedModel:
    """Add the method of a recipe to the outline of its backbone.

    Parts are measured if the parameters of the whole follow from theirs. Else the whole is: its levels are not alike.

    Raises:
        ToastError: the method does not support the backbone.
    """

    def build(backbone: BuiltBackbone) -> Model:
        with torch.device("meta"):
            return build_model(recipe, (), built=backbone.copy())

    whole = build(outline.whole)
    try:
        parts = tuple(map(build, outline.parts))
    except ToastError:  # an option names a level that the parts do not have
        parts = ()
    alike = bool(parts) and all(
        extrapolate_to_levels((count(parts[0]), count(parts[1])), MEASURED_LEVELS, len(whole.backbone.levels))
        == count(whole)
        for count in (count_parameters, _count_trained)
    )
    return OutlinedModel(whole, parts if alike else (whole,))


def _count_trained(model: Model) -> int:
    return count_elements(model.get_trained_parameters().values())


def estimate_outline_memory(
    model: OutlinedModel, recipe: Recipe, length: TextLength, accelerator: Accelerator
) -> MemoryByBatchSize:
    """Estimate the memory of a step by batch size, for texts of a length.

    Raises:
        ToastError: a pass of the model depends on its data.
    """
    held = estimate_held_memory(model.whole, recipe.training, accelerator.device)
    one, two = (_measure(model, make_text_batch(size, length), accelerator).total for size in (1, 2))
    return MemoryByBatchSize(held.weights, held.gradients, held.optimizer, one, two - one)


def _measure(model: OutlinedModel, batch: dict[str, Tensor], accelerator: Accelerator) -> Activations:
    with _explain_need_of_data(model.whole):
        few, *more = (measure_activations(part, batch, accelerator) for part in model.measured)
    return few.extrapolate(more[0], len(model.whole.backbone.levels)) if more else few


def make_text_batch(size: int, length: TextLength) -> dict[str, Tensor]:
    """Return a batch of texts of a length, whose last tokens are learned."""
    ids = torch.zeros(size, length.tokens, dtype=torch.int64)
    labels = ids.clone()
    labels[:, : length.tokens - length.learned] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def count_outline_flops(model: OutlinedModel, length: TextLength) -> tuple[int, int]:
    """Return the FLOPs per token of the model and of a plain pass with the same head, for a text of a length.

    Raises:
        ToastError: a pass of the model depends on its data.
    """
    levels = len(model.whole.backbone.levels)
    with _explain_need_of_data(model.whole):
        measured = [_count_flops(part, length) for part in model.measured]
    if len(measured) == 1:
        return measured[0]
    own, plain = (extrapolate_to_levels(both, MEASURED_LEVELS, levels) for both in zip(*measured, strict=True))
    return own, plain


def _count_flops(model: Model, length: TextLength) -> tuple[int, int]:
    trained, checkpointing = list(model.get_trained_parameters().values()), model.backbone.checkpointing
    model.eval()
    model.backbone.checkpointing = False  # recomputation costs FLOPs in training only
    for weight in trained:  # the counter hooks into gradients, and fails on a module that returns one of its weights
        weight.requires_grad_(False)
    counts = []
    try:
        for part in (model, PlainPass(model)):
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            own = make_fake_tensors(part, mode)
            inputs = tree_map_only(Tensor, mode.from_tensor, model.objective.inputs(make_text_batch(1, length)))
            with torch.no_grad(), mode, FlopCounterMode(display=False) as flops:
                functional_call(part, own, (inputs,), tie_weights=False)
            counts.append(flops.get_total_flops() // length.tokens)
    finally:
        for weight in trained:
            weight.requires_grad_(True)
        model.backbone.checkpointing = checkpointing
    return counts[0], counts[1]


@contextmanager
def _explain_need_of_data(model: Model) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise ToastError(
            f"{type(model.backbone.module).__name__} cannot be planned from its configuration.",
            f"A pass of it needs data, not only shapes: {' '.join(str(error).split())[:200]}",
            "Use 'toast tune --dry-run', which loads the model.",
            code="backbone.needs-data",
        ) from error
