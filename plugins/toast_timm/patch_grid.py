"""The grid of patch tokens that come without their images."""

from __future__ import annotations

from torch import Tensor

from toast_cli.plugin import Backbone, ToastError


def infer_patch_grid(backbone: Backbone, tokens: Tensor) -> tuple[int, int]:
    """Return rows and columns of tokens `[B, N, d]` from a cache, as those of images of the preprocessed size.

    Raises:
        ToastError: Images of that size have another number of tokens.
    """
    height, width = backbone.require_preprocessing().image_size
    rows, columns = backbone.grid(tokens.new_empty(1, 3, height, width, device="meta"))
    if rows * columns + backbone.prefix_tokens != tokens.shape[1]:
        raise ToastError(
            f"Cannot place {tokens.shape[1]} tokens in the image.",
            f"Images of {height} × {width} pixels, the size of the backbone, have {rows} × {columns} patches.",
            "Use images of that size, set backbone.image_size, or leave training.cache out.",
            code="backbone.wrong-image-size",
        )
    return rows, columns
