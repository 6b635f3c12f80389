"""A toast backbone in two files. This one holds what is registered, and must not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.plugin import BackboneOptions, Card, Family, UsageError, did_you_mean

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone

DEPTHS = {"tiny": 2, "deep": 4}
"""The models of the family, by their number of blocks."""


def build(options: BackboneOptions) -> Backbone:
    """Build `example_tiny` or `example:MODEL`."""
    from toast_example.backbone import build_example

    model = options.name.partition(":")[2] or "tiny"
    return build_example(DEPTHS[model], options.weights)


def find_card(model: str) -> Card:
    """Return the card of MODEL in `example:MODEL`."""
    if model not in DEPTHS:
        raise UsageError(
            f"There is no model 'example:{model}'.",
            what_to_do=did_you_mean(model, DEPTHS),
            code="backbone.unknown-name",
        )
    return Card(f"example:{model}", "example", None, SOURCE, build)


SOURCE = "drawn from a fixed seed (an example, not a trained model)"
CARD = Card("example_tiny", "example", 31_136, SOURCE, build)
FAMILY = Family("example", "toast_example", find_card)
