"""A stock torchvision `VisionTransformer` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from toast_cli.plugin import (
    Backbone,
    Level,
    Preprocessing,
    Readout,
    Signal,
    State,
    Trace,
    ValueSignal,
    upcast_attention_inputs,
)
from toast_torchvision.classifier import leave_out


def attend(
    attention: nn.MultiheadAttention, tokens: Tensor, signal: Signal | None, found: list[Tensor] | None
) -> Tensor:
    """Return the output of self-attention over tokens `[B, N, d]`, with `V = W_V (X + signal) + b_V`.

    This is PyTorch's `multi_head_attention_forward` without weights, whose packed projection cannot be reached from
    outside, operation by operation. Append the softmax map `[B, heads, N, N]` and its mismatch (see `Trace`) to
    `found`, if given.
    """
    (B, N, d), heads = tokens.shape, attention.num_heads
    weight = attention.in_proj_weight
    packed = F.linear(tokens.transpose(0, 1), weight, attention.in_proj_bias)  # [N, B, 3d]
    q, k, v = packed.unflatten(-1, (3, d)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous().unbind(0)
    if signal is not None:
        values = signal.tensor if isinstance(signal, ValueSignal) else F.linear(signal, weight[2 * d :])
        v = v + values.transpose(0, 1).to(v.dtype)
    q, k, v = (part.reshape(N, B * heads, -1).transpose(0, 1).reshape(B, heads, N, -1) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    if found is not None:
        with upcast_attention_inputs(q, k, v) as (query, key, value):
            attention_map = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
            mixed = attention_map @ value
        mismatch = (mixed - out).abs().amax() / out.abs().amax().clamp_min(1e-6)
        found += [attention_map, mismatch if mismatch.dtype == out.dtype else mismatch.to(out.dtype)]
    out = out.permute(2, 0, 1, 3).reshape(N * B, d)
    return attention.out_proj(out).view(N, B, d).transpose(0, 1)


@contextmanager
def use_plain_attention() -> Iterator[None]:
    """Turn off PyTorch's fast path for inference inside the block, which rounds in another way than with gradients.

    Attention stays fused. The first pass has no gradients and the second one has, and both must be the same network.
    """
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


class TorchvisionVitBackbone(Backbone):
    """Any torchvision `VisionTransformer`. A level is a block.

    `z` is every token after the final norm, including the class token, which is pooled.
    """

    has_attention = True
    adapter_targets = ("mlp.0", "mlp.3")  # q, k, v are one parameter, which has no layer of its own
    takes_prompts = True
    prefix_tokens = 1
    module: VisionTransformer

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        assert isinstance(module, VisionTransformer)
        self.module, self.preprocessing = module, preprocessing
        self.width = module.hidden_dim
        classifier: Any = module.heads.head
        self.head_width = classifier.in_features
        self.levels = [Level(self.width, self.width)] * len(module.encoder.layers)
        self.level_modules = list(module.encoder.layers)
        self.unused_parts = [classifier]

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with position embeddings."""
        vit = self.module
        tokens = vit._process_input(inputs)
        tokens = torch.cat([vit.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return State(vit.encoder.dropout(tokens + vit.encoder.pos_embedding))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        block: Any = self.module.encoder.layers[index]
        found: list[Tensor] | None = [] if trace is not None and index in trace.attention_of else None
        if signal is None and found is None:
            with use_plain_attention():
                return State(block(state.hidden))
        attention = block.self_attention
        attention.forward = lambda tokens, *_, **__: (attend(attention, tokens, signal, found), None)
        try:
            hidden = block(state.hidden)
        finally:
            del attention.forward
        if trace is not None and found is not None:
            trace.attention[index], trace.mismatch[index] = found
        return State(hidden)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the packed projection, `[d, d]`."""
        block: Any = self.module.encoder.layers[index]
        weight = block.self_attention.in_proj_weight[2 * self.width :]
        assert isinstance(weight, Tensor)
        return weight

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the features of the class token `[B, d]`."""
        z = self.module.encoder.ln(state.hidden)
        pooled = z[:, 0]
        for name, part in self.module.heads.named_children():
            pooled = pooled if name == "head" else part(pooled)
        return Readout(z=z, compared=z, pooled=pooled)

    def stock(self, inputs: Tensor) -> Tensor:
        """Run torchvision's own forward pass up to the pooled features `[B, d]`."""
        with leave_out(self.module, "heads.head"), use_plain_attention():
            return self.module(inputs)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        return inputs.shape[-2] // self.module.patch_size, inputs.shape[-1] // self.module.patch_size

    def query_tokens(self) -> slice:
        """Return the class token."""
        return slice(0, 1)
