"""The prefix `torchvision:`, which finds the kind of a model by itself. Free of torch and torchvision."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Card, Family
from toast_torchvision.options import TorchvisionModelOptions

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _build(model: str, options: TorchvisionModelOptions) -> Backbone:
    from toast_torchvision.loading import build_torchvision

    return build_torchvision(model, options)


def _make_card(model: str) -> Card:
    return Card(
        f"torchvision:{model}",
        "torchvision",
        None,
        f"torchvision, {model}",
        partial(_build, model),
        TorchvisionModelOptions,
    )


def _wrap(module: Any) -> Backbone | None:
    if not any(kind.__module__.startswith("torchvision.models.") for kind in type(module).__mro__):
        return None
    from toast_torchvision.loading import wrap_torchvision

    return wrap_torchvision(module)


def _list_cards() -> Iterable[Card]:
    from toast_torchvision.catalogue import list_torchvision_cards

    return list_torchvision_cards(_make_card)


FAMILY = Family("torchvision", "torchvision", _make_card, _wrap, catalogue=_list_cards)
