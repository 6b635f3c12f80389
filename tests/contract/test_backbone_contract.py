"""The contract suite: what every registered backbone owes, with no line about any one family."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toast_cli import registry
from toast_cli.backbones.base import Backbone, State, Trace
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.steering.least_squares import initialize_least_squares
from toast_cli.steering.steering import Steering, run_two_passes
from toast_cli.tasks.classification import ClassificationOptions, build_classification
from toast_cli.utils.constants import OWN_PACKAGE
from toast_cli.utils.errors import UsageError

CLASSES = ("a", "b", "c")
ASKED = {"peft": {"kind": "dora"}}
"""What a method has to be told."""


def inputs_of(backbone: Backbone, batch: int = 2) -> Any:
    torch.manual_seed(1)
    return backbone.example(batch)


def plain(backbone: Backbone, inputs: Any, signals: list[Tensor | None] | None = None) -> Any:
    return backbone.leave(backbone.run(backbone.enter(inputs), signals))


def level_inputs(backbone: Backbone, inputs: Any) -> list[Tensor]:
    trace = Trace(levels=True)
    backbone.run(backbone.enter(inputs), trace=trace)
    return trace.inputs


def hooks(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)


@torch.no_grad()
def test_a_run_without_signals_is_the_stock_model_bit_for_bit(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)
    assert torch.equal(plain(backbone, inputs).pooled, backbone.stock(inputs))


@torch.no_grad()
def test_zero_signals_are_the_stock_model_bit_for_bit(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)
    zeros: list[Tensor | None] = [torch.zeros_like(h) for h in level_inputs(backbone, inputs)]
    assert torch.equal(plain(backbone, inputs, zeros).pooled, backbone.stock(inputs))


@torch.no_grad()
def test_levels_have_the_widths_they_declare(backbone: Backbone) -> None:
    trace = Trace(levels=True)
    backbone.run(backbone.enter(inputs_of(backbone)), trace=trace)
    assert len(trace.inputs) == len(trace.outputs) == len(backbone.levels)
    for level, h, o in zip(backbone.levels, trace.inputs, trace.outputs, strict=True):
        assert h.shape[backbone.channel_dim] == level.width_in
        assert o.shape[backbone.channel_dim] == level.width_out


@torch.no_grad()
def test_feedback_from_z_has_the_shape_of_every_level_it_steers(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)
    passes = run_two_passes(backbone, Steering(backbone), inputs)
    assert passes.signals is not None and passes.similarity is not None
    pooled = passes.last.pooled
    assert len(pooled) == 2 and pooled.shape[-1] == backbone.head_width
    for signal, h in zip(passes.signals, level_inputs(backbone, inputs), strict=True):
        # Where a stride does not divide a side of a map, undoing it gives some cells too many; the backbone crops them.
        assert signal is not None and signal.ndim == h.ndim
        more = [ours - theirs for ours, theirs in zip(signal.shape, h.shape, strict=True)]
        assert all(0 <= each < prod(level.stride for level in backbone.levels) for each in more)
        assert more[0] == more[backbone.channel_dim] == 0
    assert passes.similarity.min() >= 0 and passes.similarity.max() <= 1


@pytest.mark.parametrize("kind", ["early", "late"])
@torch.no_grad()
def test_early_and_late_feedback_steer_their_levels_and_no_other(backbone: Backbone, kind: str) -> None:
    inputs, middle, count = inputs_of(backbone), len(backbone.levels) // 2, len(backbone.levels)
    steering = Steering(backbone, range(middle) if kind == "early" else range(middle, count))
    first, last = Trace(levels=True), Trace(levels=True)
    passes = run_two_passes(backbone, steering, inputs, first, last)
    assert passes.signals is not None and passes.last.pooled.shape == plain(backbone, inputs).pooled.shape
    assert [index for index, signal in enumerate(passes.signals) if signal is not None] == list(steering.levels)
    # The same again by hand: every level run in both passes, nothing shared and nothing left out.
    whole = Trace(levels=True)
    backbone.leave(backbone.run(backbone.enter(inputs), trace=whole))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.outputs, whole.outputs, strict=True))
    steered = Trace(levels=True)
    by_hand = backbone.leave(backbone.run(backbone.enter(inputs), passes.signals, trace=steered))
    assert torch.equal(passes.last.pooled, by_hand.pooled)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(last.outputs, steered.outputs, strict=True))
    for index in range(steering.levels.start):
        assert torch.equal(last.outputs[index], whole.outputs[index])


@torch.no_grad()
def test_a_signal_at_one_level_changes_that_level_and_none_before(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)
    shapes = level_inputs(backbone, inputs)
    last = len(backbone.levels) - 1
    signals: list[Tensor | None] = [None] * last + [torch.randn_like(shapes[last])]
    unsteered, steered = Trace(levels=True), Trace(levels=True)
    backbone.run(backbone.enter(inputs), trace=unsteered)
    backbone.run(backbone.enter(inputs), signals, trace=steered)
    for index in range(last):
        assert torch.equal(unsteered.outputs[index], steered.outputs[index])
    assert not torch.equal(unsteered.outputs[last], steered.outputs[last])


@torch.no_grad()
def test_running_the_levels_in_two_parts_is_running_them_at_once(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)
    middle = len(backbone.levels) // 2
    state = backbone.run(backbone.enter(inputs), last=middle)
    parts = backbone.leave(backbone.run(state, first=middle))
    assert torch.equal(parts.pooled, plain(backbone, inputs).pooled)


@pytest.mark.parametrize("fails", [False, True], ids=["success", "exception"])
def test_nothing_stays_attached(backbone: Backbone, fails: bool) -> None:
    inputs = inputs_of(backbone)
    signals: list[Tensor | None] = [torch.randn_like(h) for h in level_inputs(backbone, inputs)]
    before = hooks(backbone.module)
    trace = Trace(attention_of=frozenset(range(len(backbone.levels))))
    if fails:
        signals[-1] = torch.randn(7, 5, 3, 2, 1)  # fits no level of any backbone
        with pytest.raises(RuntimeError):
            backbone.run(backbone.enter(inputs), signals, trace=trace)
    else:
        backbone.run(backbone.enter(inputs), signals, trace=trace)
    assert hooks(backbone.module) == before
    assert torch.equal(plain(backbone, inputs).pooled, backbone.stock(inputs))


@cache
def list_idle_parts(name: str) -> set[str]:
    """Parts of a language model that get no gradient from its logits, such as a router's bias or cross-attention."""
    if not name.startswith("lm:"):
        return set()
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none"))
    backbone.module.requires_grad_(True)
    head = backbone.output()
    assert head is not None
    head(plain(backbone, inputs_of(backbone)).pooled).exp().sum().backward()
    weights = dict(backbone.module.named_parameters())
    idle = {key for key, weight in weights.items() if weight.grad is None}
    parents = {key.rpartition(".")[0] for key in idle}
    return idle | {each for each in parents if not any(key.startswith(f"{each}.") for key in weights.keys() - idle)}


