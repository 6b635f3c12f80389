"""A check that packed texts do not attend to each other, which depends on the masks that a model makes."""

from __future__ import annotations

import torch
from accelerate.utils import send_to_device

from toast_cli.data.text.loader import TokenizedText, collate_texts, pack_texts
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError

CHECKED_TOKENS = 24
"""Number of tokens of each of the two texts."""
MAX_DIFFERENCE, MAX_DIFFERENCE_16_BITS = 1e-3, 0.03
"""Largest change of logits, as a share of their size, that is rounding."""


@torch.no_grad()
def check_packing(model: Model) -> None:
    """Check that a text has the same logits in a block with another text as alone.

    A model of transformers gets the places of tokens, and separates texts in its attention by them. Not every family
    does, and layers that pass a state from token to token cannot.

    Raises:
        UsageError: The logits differ.
    """
    weight = next(model.backbone.module.parameters())
    if weight.is_meta:  # the model is only planned, and nothing is trained
        return
    limits = model.backbone.text_limits
    length = min(CHECKED_TOKENS, limits.window or CHECKED_TOKENS)
    drawn = torch.randint(
        limits.vocabulary or CHECKED_TOKENS, (2, length), generator=torch.Generator().manual_seed(0)
    ).tolist()
    first, second = (TokenizedText(ids, ids, list(range(length))) for ids in drawn)
    mode = model.training
    model.eval()
    try:
        alone, packed = (
            model(send_to_device(model.objective.inputs(collate_texts(texts, 0)), weight.device))[0, -length:].float()
            for texts in ([second], pack_texts([first, second], 2 * length))
        )
    finally:
        model.train(mode)
    difference = float((packed - alone).norm() / alone.norm())
    if difference > (MAX_DIFFERENCE if weight.dtype == torch.float32 else MAX_DIFFERENCE_16_BITS):
        raise UsageError(
            f"{type(model.backbone.module).__name__} cannot be trained with dataset.packing.",
            f"Texts in the same block change each other: the logits of a text differ by {difference:.1%} from those "
            "that it has alone.",
            "Leave dataset.packing out.",
            code="training.packed-texts-leak",
        )
