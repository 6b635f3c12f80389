"""What every method with a feedback path shares: which levels it steers, how the path starts, whether P is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.utils.config import NamedOptions, Switch
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from torch.nn import Parameter

    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel
    from toast_cli.steering.steering import Steering


class FeedbackOptions(NamedOptions):
    """Which levels are steered, how the feedback path starts, and what of the selection is trained."""

    feedback: Literal["full", "early", "late"] = Field(
        "full",
        description="full: from the last level to all; early: from feedback_level to those before it; late: from the "
        "last to those after feedback_level (section 5)",
    )
    feedback_level: int | None = Field(
        None, ge=1, description="early: levels of the first pass; late: levels that both passes share; left out: half"
    )
    token_selection: Switch = Field(True, description="weigh tokens by their similarity to xi; off: table 7's ablation")
    train_P: bool = Field(
        True,
        description="train the channel transform P (the paper's text); false gives the counts of the paper's tables",
    )
    start: Literal["random", "least-squares"] = Field(
        "least-squares",
        description="random: normal, 0.02, as the authors; least-squares: A rebuilds each level's input (ours)",
    )
    start_images: int = Field(512, ge=1, description="training images that the least-squares start looks at")


def build_steering(options: FeedbackOptions, backbone: Backbone) -> Steering:
    """Selection and feedback path for the levels that the options name.

    Raises:
        UsageError: the backbone has no such level.
    """
    from toast_cli.steering.steering import Steering

    count = len(backbone.levels)
    middle = options.feedback_level or count // 2
    if options.feedback == "full" and options.feedback_level is not None:
        raise UsageError(
            "feedback_level goes with feedback: early or late.",
            what_to_do="Leave one of them out.",
            code="method.incomplete-feedback",
        )
    if options.feedback != "full" and not 0 < middle < count:
        raise UsageError(
            f"There is no {options.feedback} feedback at level {middle} of {count}.",
            what_to_do=f"Give method.feedback_level from 1 to {count - 1}.",
            code="method.feedback-level-out-of-range",
        )
    levels = {"full": range(count), "early": range(middle), "late": range(middle, count)}[options.feedback]
    return Steering(backbone, levels, token_selection=options.token_selection)


def get_trained_selection_parameters(options: FeedbackOptions, steering: Steering) -> list[Parameter]:
    """Xi and P, as far as the options have them trained."""
    selection = steering.selection
    return [*([selection.xi] if options.token_selection else []), *([selection.P] if options.train_P else [])]


def initialize_steering(options: FeedbackOptions, adapted: AdaptedModel, batches: Iterable[Any]) -> None:
    """Give the feedback path its least-squares start; a random one was drawn when it was built."""
    from toast_cli.steering.least_squares import initialize_least_squares
    from toast_cli.steering.steering import Steering

    assert isinstance(adapted.steering, Steering)
    initialize_least_squares(adapted.steering, adapted.backbone, batches)


def count_start_images(options: FeedbackOptions) -> int:
    """How many training images the start needs."""
    return options.start_images if options.start == "least-squares" else 0