@pytest.mark.parametrize("method", registry.list_names(registry.METHODS))
def test_a_training_step_changes_what_the_method_declares_and_nothing_else(name: str, method: str) -> None:
    torch.manual_seed(0)
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none"))
    stock = BackboneSnapshot.from_backbone(backbone)
    registered = registry.load_entry(registry.METHODS, method)
    options = registered.options(**ASKED.get(method, {}))
    try:
        adapted: AdaptedModel = registered.build(options, backbone)
    except UsageError as refused:
        if "does not work with use_dora" in str(refused):  # PEFT has no DoRA of experts that are one tensor
            return
        if registry.find_package(registry.METHODS, method) == OWN_PACKAGE:
            assert (refused.code, backbone.takes_prompts) == ("method.not-a-vit", False), refused
        return
    model = Model(adapted, build_classification(ClassificationOptions(), backbone, CLASSES), stock)
    # Steering that starts at exactly zero, or selects no token, has parameters without a first gradient.
    if adapted.steering is not None:
        for parameter in adapted.steering.feedback.parameters():
            nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            tokens = plain(backbone, inputs_of(backbone)).compared.movedim(backbone.channel_dim, -1).flatten(0, -2)
            adapted.steering.selection.xi.copy_(nn.functional.normalize(tokens, dim=-1).mean(0))
    model.train()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # a tied weight counts once
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    additions = model.get_frozen_additions()
    optimizer = torch.optim.SGD(model.get_trained_parameters().values(), lr=1.0)
    logits, passes = model.forward_passes(inputs_of(backbone))
    loss = logits.exp().sum()  # any loss will do: which task follows is not the backbone's business
    if (own := backbone.output()) is not None:
        loss = loss + own(passes.last.pooled).exp().sum()
    loss.backward()
    optimizer.step()

    idle = list_idle_parts(name)
    trained = {key for key in model.get_trained_parameters() if not any(f".{each}." in f".{key}." for each in idle)}
    with_gradient = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    changed = {key for key, tensor in tensors.items() if not torch.equal(tensor, before[key])}
    assert with_gradient == trained
    assert changed <= set(model.get_trained_parameters())
    assert {"head.weight", "head.bias"} <= changed
    if adapted.steering is not None:
        assert any("selection.xi" in key for key in changed) and any("feedback" in key for key in changed)
    if not registered.alters:
        assert not [key for key in changed if id(tensors[key]) in stock.tensors]
    assert not set(additions) & set(model.get_trained_parameters())


