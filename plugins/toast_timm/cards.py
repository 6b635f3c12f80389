"""The prefix `timm:`, which finds the family of a model by itself, and cards of timm's models. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Card, Family
from toast_timm.options import TimmOptions

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _build(model: str, options: TimmOptions) -> Backbone:
    from toast_timm.any_model import build_any_model

    return build_any_model(model, options)


def make_timm_family(name: str, wrap: str, *, generic: bool = False) -> Family:
    """Return a family whose models are named with the prefix `timm:`.

    `wrap`, as "module:function", is the function of `Family.wrap`, which is imported when a model is given to it.
    """
    return Family(name, "timm", None, partial(_wrap, wrap), generic=generic)


def _wrap(place: str, module: Any) -> Backbone | None:
    package, _, function = place.partition(":")
    backbone: Backbone | None = getattr(import_module(package), function)(module)
    return backbone


def make_timm_card(
    name: str,
    model: str,
    family: str,
    parameters: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    licence: str | None = None,
) -> Card:
    """Return the card of a timm model, by its timm name, whose family is found when it is built.

    `image_size` and `licence` are those of timm's configuration of the weights.
    """
    return Card(
        name,
        family,
        parameters,
        f"timm, {model}",
        partial(_build, model),
        TimmOptions,
        image_size=image_size,
        licence=licence,
        published=True,
    )


def _make_unlisted_card(model: str) -> Card:
    return replace(make_timm_card(f"timm:{model}", model, "timm"), published=None)


def _list_cards() -> Iterable[Card]:
    from toast_timm.catalogue import list_timm_cards

    return list_timm_cards(_make_unlisted_card)


FAMILY = Family("timm", "timm", _make_unlisted_card, catalogue=_list_cards)
