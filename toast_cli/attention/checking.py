"""Maps are checked, not trusted: what is drawn as attention is what the model attends with."""

from __future__ import annotations

import torch

from toast_cli.backbone import Trace
from toast_cli.errors import ToastError

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest mismatch that rounding makes, by what the network computes in: sums over a row in another order."""


def check_mismatch(*traces: Trace) -> float:
    """The largest mismatch of all recorded maps with fused attention's output (see `Trace`).

    Raises:
        ToastError: one is beyond rounding.
    """
    largest = 0.0
    for number, trace in enumerate(traces, start=1):
        for level, found in trace.mismatch.items():
            if not float(found) <= TOLERANCE[found.dtype]:  # NaN is no match either
                raise ToastError(
                    f"The attention map of layer {level} in pass {number} is not what the model attends with.",
                    f"Map times values differs from fused attention's output by {float(found):.1%} of its largest "
                    f"number; rounding explains {TOLERANCE[found.dtype]:.1%}.",
                    "This attention does something that toast does not know of; please report which model it is.",
                )
            largest = max(largest, float(found))
    return largest


def check_first_block(first: Trace, last: Trace, level: int) -> None:
    """The first steered level has the same q and k in both passes (section 3.1: only values change): the same map.

    Raises:
        ToastError: the maps differ.
    """
    before, after = first.attention[level], last.attention[level]
    difference = float((before - after).abs().amax())
    if not difference <= TOLERANCE[before.dtype]:
        raise ToastError(
            f"The attention of layer {level}, the first that is steered, differs between the passes.",
            f"It should be the same, as only its values are steered; the largest difference is {difference:.3g}.",
            "The passes did not see the same input, or something besides the values was changed; please report it.",
        )
