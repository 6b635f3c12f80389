"""A quick check that a backbone keeps the contract, for plugins of other authors, at the start of a run.

A backbone that ignores signals, or that differs from its own library without them, trains and draws without an error.
The contract suite in `tests/contract` checks much more; this check costs a few passes of two samples.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from toast_cli.backbones.base import Backbone, Trace
from toast_cli.utils.errors import ToastError

TOLERANCE = 1e-3
"""Largest allowed difference from the library's forward pass, relative to its largest value. The suite allows none."""


@torch.no_grad()
def check_backbone(backbone: Backbone, name: str, package: str) -> None:
    """Check widths, attention maps, equality with the stock model, and that signals have an effect.

    Raises:
        ToastError: The backbone breaks the contract. The message names the plugin and the member.
    """
    problem = _find_problem(backbone)
    if problem:
        raise ToastError(
            f"Plugin {package}: the backbone '{name}' breaks the contract: {problem}",
            what_to_do="The plugin must be corrected; docs/how-to/extend/backbone.md shows how to test it.",
            code="backbone.breaks-contract",
        )


def _find_problem(backbone: Backbone) -> str:
    """Return the first broken rule, or an empty string."""
    checkpointed, backbone.checkpointing = backbone.checkpointing, False
    state = torch.random.get_rng_state()
    try:
        inputs = send_to_device(backbone.example(2), next(backbone.module.parameters()).device)
        trace = Trace(levels=True, attention_of=frozenset({len(backbone.levels) - 1}))
        readout = backbone.leave(backbone.run(backbone.enter(inputs), trace=trace))
        return (
            _find_wrong_width(backbone, trace)
            or _find_wrong_attention(backbone, trace, inputs)
            or _find_wrong_features(backbone, readout.pooled, backbone.stock(inputs))
            or _find_ignored_signal(backbone, trace, inputs)
        )
    finally:
        torch.random.set_rng_state(state)
        backbone.checkpointing = checkpointed


def _find_wrong_width(backbone: Backbone, trace: Trace) -> str:
    widths = [(level.width_in, level.width_out) for level in backbone.levels]
    for index, (h, o) in enumerate(zip(trace.inputs, trace.outputs, strict=True)):
        found = (h.shape[backbone.channel_dim], o.shape[backbone.channel_dim])
        if found != widths[index]:
            return (
                f"'levels' declares {widths[index][0]} channels in and {widths[index][1]} out for level {index}, "
                f"which has {found[0]} and {found[1]}."
            )
    return ""


def _find_wrong_attention(backbone: Backbone, trace: Trace, inputs: Any) -> str:
    if not backbone.has_attention:
        return ""
    if not trace.attention:
        return "'has_attention' is True, and 'level' records no map in 'trace.attention'."
    tokens = next(iter(trace.attention.values())).shape[-1]
    rows, columns = backbone.grid(inputs)
    if tokens != rows * columns + backbone.prefix_tokens:
        return (
            f"attention maps have {tokens} tokens; 'grid' ({rows} x {columns}) and 'prefix_tokens' "
            f"({backbone.prefix_tokens}) declare {rows * columns + backbone.prefix_tokens}."
        )
    return ""


def _find_wrong_features(backbone: Backbone, pooled: Tensor, stock: Tensor) -> str:
    if pooled.shape != stock.shape or pooled.shape[-1] != backbone.head_width:
        return (
            f"pooled features have the shape {list(pooled.shape)}; 'stock' returns {list(stock.shape)} and "
            f"'head_width' is {backbone.head_width}."
        )
    difference = float((pooled.float() - stock.float()).abs().max())
    if not difference <= TOLERANCE * max(float(stock.float().abs().max()), 1e-6):
        return f"without signals, its features differ from those of 'stock' by up to {difference:.3g}."
    return ""


def _find_ignored_signal(backbone: Backbone, trace: Trace, inputs: Any) -> str:
    last = len(backbone.levels) - 1
    for index in dict.fromkeys((0, last)):
        signals: list[Tensor | None] = [None] * (last + 1)
        signals[index] = torch.randn_like(trace.inputs[index])
        steered = Trace(levels=True)
        backbone.run(backbone.enter(inputs), signals, last=index + 1, trace=steered)
        if torch.equal(steered.outputs[index], trace.outputs[index]):
            return f"a signal does not change the output of level {index}."
    return ""
