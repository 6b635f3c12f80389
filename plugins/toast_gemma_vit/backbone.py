"""A stock timm `Gemma4VitEncoder` or `Gemma4VitClassifier` as a backbone with two passes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from torch import Tensor

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, Trace, UsageError
from toast_gemma_vit.attention_maps import record_gemma_attention
from toast_gemma_vit.position_lookup import look_up_positions
from toast_timm.loading import get_licence
from toast_timm.patch_grid import infer_patch_grid
from toast_timm.value_rows import steer_value_rows


@dataclass(frozen=True)
class PatchPositions:
    """Coordinates (x, y) of the patch tokens, `[B, N, 2]`, and their rotary embedding, `[B, N, d_h]` each."""

    coordinates: Tensor
    cosines: Tensor
    sines: Tensor


class GemmaVitBackbone(Backbone):
    """The vision tower of Gemma 4, with timm's classifier around it or without. A level is a block.

    The signal enters at the linear layer of the value projection, so `V = norm(clamp(W_V (X + X_td)))`: the clamps of
    the E4B weights and the norm without gain that Gemma applies to its values stay as they are.

    The encoder has no final norm. `z` is the patch tokens after the classifier's norm, which pools first, and without a
    classifier the output of the last block, as for LLaMA. The soft tokens for a language model average 3 by 3 patches,
    so they do not fit the levels: they are part of the pooling. An encoder's pooled features are their mean. Without
    soft tokens, images may have any size, also a non-square one.

    Images are read as pixels from 0 to 1, which the model itself scales. Dictionaries of patches are not read.
    """

    has_attention = True
    adapter_targets = ("q_proj.linear", "k_proj.linear", "v_proj.linear")
    module: Gemma4VitEncoder | Gemma4VitClassifier

    def __init__(self, module: Gemma4VitEncoder | Gemma4VitClassifier, preprocessing: Preprocessing) -> None:
        self.module = module
        self.encoder = module.encoder if isinstance(module, Gemma4VitClassifier) else module
        self.blocks: list[Any] = list(self.encoder.blocks)
        self.width = self.head_width = self.encoder.embed_dim
        self.levels = [Level(self.width, self.width)] * len(self.blocks)
        self.level_modules = self.blocks
        self.preprocessing = preprocessing

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with the learned position embeddings.

        Raises:
            UsageError: The soft tokens cannot group the patches.
        """
        kernel = self.encoder.pooling_kernel_size
        steps = [kernel * side for side in self.encoder.patch_size]
        if self.encoder.global_pool == "soft" and any(
            side % step for side, step in zip(inputs.shape[-2:], steps, strict=True)
        ):
            raise UsageError(
                f"{type(self.module).__name__} cannot take images of {inputs.shape[-2]} × {inputs.shape[-1]} pixels.",
                f"Its soft tokens average {kernel} × {kernel} patches.",
                f"Set backbone.image_size to a multiple of {max(steps)}.",
                code="backbone.wrong-image-size",
            )
        with look_up_positions(self.encoder.patch_embed):
            tokens, coordinates, _ = self.encoder.patch_embed(inputs)
        return State(tokens, self._rotate(tokens, coordinates))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection's linear layer."""
        positions = state.context or self._locate(state.hidden)
        block = self.blocks[index]
        recorded: list[tuple[Tensor, Tensor]] = []
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_rows(block.attn.v_proj.linear, 0, signal))
            if trace is not None and index in trace.attention_of:
                rotation = (positions.cosines, positions.sines)
                attached.enter_context(record_gemma_attention(block.attn, *rotation, recorded))
            hidden = block(state.hidden, positions.cosines, positions.sines)
        if trace is not None and recorded:
            trace.attention[index], trace.mismatch[index] = recorded[0]
        return State(hidden, positions)

    def value_weight(self, index: int) -> Tensor:
        """Return the weight of the value projection's linear layer, `[values, d]`."""
        weight: Tensor = self.blocks[index].attn.v_proj.linear.weight
        return weight

    def leave(self, state: State) -> Readout:
        """Return the patch tokens `[B, N, d]`, and the pooled features of the classifier or of the encoder."""
        encoder, features = self.encoder, state.hidden
        z = self._normalize(state.hidden)
        if encoder.global_pool == "soft":
            positions = state.context or self._locate(state.hidden)
            features, _ = encoder.pooler(features, positions.coordinates, None)
            if encoder.std_bias is not None:
                features = (features - encoder.std_bias) * encoder.std_scale
        return Readout(z=z, compared=z, pooled=self._pool(features))

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the norm, without soft tokens."""
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
        return torch.rand(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        height, width = inputs.shape[-2:]
        rows, columns = self.encoder.patch_size
        return height // rows, width // columns

    def _normalize(self, tokens: Tensor) -> Tensor:
        """Apply the classifier's norm, if there is one, to every token."""
        return self.module.norm(tokens) if isinstance(self.module, Gemma4VitClassifier) else tokens

    def _pool(self, features: Tensor) -> Tensor:
        """Return pooled features `[B, d]` of the encoder's output `[B, N, d]`."""
        if isinstance(self.module, Gemma4VitClassifier):
            return self.module.forward_head(features, pre_logits=True)
        return features.mean(dim=1)

    def _rotate(self, tokens: Tensor, coordinates: Tensor) -> PatchPositions:
        """Return the positions of tokens with their rotary embedding."""
        return PatchPositions(coordinates, *self.encoder.rotary_emb(tokens, coordinates))

    def _locate(self, tokens: Tensor) -> PatchPositions:
        """Return the positions of tokens without a context."""
        grid = infer_patch_grid(self, tokens)
        coordinates, _ = self.encoder.patch_embed._default_patch_coord(len(tokens), *grid, tokens.device)
        return self._rotate(tokens, coordinates.flip(dims=(-1,)))
