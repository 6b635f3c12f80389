"""Explanations by attention: of one level, and rolled out over all levels up to it.

Attention shows which patches the class token reads. It does not depend on a class, and whether it explains a
prediction is disputed (Jain and Wallace, NAACL 2019), which is why the deletion and insertion scores of a map matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from toast_cli.attention.explanations.base import ExplainedBatch, Explanation
from toast_cli.attention.feature_energy import build_recorder
from toast_cli.attention.maps import AttentionRecorder, HeadSelection


def compute_recorded_maps(batch: ExplainedBatch, head: HeadSelection | None = None) -> Mapping[str, Tensor]:
    """Return the recorded maps of each pass: of the batch's head, or of `head`.

    A backbone without attention has feature energy instead, and no rollout.

    Args:
        batch: the images, the level and the head.
        head: the head, instead of that of the batch.

    Raises:
        UsageError: the backbone has no attention and `head` is given, or the level or the head does not exist.
        ToastError: a map differs from the attention that the model uses.
    """
    if head is None:
        recorder = build_recorder(batch.model, batch.level, batch.head)
    else:
        recorder = AttentionRecorder(batch.model, batch.level, head)
    maps = recorder.record(batch.images).get_maps()
    return {name: map for name, map in maps.items() if name in ("pass_one", "pass_two")}


ATTENTION = Explanation("attention", "attention", depends_on_class=False, compute=compute_recorded_maps)
"""The attention of the batch's level and head."""

ROLLOUT = Explanation(
    "rollout",
    "attention rollout",
    depends_on_class=False,
    compute=partial(compute_recorded_maps, head="rollout"),
)
"""Attention rollout (Abnar and Zuidema, ACL 2020): the matrices of all levels multiplied, with the residual path.

It needs attention in every level up to the batch's.
"""
