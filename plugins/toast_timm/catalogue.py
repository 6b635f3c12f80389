"""The cards of all models of timm, with each of their published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import timm
from timm.models import get_arch_pretrained_cfgs

from toast_cli.plugin import Card


def list_timm_cards(make_card: Callable[[str], Card]) -> Iterator[Card]:
    """Yield a card for each entry point of timm and each tag of its weights, the default tag first.

    `make_card` returns the card of a model by its timm name. The source that replaces its own names timm's module,
    which is a hint at the kind of network.
    """
    for model in timm.list_models():
        module = timm.model_entrypoint(model).__module__.rpartition(".")[2]
        for name, config in (get_arch_pretrained_cfgs(model) or {model: None}).items():
            published = config is not None and bool(config.has_weights)
            card = replace(make_card(name), source=f"timm, {module}", published=published)
            if config is not None:
                licence = config.license if config.license != "unknown" else None
                height, width = config.input_size[-2:]
                size = height if height == width else (height, width)
                card = replace(card, image_size=size, licence=licence if published else None)
            yield card
