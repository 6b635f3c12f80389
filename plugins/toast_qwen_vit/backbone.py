"""A stock timm `Qwen3VitEncoder` or `Qwen3VitClassifier` as a backbone with two passes."""

from __future__ import annotations

from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from torch import Tensor

from toast_cli.plugin import State, UsageError
from toast_timm.any_model import make_wrap
from toast_timm.rotary_tower import RotaryTowerBackbone, get_encoder_size


class QwenVitBackbone(RotaryTowerBackbone):
    """The vision tower of Qwen3-VL or Qwen3.5, with timm's classifier around it or without. A level is a block.

    The encoder has no final norm. `z` is the patch tokens after the norm that the model applies next: that of the
    projector, the merger of 2 by 2 tokens, or the classifier's, which pools first. Without either, `z` is the output of
    the last block, as for LLaMA. The learned position embeddings are resampled to the image; only a merger needs an
    even number of patches on each side.
    """

    module: Qwen3VitEncoder | Qwen3VitClassifier

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with the learned position embeddings.

        Raises:
            UsageError: The merger cannot group the patches.
        """
        merger = self.encoder.merger
        if merger is not None and any(side % merger.merge_size for side in self.grid(inputs)):
            step = merger.merge_size * self.encoder.patch_embed.patch_size[0]
            raise UsageError(
                f"{type(self.module).__name__} cannot take images of {inputs.shape[-2]} × {inputs.shape[-1]} pixels.",
                f"Its merger joins {merger.merge_size} × {merger.merge_size} patches.",
                f"Set backbone.image_size to a multiple of {step}.",
                code="backbone.wrong-image-size",
            )
        return super().enter(inputs)

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the patch tokens as a map `[B, rows, columns, d]`, or the merged tokens `[B, N / 4, d']`."""
        features = tokens.unflatten(1, grid)
        return features if self.encoder.merger is None else self.encoder.merger(features)

    def normalize(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the norm of the merger or the classifier, if there is one."""
        if self.encoder.merger is not None:
            normed: Tensor = self.encoder.merger.norm(tokens)
            return normed
        return self.module.norm(tokens) if isinstance(self.module, Qwen3VitClassifier) else tokens


wrap_qwen_vit = make_wrap(QwenVitBackbone, (Qwen3VitEncoder, Qwen3VitClassifier), get_encoder_size)
