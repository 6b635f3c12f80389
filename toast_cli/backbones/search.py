"""Search in the cards of all backbones that can be built: short names, and the catalogues of the families."""

from __future__ import annotations

import re
from collections.abc import Iterable

from toast_cli.backbones.base import Card


def search_cards(text: str, short: Iterable[Card], listed: Iterable[Card]) -> list[Card]:
    """Return the cards that match every word of a text, best first.

    A word matches in the name, the family or the source of a card. Short names come first. Among others, a model of
    that name is followed by names that begin with the text, names with a part that does, and all others; published
    weights precede models without any.

    Args:
        text: Words, in any case.
        short: Cards of short names.
        listed: Cards of the models of libraries.
    """
    words = text.lower().split()

    def matches(card: Card) -> bool:
        described = f"{card.name} {card.family} {card.source}".lower()
        return all(word in described for word in words)

    found = sorted((card for card in listed if matches(card)), key=lambda card: _rank(card, words))
    return [*sorted((card for card in short if matches(card)), key=lambda card: card.name), *found]


def _rank(card: Card, words: list[str]) -> tuple[object, ...]:
    model = card.name.partition(":")[2].lower()
    first = words[0] if words else ""
    parts = re.split(r"[_.\-/]", model)
    exact = model == first or model.startswith(f"{first}.")
    return (
        not exact,
        not model.startswith(first),
        not any(part.startswith(first) for part in parts),
        first not in model,
        not card.published,
        model,
    )


def find_listed_card(model: str, listed: Iterable[Card]) -> Card | None:
    """Return the card of `MODEL` or of its preferred weights (`MODEL.TAG`) in a catalogue, or None."""
    tagged = None
    for card in listed:
        name = card.name.partition(":")[2]
        if name == model:
            return card
        if tagged is None and name.startswith(f"{model}."):
            tagged = card
    return tagged
