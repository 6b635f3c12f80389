"""The loader of a split, chosen by the kind of the split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.data.base import BatchLoader, BatchOptions, LoaderOptions, get_split_kind

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone


def build_loader(split: Any, backbone: Backbone, batches: BatchOptions, options: LoaderOptions) -> BatchLoader:
    """Return a loader of a split's batches, preprocessed for the backbone.

    Raises:
        UsageError: the backbone does not accept this kind of input, or the options do not fit it.
        ToastError: the split cannot be read, or has nothing to learn from.
    """
    kind = get_split_kind(split)
    if kind == "conversations":
        from toast_cli.data.text.loader import build_conversation_loader

        return build_conversation_loader(split, backbone.require_tokenizer(), batches, options, backbone.text_limits)
    if kind == "documents":
        from toast_cli.data.text.loader import build_document_loader

        return build_document_loader(split, backbone.require_tokenizer(), batches, options, backbone.text_limits)
    preprocessing = backbone.require_preprocessing()
    if kind == "pixels":
        from toast_cli.data.segmentation.loader import build_pixel_loader

        return build_pixel_loader(split, preprocessing, batches, options)
    if kind == "stream":
        from toast_cli.data.streams.loader import build_stream_loader

        return build_stream_loader(split, preprocessing, batches, options)
    from toast_cli.data.images.loader import build_image_loader

    return build_image_loader(split, preprocessing, batches, options)
