"""The values of latent attention (DeepSeek V2 and its relatives), made of a normed latent of each token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.plugin import Signal
from toast_transformers.value_layers import ValueLayer, replace_attribute


class LatentValueLayer(ValueLayer):
    """The value rows of `kv_b_proj`, which expands the latent `c = norm(W_DKV X)` to keys and values.

    Some models multiply the normed latent by a constant (`kv_lora_scale`).

    Steered, `V = W_UV norm(W_DKV (X + X_td))`, while the keys are made of `c`. The norm is not linear, so there is no
    `W_V`, and a signal has the shape of the tokens. The cache of transformers holds latents: that of the second pass
    holds `c` and the steered latent side by side.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention, "kv_b_proj")

    @property
    def weight(self) -> None:
        """None: a norm stands between the tokens and their values."""
        return None

    def count_values(self) -> None:
        """Return None, as there is no `weight`."""
        return None

    @contextmanager
    def steer(self, signal: Signal, cache: Any = None) -> Iterator[None]:
        """Inside the block, the values are made of the latents of tokens and signal."""
        assert isinstance(signal, Tensor)  # there is no value weight
        attention: Any = self.attention
        scale = getattr(attention, "kv_lora_scale", 1.0)
        compress, expand, rank = attention.kv_a_proj_with_mqa, attention.kv_b_proj, attention.kv_lora_rank
        steered: list[Tensor] = []

        def compress_signal(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            latent = compress.forward(inputs[0] + signal.to(inputs[0].dtype))[..., :rank]
            steered[:] = [attention.kv_a_layernorm(latent).unsqueeze(1) * scale]

        def take_keys(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if inputs[0].shape[-1] > rank:  # from the cache
                keys, steered[:] = inputs[0][..., :rank], [inputs[0][..., rank:]]
                return (keys, *inputs[1:])
            return inputs

        def replace_values(_: nn.Module, __: tuple[Tensor, ...], expanded: Tensor) -> Tensor:
            heads = (-1, attention.qk_nope_head_dim + attention.v_head_dim)
            keys = expanded.unflatten(-1, heads)[..., : attention.qk_nope_head_dim]
            values = expand.forward(steered[0]).unflatten(-1, heads)[..., attention.qk_nope_head_dim :]
            return torch.cat([keys, values], dim=-1).flatten(-2)

        def update(latents: Tensor, *arguments: Any, **settings: Any) -> Any:
            return original(torch.cat([latents, steered[0].to(latents.dtype)], dim=-1), *arguments, **settings)

        with ExitStack() as attached:
            for handle in (
                compress.register_forward_hook(compress_signal),
                expand.register_forward_pre_hook(take_keys),
                expand.register_forward_hook(replace_values),
            ):
                attached.callback(handle.remove)
            if cache is not None:
                original = cache.update
                attached.enter_context(replace_attribute(cache, "update", update))
            yield
