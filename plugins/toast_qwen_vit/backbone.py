"""A stock timm `Qwen3VitEncoder` or `Qwen3VitClassifier` as a backbone with two passes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import AttentionRope
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from torch import Tensor

from toast_cli.plugin import (
    Backbone,
    Level,
    Preprocessing,
    Readout,
    Signal,
    State,
    ToastError,
    Trace,
    UsageError,
)
from toast_qwen_vit.attention_maps import record_rotary_attention
from toast_timm.loading import get_licence
from toast_timm.patch_grid import infer_patch_grid
from toast_timm.value_rows import steer_value_rows


@dataclass(frozen=True)
class PatchPositions:
    """Rows and columns of the patch tokens, and their rotary embedding `[N, 2 d_h]`, sines before cosines."""

    grid: tuple[int, int]
    rope: Tensor


class QwenVitBackbone(Backbone):
    """The vision tower of Qwen3-VL or Qwen3.5, with timm's classifier around it or without. A level is a block.

    The encoder has no final norm. `z` is the patch tokens after the norm that the model applies next: the merger's, or
    the classifier's, which pools first. Without either, `z` is the output of the last block, as for LLaMA. The merger
    joins blocks of 2 by 2 tokens, so its output does not fit the levels: it is part of the pooling.

    An encoder without a classifier returns tokens for a language model. Their mean is its pooled features, as timm's
    classifier takes it. The position embeddings are resampled to any image size, also non-square ones; only a merger
    needs an even number of patches on each side.

    Raises:
        ToastError: The blocks have no fused q, k, v projection.
    """

    has_attention = True
    adapter_targets = ("qkv",)
    module: Qwen3VitEncoder | Qwen3VitClassifier

    def __init__(self, module: Qwen3VitEncoder | Qwen3VitClassifier, preprocessing: Preprocessing) -> None:
        self.module = module
        self.encoder = module.encoder if isinstance(module, Qwen3VitClassifier) else module
        self.blocks: list[Any] = list(self.encoder.blocks)
        if not all(isinstance(block.attn, AttentionRope) and block.attn.qkv is not None for block in self.blocks):
            raise ToastError(
                f"The blocks of this {type(module).__name__} have no fused q, k, v projection.",
                "TOAST adds its signal to the values, and other attentions may make theirs in another way.",
                "Choose a tower with timm's own blocks.",
                code="backbone.cannot-steer",
            )
        self.width = self.encoder.embed_dim
        self.head_width = module.head_hidden_size
        self.levels = [Level(self.width, self.width)] * len(self.blocks)
        self.level_modules = self.blocks
        self.preprocessing = preprocessing

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with the learned position embeddings.

        Raises:
            UsageError: The merger cannot group the patches.
        """
        grid = self.grid(inputs)
        merger = self.encoder.merger
        if merger is not None and any(side % merger.merge_size for side in grid):
            step = merger.merge_size * self.encoder.patch_embed.patch_size[0]
            raise UsageError(
                f"{type(self.module).__name__} cannot take images of {inputs.shape[-2]} × {inputs.shape[-1]} pixels.",
                f"Its merger joins {merger.merge_size} × {merger.merge_size} patches.",
                f"Set backbone.image_size to a multiple of {step}.",
                code="backbone.wrong-image-size",
            )
        tokens, rope = self.encoder._pos_embed(self.encoder.patch_embed(inputs))
        return State(tokens, PatchPositions(grid, rope))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        positions = state.context or self._locate(state.hidden)
        block = self.blocks[index]
        recorded: list[tuple[Tensor, Tensor]] = []
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_rows(block.attn.qkv, 2 * block.attn.attn_dim, signal))
            if trace is not None and index in trace.attention_of:
                attached.enter_context(record_rotary_attention(block.attn, positions.rope, recorded))
            hidden = block(state.hidden, rope=positions.rope)
        if trace is not None and recorded:
            trace.attention[index], trace.mismatch[index] = recorded[0]
        return State(hidden, positions)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the fused projection, `[values, d]`."""
        attention = self.blocks[index].attn
        weight: Tensor = attention.qkv.weight
        return weight[2 * attention.attn_dim :]

    def leave(self, state: State) -> Readout:
        """Return the patch tokens `[B, N, d]`, and the pooled features of the classifier or of the encoder."""
        positions = state.context or self._locate(state.hidden)
        z = self._normalize(state.hidden)
        features = state.hidden.unflatten(1, positions.grid)
        if self.encoder.merger is not None:
            features = self.encoder.merger(features)
        return Readout(z=z, compared=z, pooled=self._pool(features))

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the norm, without the merger."""
        z = self._normalize(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(dim=1))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        features = self.encoder(inputs)
        return features if features.ndim == 2 else self._pool(features)

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the preprocessed size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        height, width = inputs.shape[-2:]
        rows, columns = self.encoder.patch_embed.patch_size
        return height // rows, width // columns

    def _normalize(self, tokens: Tensor) -> Tensor:
        """Apply the norm that follows the last block to every token."""
        if self.encoder.merger is not None:
            normed: Tensor = self.encoder.merger.norm(tokens)
            return normed
        return self.module.norm(tokens) if isinstance(self.module, Qwen3VitClassifier) else tokens

    def _pool(self, features: Tensor) -> Tensor:
        """Return pooled features `[B, d]` of the encoder's output, `[B, rows, columns, d]` or merged `[B, N, d]`."""
        if isinstance(self.module, Qwen3VitClassifier):
            return self.module.forward_head(features, pre_logits=True)
        return features.mean(dim=tuple(range(1, features.ndim - 1)))

    def _locate(self, tokens: Tensor) -> PatchPositions:
        """Return the positions of tokens without a context."""
        grid = infer_patch_grid(self, tokens)
        return PatchPositions(grid, self.encoder.rope.get_embed(shape=grid))
