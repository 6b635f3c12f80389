"""What a method is: a way to adapt a frozen backbone, which declares what it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


@dataclass(frozen=True)
class Method:
    """A registered method: its settings and how it is put on a backbone.

    `build(options, backbone)` returns an `Adapted` whose declared parameters, and only those, are trained.
    `start(options, adapted, batches)`, where there is one, sets the weights that training begins from by looking at
    `start_images(options)` training images; it is not called when an adapter is loaded. `check(options, pretuned)`
    refuses, with a UsageError, settings that would begin from nothing, given whether there is a pre-tuned artifact. A
    method that `alters` the network puts layers into it or trains its weights, so that a plain call of it is no longer
    what it was.
    """

    options: type[NamedOptions]
    build: Callable[[Any, Backbone], AdaptedModel]
    start: Callable[[Any, AdaptedModel, Iterable[Any]], None] | None = None
    start_images: Callable[[Any], int] = lambda options: 0
    alters: bool = False
    check: Callable[[Any, bool], None] = lambda options, pretuned: None
