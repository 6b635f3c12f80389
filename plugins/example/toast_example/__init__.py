"""A toast backbone in two short files. This one holds the card, which must not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.plugin import BackboneOptions, Card

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _build(options: BackboneOptions) -> Backbone:
    from toast_example.backbone import build_example

    return build_example(options)


CARD = Card("example_tiny", "example", 31_136, "drawn from a fixed seed (an example, not a trained model)", _build)
