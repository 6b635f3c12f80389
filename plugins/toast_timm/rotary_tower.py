"""The vision towers of language models in timm, of blocks with rotary positions (Qwen3, DeepSeek, Gemma 4)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, Readout, State
from toast_timm.flat_transformer import BlockContext, FlatTransformer
from toast_timm.patch_grid import infer_patch_grid


@dataclass(frozen=True)
class PatchPositions:
    """Rows and columns of the patch tokens, and their rotary embedding as the keyword arguments of a block."""

    grid: tuple[int, int]
    rotation: Mapping[str, Tensor]


def get_encoder_size(module: Any) -> tuple[int, int]:
    """Return the image size (height, width) that the encoder was built for."""
    height, width = getattr(module, "encoder", module).patch_embed.img_size
    return height, width


class RotaryTowerBackbone(FlatTransformer):
    """A vision tower with timm's classifier around it (`module.encoder`) or without. A level is a block.

    A projector joins blocks of tokens for the language model. Its output does not fit the levels, so it is part of the
    pooling. The pooled features of an encoder without a classifier are the mean of the tokens that it returns, as
    timm's classifiers take it. Positions depend on the image, so images may have any size, also a non-square one.
    """

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__(module, preprocessing, getattr(module, "encoder", None))

    @abstractmethod
    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the output of the encoder, `[B, rows, columns, d]` or `[B, N', d']`, given that of the last block."""

    @abstractmethod
    def normalize(self, tokens: Tensor) -> Tensor:
        """Return the tokens `[B, N, d]` after the norm that follows the last block."""

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with learned position embeddings, if any."""
        tokens, rope = self.encoder._pos_embed(self.encoder.patch_embed(inputs))
        return State(tokens, BlockContext(PatchPositions(self.grid(inputs), {"rope": rope})))

    def rotate(self, tokens: Tensor, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """Return the rotary embedding of the tokens of a grid."""
        return {"rope": self.encoder.rope.get_embed(shape=grid)}

    def get_arguments(self, index: int, tokens: Tensor, shared: PatchPositions) -> Mapping[str, Any]:
        """Return the rotary embedding, the same for all blocks."""
        return shared.rotation

    def rebuild(self, tokens: Tensor) -> PatchPositions:
        """Return the positions of the tokens of images of the preprocessed size."""
        grid = infer_patch_grid(self, tokens)
        return PatchPositions(grid, self.rotate(tokens, grid))

    def leave(self, state: State) -> Readout:
        """Return the patch tokens `[B, N, d]`, and the pooled features of the classifier or of the encoder."""
        z = self.normalize(state.hidden)
        pooled = self._pool(self.project(state.hidden, self.get_context(state).shared.grid))
        return Readout(z=z, compared=z, pooled=pooled)

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the norm, without the projector."""
        z = self.normalize(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(dim=1))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        features: Tensor = self.encoder(inputs)
        return features if features.ndim == 2 else self._pool(features)

    def _pool(self, features: Tensor) -> Tensor:
        """Return pooled features `[B, d]` of the encoder's output."""
        if self.module is not self.encoder:
            pooled: Tensor = self.module.forward_head(features, pre_logits=True)
            return pooled
        return features.mean(dim=tuple(range(1, features.ndim - 1)))
