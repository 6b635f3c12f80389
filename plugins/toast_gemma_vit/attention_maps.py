"""Attention maps of Gemma 4's vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from timm.models.gemma4_vit import Gemma4Attention, apply_multidimensional_rope
from torch import Tensor, nn

from toast_cli.plugin import upcast_attention_inputs


@contextmanager
def record_gemma_attention(
    attention: Gemma4Attention, cosines: Tensor, sines: Tensor, recorded: list[tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Append the softmax map `[B, heads, N, N]` and its mismatch inside the block (see `Trace`).

    The map is computed from the projections that fused attention uses: q and k are normalized and rotated as there, the
    scale is 1, and the heads of grouped-query attention share keys and values. The mismatch is the distance of the map
    times the normalized values from the output of fused attention.
    """
    projected: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        projected[name] = output.unflatten(-1, (-1, attention.head_dim))

    def compare(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k = (
            apply_multidimensional_rope(norm(projected[name]), cosines, sines)
            for name, norm in (("q", attention.q_norm), ("k", attention.k_norm))
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, attention.v_norm(projected["v"])))
        k, v = (part.repeat_interleave(attention.num_kv_groups, dim=1) for part in (k, v))
        fused = inputs[0]
        with upcast_attention_inputs(q, k, v) as (q, k, v):
            weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
            mixed = (weights @ v).transpose(1, 2).flatten(2)
        mismatch = (mixed - fused).abs().amax() / fused.abs().amax().clamp_min(1e-6)
        recorded.append((weights, mismatch.to(fused.dtype) if mismatch.dtype != fused.dtype else mismatch))

    layers = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
    with ExitStack() as attached:
        for name, layer in layers.items():
            attached.callback(layer.register_forward_hook(partial(keep, name)).remove)
        attached.callback(attention.o_proj.register_forward_pre_hook(compare).remove)
        yield
