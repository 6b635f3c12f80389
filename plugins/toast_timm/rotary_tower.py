"""The vision towers of language models that timm builds from blocks with rotary positions (Qwen3, DeepSeek)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import AttentionRope
from torch import Tensor, nn

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, ToastError, Trace
from toast_timm.loading import get_licence
from toast_timm.patch_grid import infer_patch_grid
from toast_timm.rotary_attention import record_rotary_attention
from toast_timm.value_rows import steer_value_rows


@dataclass(frozen=True)
class PatchPositions:
    """Rows and columns of the patch tokens, and their rotary embedding `[N, 2 d_h]`, sines before cosines."""

    grid: tuple[int, int]
    rope: Tensor


class RotaryTowerBackbone(Backbone):
    """A vision tower with timm's classifier around it (`module.encoder`) or without. A level is a block.

    A projector joins blocks of tokens for the language model. Its output does not fit the levels, so it is part of the
    pooling. The pooled features of an encoder without a classifier are the mean of the tokens that it returns, as
    timm's classifiers take it. Positions depend on the image, so images may have any size, also a non-square one.

    Raises:
        ToastError: The blocks have no fused q, k, v projection.
    """

    has_attention = True
    adapter_targets = ("qkv",)

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        self.module = module
        self.encoder: Any = getattr(module, "encoder", module)
        self.has_classifier = self.encoder is not module
        self.blocks: list[Any] = list(self.encoder.blocks)
        if not all(isinstance(block.attn, AttentionRope) and block.attn.qkv is not None for block in self.blocks):
            raise ToastError(
                f"The blocks of this {type(module).__name__} have no fused q, k, v projection.",
                "TOAST adds its signal to the values, and other attentions may make theirs in another way.",
                "Choose a tower with timm's own blocks.",
                code="backbone.cannot-steer",
            )
        head_width: Any = module.head_hidden_size
        self.width, self.head_width = self.encoder.embed_dim, head_width
        self.levels = [Level(self.width, self.width)] * len(self.blocks)
        self.level_modules = self.blocks
        self.preprocessing = preprocessing

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the output of the encoder, `[B, rows, columns, d]` or `[B, N', d']`, given that of the last block."""
        raise NotImplementedError

    def normalize(self, tokens: Tensor) -> Tensor:
        """Return the tokens `[B, N, d]` after the norm that follows the last block."""
        raise NotImplementedError

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with learned position embeddings, if any."""
        tokens, rope = self.encoder._pos_embed(self.encoder.patch_embed(inputs))
        return State(tokens, PatchPositions(self.grid(inputs), rope))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        positions = self._locate(state)
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
        z = self.normalize(state.hidden)
        pooled = self._pool(self.project(state.hidden, self._locate(state).grid))
        return Readout(z=z, compared=z, pooled=pooled)

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the norm, without the projector."""
        z = self.normalize(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(dim=1))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        features: Tensor = self.encoder(inputs)
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
        rows, columns = self.encoder.patch_embed.dynamic_feat_size(inputs.shape[-2:])
        return rows, columns

    def _pool(self, features: Tensor) -> Tensor:
        """Return pooled features `[B, d]` of the encoder's output."""
        if self.has_classifier:
            pooled: Tensor = self.module.forward_head(features, pre_logits=True)  # type: ignore[operator]
            return pooled
        return features.mean(dim=tuple(range(1, features.ndim - 1)))

    def _locate(self, state: State) -> PatchPositions:
        """Return the positions of the tokens; those without a context come from images of the preprocessed size."""
        if isinstance(state.context, PatchPositions):
            return state.context
        grid = infer_patch_grid(self, state.hidden)
        return PatchPositions(grid, self.encoder.rope.get_embed(shape=grid))
