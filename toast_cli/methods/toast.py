"""TOAST: train selection and feedback path in full, leave the backbone alone (section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.methods.feedback import (
    FeedbackOptions,
    make_steering,
    start_feedback,
    start_images,
    trained_selection,
)
from toast_cli.utils.config import Switch
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import Adapted


class Options(FeedbackOptions):
    """TOAST's settings."""

    name: Literal["toast"] = Field("toast", description="the method")
    train_A: bool = Field(
        True, description="train every A_l; false, with train_P=false, gives the LLaMA counts of the paper's tables"
    )
    channel_selection: Switch = Field(
        True,
        description="off freezes P and the whole feedback path: table 7's ablation, for a path that was pre-tuned",
    )


def build(options: Options, backbone: Backbone) -> Adapted:
    """Xi and every `B_l`, and every `A_l` and P unless told otherwise, are trained.

    Raises:
        UsageError: the backbone has no such level.
    """
    from toast_cli.methods.adapted_model import Adapted

    steering = make_steering(options, backbone)
    if not options.channel_selection:
        return Adapted(backbone, [steering.selection.xi] if options.token_selection else [], steering)
    feedback = steering.feedback if options.train_A else steering.feedback.B
    return Adapted(backbone, [*trained_selection(options, steering), *feedback.parameters()], steering)


def check(options: Options, pretuned: bool) -> None:
    """What is frozen must have been given something before.

    Raises:
        UsageError: the path would be frozen where the least-squares start leaves it, at zero.
    """
    if not options.channel_selection and options.start == "least-squares" and not pretuned:
        raise UsageError(
            "channel_selection: false freezes the feedback path, and the least-squares start leaves it at zero.",
            what_to_do="Give a pre-tuned path with --init-from, or method.start=random.",
        )


METHOD = Method(Options, build, start_feedback, start_images, check=check)
