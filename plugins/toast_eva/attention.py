"""What steers and records an attention of timm's `Eva`, whose q, k, v have one projection or three."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from toast_cli.plugin import Signal, ValueSignal, upcast_attention_inputs


def get_projections(attention: Any) -> list[Any]:
    """Return the layers whose outputs, one after the other, are q, k and v."""
    return [attention.q_proj, attention.k_proj, attention.v_proj] if attention.qkv is None else [attention.qkv]


def get_value_weight(attention: Any) -> Tensor:
    """Return `W_V`, `[values, d]`: fewer values than queries with grouped-query attention."""
    weight: Tensor = get_projections(attention)[-1].weight
    return weight if attention.qkv is None else weight[2 * len(weight) // 3 :]


def get_fused_bias(attention: Any) -> Tensor | None:
    """Return the bias of a fused projection. `EvaAttention` keeps those of q and v apart from it, and k has none."""
    parameters = attention._parameters  # while `call_projection` hides q_bias
    if parameters.get("q_bias") is not None:
        return torch.cat((parameters["q_bias"], attention.k_bias, parameters["v_bias"]))
    bias: Tensor | None = attention.qkv.bias
    return bias


def split_projections(attention: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of q, of k and of v."""
    if attention.qkv is None:
        return [(layer.weight, layer.bias) for layer in get_projections(attention)]
    bias = get_fused_bias(attention)
    return list(zip(attention.qkv.weight.chunk(3), (None,) * 3 if bias is None else bias.chunk(3), strict=True))


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace a module's forward inside the block."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def call_projection(attention: Any, *, steered: bool) -> Iterator[None]:
    """Make an attention call its fused projection inside the block, with the biases of q and v, if that is needed.

    With biases apart, timm computes `F.linear(x, qkv.weight, bias)`: whatever is attached to the layer, signals if it
    is `steered` or low-rank factors (PEFT), would have no effect.
    """
    projection = attention.qkv
    if attention._parameters.get("q_bias") is None or (type(projection) is nn.Linear and not steered):
        yield
        return
    stock = projection.forward

    def project(tokens: Tensor) -> Tensor:
        bias = get_fused_bias(attention)
        if type(projection) is nn.Linear:
            return F.linear(tokens, projection.weight, bias)
        return stock(tokens) + bias

    attention.__dict__["q_bias"] = None  # hides the parameter, which tells timm to call the layer
    try:
        with replace_forward(projection, project):
            yield
    finally:
        del attention.__dict__["q_bias"]


@contextmanager
def reuse_projections(attention: Any, projected: list[Tensor]) -> Iterator[None]:
    """Take the outputs of the projections from `projected` inside the block, or store them there the first time."""
    stored = list(projected)

    def take(place: int, _: Tensor) -> Tensor:
        return stored[place]

    def store(stock: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        projected.append(stock(tokens))
        return projected[-1]

    with ExitStack() as attached:
        for place, layer in enumerate(get_projections(attention)):
            forward = partial(take, place) if stored else partial(store, layer.forward)
            attached.enter_context(replace_forward(layer, forward))
        yield


@contextmanager
def steer_values(attention: Any, signal: Signal, projected: bool = False) -> Iterator[None]:
    """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

    A signal `[B, N, d]` is added to the tokens before the projection: one product for both costs no more than the
    tokens alone. If q, k, v of the tokens are already `projected`, or the projection is not a plain linear layer, the
    contribution of the signal is added to the values.
    """
    projection = get_projections(attention)[-1]
    stock = projection.forward

    def join(qkv: Tensor, values: Callable[[Tensor], Tensor]) -> Tensor:
        """Replace the values in an output of the layer, which holds q and k before them if it is fused."""
        if attention.qkv is None:
            return values(qkv)
        qk, v = qkv.tensor_split((2 * (qkv.shape[-1] // 3),), dim=-1)
        return torch.cat([qk, values(v)], dim=-1)

    def project_sum(signal: Tensor, tokens: Tensor) -> Tensor:
        steered = tokens + signal.to(tokens.dtype)
        if attention.qkv is None:
            return F.linear(steered, projection.weight, projection.bias)
        weight, bias, first = projection.weight, get_fused_bias(attention), 2 * len(projection.weight) // 3
        qk = F.linear(tokens, weight[:first], None if bias is None else bias[:first])
        return torch.cat([qk, F.linear(steered, weight[first:], None if bias is None else bias[first:])], dim=-1)

    def add_to_values(tokens: Tensor) -> Tensor:
        W_V = get_value_weight(attention)
        added = signal.tensor if isinstance(signal, ValueSignal) else F.linear(signal.to(W_V.dtype), W_V)
        return join(stock(tokens), lambda values: values + added.to(values.dtype))

    forward: Callable[[Tensor], Tensor] = add_to_values
    if isinstance(signal, Tensor) and not projected and type(projection) is nn.Linear:
        forward = partial(project_sum, signal)
    with replace_forward(projection, forward):
        yield


class AttentionRecorder(TorchFunctionMode):
    """Records the softmax maps `[B, heads, N, N]` of attention inside the block, and their mismatch (see `Trace`).

    Maps are computed from the queries and keys that fused attention receives, after norms and rotary positions.
    Attention that is not fused computes its own map, which is recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.mismatches: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            with upcast_attention_inputs(*args[:3]) as (q, k, v):
                self.maps.append((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1))
                mismatch = (self.maps[-1] @ v - out).abs().amax() / out.abs().amax().clamp_min(1e-6)
            # Cast only if needed: a traced graph checks the data type at every cast, and keeps all operations before.
            self.mismatches.append(mismatch if mismatch.dtype == out.dtype else mismatch.to(out.dtype))
        elif func is Tensor.softmax:
            self.maps.append(out)
        return out


def is_stock_block(block: Any) -> bool:
    """Return whether a block and its attention are timm's own, with unchanged projections."""
    if type(block) not in (EvaBlock, EvaBlockPostNorm) or type(block.attn) not in (EvaAttention, AttentionRope):
        return False
    return block.attn.gate is None and all(type(layer) is nn.Linear for layer in get_projections(block.attn))


@contextmanager
def attend_from_class_token(block: Any, hidden: Tensor, signal: Signal | None) -> Iterator[None]:
    """Make a block, called with the first of the tokens `hidden`, attend from that to all tokens inside the block.

    Apart from attention, a block processes each token by itself, so the other tokens are only needed as keys and
    values. This is timm's forward with one query. The class token has no rotary position.
    """
    attention = block.attn

    def attend(first: Tensor, rope: Tensor | None = None, **_: object) -> Tensor:
        tokens = block.norm1(hidden) if isinstance(block, EvaBlock) else hidden
        steered = tokens + signal.to(tokens.dtype) if isinstance(signal, Tensor) else tokens
        q, k, v = (
            F.linear(each, weight, bias)
            for each, (weight, bias) in zip((first, tokens, steered), split_projections(attention), strict=True)
        )
        if isinstance(signal, ValueSignal):
            v = v + signal.tensor.to(v.dtype)
        q, k, v = (part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in (q, k, v))
        q, k = attention.q_norm(q).type_as(v), attention.k_norm(k)
        if rope is not None:
            prefix = attention.num_prefix_tokens
            rotated = apply_rot_embed_cat(k[:, :, prefix:], rope, half=attention.rotate_half)
            k = torch.cat([k[:, :, :prefix], rotated], dim=2)
        k = k.type_as(v)
        if (groups := attention.num_heads // k.shape[1]) > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v)
        return attention.proj(attention.norm(out.transpose(1, 2).flatten(2)))

    with replace_forward(attention, attend):
        yield
