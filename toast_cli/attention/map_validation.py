"""Validation of attention maps: a recorded map must be the attention that the model uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toast_cli.backbones.base import Trace
from toast_cli.utils.errors import ToastError

MISMATCH_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest mismatch that rounding explains, by the data type of the network.

In double and single precision, sums in another order cause it. In half precision, fused attention itself rounds its
weights and its output, each by half a step (2^-9 of a number in bfloat16, 2^-12 in float16), while maps are computed
from q and k in single precision. The rest of the tolerance is for values that cancel.
"""


SAME_MAP_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
"""Largest difference between two maps of the same q and k, as a share of the largest number of their row.

It is about four rounding steps of the data type, because both maps are computed in the same way.
"""


@dataclass(frozen=True)
class AttentionChecks:
    """The result of validating attention maps.

    Attributes:
        fused: the levels whose maps, multiplied by the values, were compared with the output of fused attention.
        mismatch: the largest difference in that comparison, as a share of the largest number of the output.
        unfused: the levels with unfused attention, which return the map they use, so there is nothing to compare.
        first_block: the first steered level, whose maps must be the same in both passes; None with a single pass.
        difference: the largest difference between those maps (see `SAME_MAP_TOLERANCE`); None with a single pass.
    """

    fused: tuple[int, ...] = ()
    mismatch: float | None = None
    unfused: tuple[int, ...] = ()
    first_block: int | None = None
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the checks for a JSON record."""
        record: dict[str, Any] = {
            "layers_held_against_fused_attention": list(self.fused),
            "largest_mismatch_with_fused_attention": self.mismatch,
        }
        if self.unfused:
            record["layers_not_compared_as_their_attention_is_unfused"] = list(self.unfused)
        if self.first_block is not None:
            record["first_steered_layer"] = self.first_block
            record["largest_difference_of_its_maps_between_passes"] = self.difference
        return record


def check_attention_maps(first: Trace, last: Trace, start: int | None) -> AttentionChecks:
    """Check the recorded maps of both passes; `start` is the first steered level, None with a single pass.

    Raises:
        ToastError: a map differs from the attention that the model uses.
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
    """Return the largest mismatch of maps with the output of fused attention (see `Trace`); None without fused levels.

    Raises:
        ToastError: a mismatch is larger than rounding explains.
    """
    largest = None
    for number, trace in enumerate(traces, start=1):
        for level, mismatch in trace.mismatch.items():
            if not float(mismatch) <= MISMATCH_TOLERANCE[mismatch.dtype]:  # also catches NaN
                raise ToastError(
                    f"The attention map of layer {level} in pass {number} is not the attention that the model uses.",
                    f"The map times the values differs from the output of fused attention by {float(mismatch):.1%} "
                    f"of its largest number; rounding explains {MISMATCH_TOLERANCE[mismatch.dtype]:.1%}.",
                    "toast does not support this kind of attention; please report it with the name of the model.",
                    code="attention.map-mismatch",
                )
            largest = max(largest or 0.0, float(mismatch))
    return largest


def check_first_steered_level(first: Trace, last: Trace, level: int) -> float:
    """Check that the first steered level has the same map in both passes, as only its values change (section 3.1).

    Return the largest difference as a share of the largest number of its row. An absolute tolerance would not do,
    because attention that is spread over hundreds of tokens has small numbers only.

    Raises:
        ToastError: the maps differ.
    """
    before, after = first.attention[level], last.attention[level]
    largest = before.float().amax(-1, keepdim=True).clamp_min(1e-6)
    difference = float(((before - after).abs() / largest).amax())
    # Under autocast, softmax runs in single precision, but its input does not.
    computed = first.mismatch[level].dtype if level in first.mismatch else before.dtype
    if not difference <= SAME_MAP_TOLERANCE[computed]:
        raise ToastError(
            f"The attention of layer {level}, the first steered layer, differs between the passes.",
            f"It must be the same, because only its values are steered. The largest difference is {difference:.1%} of "
            f"a row's largest number, and rounding explains {SAME_MAP_TOLERANCE[computed]:.3%}.",
            "The passes had different inputs, or more than the values changed; please report this.",
            code="attention.map-mismatch",
        )
    return difference
