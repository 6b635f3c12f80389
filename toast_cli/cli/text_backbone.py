"""The language model that texts are checked against and shown for: its tokenizer and limits, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli import registry
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.data.base import DataSet


def open_text_backbone(data: DataSet, backbone: str, weights: str | None) -> Backbone:
    """Return a language model that takes no memory: it has no weights, unless its tokenizer comes only with them.

    Raises:
        UsageError: the data set has images.
        ToastError: there is no such model.
    """
    import torch

    if data.classes:
        raise UsageError(
            "--backbone is for texts, and the data set has images.",
            what_to_do="Leave --backbone out.",
            code="cli.conflicting-options",
        )
    card = registry.load_backbone_card(backbone)
    if weights is not None and Path(weights).expanduser().is_dir():
        card = registry.load_backbone_card(f"{card.family}:{Path(weights).expanduser()}")
    with torch.device("meta"):
        built = card.build(card.options(name=card.name, weights="none"))
    if built.tokenizer is None and built.tokenizer_error is None:
        built = card.build(card.options(name=backbone, weights=weights))
    return built
