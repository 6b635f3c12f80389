"""The interface of methods: ways to adapt a frozen backbone that declare the parameters they train."""

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
    """A registered method: its options and how it adapts a backbone.

    `build(options, backbone)` returns an `AdaptedModel` that trains exactly its declared parameters.
    `start(options, adapted, batches)`, if any, initializes the weights from `start_images(options)` training images. It
    is not called when an adapter is loaded. `check(options, pretuned)` raises a UsageError for options without a usable
    start, given whether there is a pre-tuned artifact. A method with `alters` adds layers to the network or trains its
    weights, so that a plain call of the network no longer gives its original output. `complete(options, task)` returns
    the options of a new run of this task: what its recipe leaves out may depend on the task, and what it sets stays.
    """

    options: type[NamedOptions]
    build: Callable[[Any, Backbone], AdaptedModel]
    start: Callable[[Any, AdaptedModel, Iterable[Any]], None] | None = None
    start_images: Callable[[Any], int] = lambda options: 0
    alters: bool = False
    check: Callable[[Any, bool], None] = lambda options, pretuned: None
    complete: Callable[[Any, str], Any] = lambda options, task: options
