"""The cards of all classifiers of torchvision. torchvision records no licence of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torchvision import models

from toast_cli.plugin import Card


def list_torchvision_cards(make_card: Callable[[str], Card]) -> Iterator[Card]:
    """Yield a card for each classifier of torchvision, with what is known about its default weights."""
    for name in models.list_models(module=models):
        published = [*models.get_model_weights(name)]
        card = replace(make_card(name), published=bool(published))
        if published:
            weights = published[-1]  # the alias DEFAULT names the last of them
            crop = getattr(weights.transforms, "keywords", {}).get("crop_size")
            card = replace(card, parameters=weights.meta.get("num_params"), image_size=crop)
        yield card
