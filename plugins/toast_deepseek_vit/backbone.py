"""A stock timm `DeepseekVitEncoder` or `DeepseekVitClassifier` as a backbone with two passes."""

from __future__ import annotations

from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from torch import Tensor

from toast_timm.any_model import make_wrap
from toast_timm.rotary_tower import RotaryTowerBackbone, get_encoder_size


class DeepseekVitBackbone(RotaryTowerBackbone):
    """The vision tower of DeepSeek-V4, with timm's classifier around it or without. A level is a block.

    `z` is the patch tokens after the encoder's final norm. The projector, the aligner of 3 by 3 tokens, pads the map of
    patches to a multiple of three.
    """

    module: DeepseekVitEncoder | DeepseekVitClassifier

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the normed tokens as a map `[B, rows, columns, d]`, or the aligned tokens `[B, N', d']`."""
        features = self.normalize(tokens).unflatten(1, grid)
        return features if self.encoder.aligner is None else self.encoder.aligner(features)

    def normalize(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the encoder's final norm."""
        normed: Tensor = self.encoder.norm(tokens)
        return normed


wrap_deepseek_vit = make_wrap(DeepseekVitBackbone, (DeepseekVitEncoder, DeepseekVitClassifier), get_encoder_size)