def test_gradients_under_checkpointing_equal_the_unchecked_ones(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)
    gradients = []
    for checkpointed in (False, True):
        signals = [torch.full_like(h, 0.1).requires_grad_() for h in level_inputs(backbone, inputs)]
        state = backbone.enter(inputs)
        for index, signal in enumerate(signals):

            def run_level(hidden: Tensor, signal: Tensor, index: int = index, state: State = state) -> Tensor:
                return backbone.level(index, State(hidden, state.context), signal).hidden

            arguments = (state.hidden, signal)
            hidden = checkpoint(run_level, *arguments, use_reentrant=False) if checkpointed else run_level(*arguments)
            state = State(hidden, state.context)
        backbone.leave(state).pooled.square().sum().backward()
        gradients.append([signal.grad for signal in signals])
    for unchecked, checked in zip(*gradients, strict=True):
        assert unchecked is not None and checked is not None and unchecked.abs().max() > 0
        assert torch.allclose(unchecked, checked, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_after_the_least_squares_start_two_passes_equal_one(backbone: Backbone) -> None:
    steering = Steering(backbone)
    inputs = inputs_of(backbone)
    initialize_least_squares(steering, backbone, [inputs])
    passes = run_two_passes(backbone, steering, inputs)
    assert torch.equal(passes.last.pooled, passes.first.pooled)
    assert torch.isclose(steering.selection.xi.norm(), torch.tensor(1.0))


@torch.no_grad()
def test_attention_maps_are_distributions_and_the_first_blocks_is_the_same_in_both_passes(backbone: Backbone) -> None:
    if not backbone.has_attention:
        return
    inputs = inputs_of(backbone)
    wanted = frozenset({0, len(backbone.levels) - 1})
    first, last = Trace(attention_of=wanted), Trace(attention_of=wanted)
    steering = Steering(backbone)
    for parameter in steering.feedback.parameters():
        nn.init.normal_(parameter, std=0.1)
    tokens = plain(backbone, inputs).compared.movedim(backbone.channel_dim, -1).flatten(0, -2)
    steering.selection.xi.copy_(nn.functional.normalize(tokens, dim=-1).mean(0))  # another may select no token
    run_two_passes(backbone, steering, inputs, first, last)
    for trace in (first, last):
        assert set(trace.attention) == wanted
        for attention in trace.attention.values():
            assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
        assert set(trace.mismatch) in (wanted, set()), "all are compared with fused attention, or none is fused"
        assert all(float(found) < 1e-4 for found in trace.mismatch.values())
    assert torch.equal(first.attention[0], last.attention[0])
    end = len(backbone.levels) - 1
    assert not torch.equal(first.attention[end], last.attention[end])
    rows, columns = backbone.grid(inputs)
    assert first.attention[0].shape[-1] == rows * columns + backbone.prefix_tokens
