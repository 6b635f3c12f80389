"""Options shared by all methods with a feedback path: steered levels, start, and whether P is trained."""

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
    """Options of the feedback path: steered levels, start, and trained parts of the selection."""

    feedback: Literal["full", "early", "late"] = Field(
        "full",
        description="full: from the last level to all; early: from feedback_level to earlier levels; late: from the "
        "last level to those after feedback_level (section 5)",
    )
    feedback_level: int | None = Field(
        None,
        ge=1,
        examples=[6],
        description="early: levels of the first pass; late: levels shared by both passes; default: half",
    )
    token_selection: Switch = Field(
        True, description="weigh tokens by their similarity to xi; off: ablation of table 7"
    )
    train_P: bool = Field(
        True,
        description="train the channel transform P (as in the text of the paper); false gives the parameter counts of "
        "its tables",
    )
    start: Literal["random", "least-squares"] = Field(
        "least-squares",
        description="random: normal, std 0.02, as in the authors' code; least-squares: A_l reconstructs the input of "
        "its level (not in the paper)",
    )
    start_images: int = Field(512, ge=1, description="training images that the least-squares start uses")


def build_steering(options: FeedbackOptions, backbone: Backbone) -> Steering:
    """Build selection and feedback path for the levels that the options select.

    Raises:
        UsageError: The backbone has no such level.
        ToastError: The backbone cannot be steered.
    """
    from toast_cli.steering.steering import Steering

    if backbone.steering_error is not None:
        raise backbone.steering_error

    count = len(backbone.levels)
    middle = options.feedback_level or count // 2
    if options.feedback == "full" and options.feedback_level is not None:
        raise UsageError(
            "feedback_level needs feedback: early or late.",
            what_to_do="Set method.feedback to early or late, or leave method.feedback_level out.",
            code="method.incomplete-feedback",
        )
    if options.feedback != "full" and not 0 < middle < count:
        raise UsageError(
            f"There is no {options.feedback} feedback at level {middle} of {count}.",
            what_to_do=f"Set method.feedback_level to a value from 1 to {count - 1}.",
            code="method.feedback-level-out-of-range",
        )
    levels = {"full": range(count), "early": range(middle), "late": range(middle, count)}[options.feedback]
    return Steering(backbone, levels, token_selection=options.token_selection)


def get_trained_selection_parameters(options: FeedbackOptions, steering: Steering) -> list[Parameter]:
    """Return those of xi and P that the options train."""
    selection = steering.selection
    return [*([selection.xi] if options.token_selection else []), *([selection.P] if options.train_P else [])]


def initialize_steering(options: FeedbackOptions, adapted: AdaptedModel, batches: Iterable[Any]) -> None:
    """Initialize the feedback path by least squares. The random start is drawn when the path is built."""
    from toast_cli.steering.least_squares import initialize_least_squares
    from toast_cli.steering.steering import Steering

    assert isinstance(adapted.steering, Steering)
    initialize_least_squares(adapted.steering, adapted.backbone, batches)


def count_start_images(options: FeedbackOptions) -> int:
    """Return the number of training images that the start needs."""
    return options.start_images if options.start == "least-squares" else 0
