"""Maps are checked, not trusted: what is drawn as attention is what the model attends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toast_cli.backbones.base import Trace
from toast_cli.utils.errors import ToastError

MISMATCH_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest mismatch that rounding makes, by what the network computes in.

In double and single precision that is sums in another order. In half it is fused attention's own rounding, as maps are
computed from its q and k in single precision: of its weights and of what it puts out, once each by half a step (2^-9 of
a number in bfloat16, 2^-12 in float16); what there is beyond is room for values that cancel.
"""


SAME_MAP_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
"""Largest difference between maps of the same q and k, as a share of the largest number of their row.

About four steps of what the network computes in: nothing was added up in another order, the same was done twice.
"""


@dataclass(frozen=True)
class AttentionChecks:
    """What maps were compared with before they were shown, and how far off they were at most.

    `fused` are the levels whose maps times values were held against fused attention's own output, `mismatch` the
    largest difference found there as a share of its largest number; `unfused` those that compute attention unfused and
    hand out the very map they use, where there is nothing to compare with. `first_block` is the level whose two maps
    must be one, `difference` by how much they differ (see `SAME`); None with a single pass.
    """

    fused: tuple[int, ...] = ()
    mismatch: float | None = None
    unfused: tuple[int, ...] = ()
    first_block: int | None = None
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the checks as JSON has them."""
        found: dict[str, Any] = {
            "layers_held_against_fused_attention": list(self.fused),
            "largest_mismatch_with_fused_attention": self.mismatch,
        }
        if self.unfused:
            found["layers_not_compared_as_their_attention_is_unfused"] = list(self.unfused)
        if self.first_block is not None:
            found["first_steered_layer"] = self.first_block
            found["largest_difference_of_its_maps_between_passes"] = self.difference
        return found


def check_attention_maps(first: Trace, last: Trace, start: int | None) -> AttentionChecks:
    """Check all recorded maps of both passes; `start` is the first steered level, None with a single pass.

    Raises:
        ToastError: one is not what the model attends with.
    """
    compared = sorted(first.mismatch.keys() | last.mismatch.keys())
    return AttentionChecks(
        fused=tuple(compared),
        mismatch=check_fused_mismatch(first, last),
        unfused=tuple(sorted((first.attention.keys() | last.attention.keys()) - {*compared})),
        first_block=start,
        difference=None if start is None else check_first_steered_level(first, last, start),
    )


def check_fused_mismatch(*traces: Trace) -> float | None:
    """Return the largest mismatch of recorded maps with fused attention's output (see `Trace`); None: none was fused.

    Raises:
        ToastError: one is beyond rounding.
    """
    largest = None
    for number, trace in enumerate(traces, start=1):
        for level, found in trace.mismatch.items():
            if not float(found) <= MISMATCH_TOLERANCE[found.dtype]:  # NaN is no match either
                raise ToastError(
                    f"The attention map of layer {level} in pass {number} is not what the model attends with.",
                    f"Map times values differs from fused attention's output by {float(found):.1%} of its largest "
                    f"number; rounding explains {MISMATCH_TOLERANCE[found.dtype]:.1%}.",
                    "This attention does something that toast does not know of; please report which model it is.",
                    code="attention.map-mismatch",
                )
            largest = max(largest or 0.0, float(found))
    return largest


def check_first_steered_level(first: Trace, last: Trace, level: int) -> float:
    """Check that the first steered level has the same map in both passes: only its values change (section 3.1).

    Returns the largest difference, each row's as a share of its largest number: attention is spread over hundreds of
    tokens, and a difference of a hundredth may be all of it.

    Raises:
        ToastError: the maps differ.
    """
    before, after = first.attention[level], last.attention[level]
    largest = before.float().amax(-1, keepdim=True).clamp_min(1e-6)
    difference = float(((before - after).abs() / largest).amax())
    # Under autocast a softmax is in single precision, and what went into it is not.
    computed = first.mismatch[level].dtype if level in first.mismatch else before.dtype
    if not difference <= SAME_MAP_TOLERANCE[computed]:
        raise ToastError(
            f"The attention of layer {level}, the first that is steered, differs between the passes.",
            f"It should be the same, as only its values are steered; the largest difference is {difference:.1%} of a "
            f"row's largest number, and rounding explains {SAME_MAP_TOLERANCE[computed]:.3%}.",
            "The passes did not see the same input, or something besides the values was changed; please report it.",
            code="attention.map-mismatch",
        )
    return difference
