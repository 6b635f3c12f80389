"""Register tokens: patches that the network uses as scratch space, and that hold much of the attention of any image.

Vision transformers without register tokens turn a few patches into them (Darcet et al., "Vision Transformers Need
Registers", ICLR 2024). Such a patch gets many times the attention of others, although nothing is to be seen there. The
attention is the backbone's own: it is there in the plain pass, before anything was tuned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toast_cli.attention.maps import AttentionRecorder
from toast_cli.backbones.base import Trace
from toast_cli.steering.steering import run_one_pass

SHARE_RATIO = 8.0
"""A register token has at least this many times the median attention of the patches of its image."""
NORM_RATIO = 3.0
"""The features of a high-norm token have at least this many times the median norm of the patches of its image."""


@torch.no_grad()
def find_registers(recorder: AttentionRecorder, images: Tensor) -> Tensor:
    """Return the register tokens of the plain pass on images `[B, 3, H, W]`, as `[B, rows, columns]` bool.

    A patch is one if it gets at least `SHARE_RATIO` times the median attention, and

    - it still does when the content of the image is elsewhere: shifted by half its height, half its width, and both,
      with what leaves on one side coming in on the other; or
    - the features that the level reads there have at least `NORM_RATIO` times the median norm.

    The first finds patches that are bound to a place, such as corners; the second the high-norm tokens of large models,
    which change with the image. A patch that is looked at because of its content is neither.
    """
    H, W = images.shape[-2:]
    shifts = ((0, 0), (H // 2, 0), (0, W // 2), (H // 2, W // 2))
    outliers, norms = [], []
    for shift in shifts:
        shares, norm = _compute_plain_maps(recorder, images.roll(shift, (-2, -1)))
        outliers.append(find_share_outliers(shares))
        norms.append(norm)
    bound = torch.stack(outliers).all(0)
    return bound | (outliers[0] & find_norm_outliers(norms[0]))


def find_share_outliers(maps: Tensor) -> Tensor:
    """Return the cells of attention maps `[B, rows, columns]` with `SHARE_RATIO` times the median of their map."""
    return maps >= SHARE_RATIO * _compute_median(maps).clamp_min(torch.finfo(maps.dtype).tiny)


def find_norm_outliers(norms: Tensor) -> Tensor:
    """Return the cells of norms `[B, rows, columns]` with at least `NORM_RATIO` times the median of their image."""
    return norms >= NORM_RATIO * _compute_median(norms)


def remove_registers(map: Tensor, registers: Tensor) -> Tensor:
    """Return an attention map `[rows, columns]` that is zero on register tokens and sums to one on the other cells.

    A map that is zero on all other cells is returned as it is.
    """
    kept = map.masked_fill(registers, 0.0)
    total = kept.sum()
    return kept / total if float(total) > 0 else map


def _compute_median(maps: Tensor) -> Tensor:
    return maps.flatten(1).median(1).values[:, None, None]


def _compute_plain_maps(recorder: AttentionRecorder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention map of the plain pass, and the norm of the features that the level reads at each cell."""
    backbone = recorder.model.backbone
    trace = Trace(levels=True, attention_of=recorder.levels)
    run_one_pass(backbone, images, trace)
    grid = backbone.grid(images)
    features = trace.inputs[recorder.level].flatten(1, -2)[:, backbone.prefix_tokens :].float()
    return recorder.compute_level_map(trace, grid), features.norm(dim=-1).unflatten(1, grid)
