"""A stock timm `Gemma4VitEncoder` or `Gemma4VitClassifier` as a backbone with two passes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.models.gemma4_vit import Gemma4Attention, Gemma4VitClassifier, Gemma4VitEncoder
from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, State, UsageError
from toast_gemma_vit.position_lookup import look_up_positions
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import BlockContext
from toast_timm.rotary_tower import PatchPositions, RotaryTowerBackbone
from toast_timm.value_projection import ValueProjection


class GemmaVitBackbone(RotaryTowerBackbone):
    """The vision tower of Gemma 4, with timm's classifier around it or without. A level is a block.

    The signal enters at the linear layer of the value projection, so `V = norm(clamp(W_V (X + X_td)))`: the clamps of
    the E4B weights and the norm without gain that Gemma applies to its values stay as they are.

    The encoder has no final norm. `z` is the patch tokens after the classifier's norm, which pools first, and without a
    classifier the output of the last block, as for LLaMA. The soft tokens for a language model average 3 by 3 patches,
    so they do not fit the levels: they are part of the pooling. An encoder's pooled features are their mean. Without
    soft tokens, images may have any size, also a non-square one.

    Images are read as pixels from 0 to 1, which the model itself scales. Dictionaries of patches are not read.
    """

    module: Gemma4VitEncoder | Gemma4VitClassifier

    def __init__(self, module: Gemma4VitEncoder | Gemma4VitClassifier, preprocessing: Preprocessing) -> None:
        super().__init__(module, preprocessing)
        self.adapter_targets = ("q_proj.linear", "k_proj.linear", "v_proj.linear")

    def find_projections(self, block: nn.Module) -> list[ValueProjection]:
        """Return the linear layer between the clamps of the value projection."""
        layers = [part.v_proj for part in block.modules() if isinstance(part, Gemma4Attention)]
        return [ValueProjection(layer, "linear", len(layer.linear.weight)) for layer in layers]

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
            tokens, _, _ = self.encoder.patch_embed(inputs)
        grid = self.grid(inputs)
        return State(tokens, BlockContext(PatchPositions(grid, self.rotate(tokens, grid))))

    def rotate(self, tokens: Tensor, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """Return the rotary embedding of the tokens of a grid, `[B, N, d_h]` each."""
        cosines, sines = self.encoder.rotary_emb(tokens, self._list_coordinates(tokens, grid))
        return {"rope_cos": cosines, "rope_sin": sines}

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the soft tokens of an encoder that makes them, else the patch tokens."""
        encoder = self.encoder
        if encoder.global_pool != "soft":
            return tokens
        features, _ = encoder.pooler(tokens, self._list_coordinates(tokens, grid), None)
        return features if encoder.std_bias is None else (features - encoder.std_bias) * encoder.std_scale

    def normalize(self, tokens: Tensor) -> Tensor:
        """Apply the classifier's norm, if there is one, to every token."""
        return self.module.norm(tokens) if isinstance(self.module, Gemma4VitClassifier) else tokens

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the preprocessed size."""
        return torch.rand(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        height, width = inputs.shape[-2:]
        rows, columns = self.encoder.patch_size
        return height // rows, width // columns

    def _list_coordinates(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the coordinates (x, y) of the patch tokens, `[B, N, 2]`."""
        coordinates, _ = self.encoder.patch_embed._default_patch_coord(tokens.shape[0], *grid, tokens.device)
        return coordinates.flip(dims=(-1,))


wrap_gemma_vit = make_wrap(GemmaVitBackbone, (Gemma4VitEncoder, Gemma4VitClassifier))
