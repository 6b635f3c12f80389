"""TOAST: train selection and feedback path in full, leave the backbone alone (section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.methods.feedback_start import FeedbackOptions, start_feedback, start_images

if TYPE_CHECKING:
    from toast_cli.backbone import Backbone
    from toast_cli.methods.adapted import Adapted


class Options(FeedbackOptions):
    """TOAST's settings."""

    name: Literal["toast"] = Field("toast", description="the method")
    train_A: bool = Field(
        True, description="train every A_l; false, with train_P=false, gives the LLaMA counts of the paper's tables"
    )


def build(options: Options, backbone: Backbone) -> Adapted:
    """Xi and every `B_l`, and every `A_l` and P unless told otherwise, are trained."""
    from toast_cli.methods.adapted import Adapted
    from toast_cli.steering.steering import Steering

    steering = Steering(backbone)
    selection = [steering.selection.xi, *([steering.selection.P] if options.train_P else [])]
    feedback = steering.feedback if options.train_A else steering.feedback.B
    return Adapted(backbone, [*selection, *feedback.parameters()], steering)


METHOD = Method(Options, build, start_feedback, start_images)
