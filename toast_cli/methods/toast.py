"""TOAST: train selection and feedback path in full and freeze the backbone (section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.methods.feedback import (
    FeedbackOptions,
    build_steering,
    count_start_images,
    get_trained_selection_parameters,
    initialize_steering,
)
from toast_cli.utils.config import Switch
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class ToastOptions(FeedbackOptions):
    """Options of TOAST."""

    name: Literal["toast"] = Field("toast", description="the method")
    train_A: bool = Field(
        True,
        description="train every A_l; false with train_P=false gives the LLaMA parameter counts of the paper's tables",
    )
    channel_selection: Switch = Field(
        True,
        description="off: freeze P and the whole feedback path (ablation of table 7, for a pre-tuned path)",
    )


def build_toast(options: ToastOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains xi and every `B_l`, and by default every `A_l` and P.

    Raises:
        UsageError: The backbone has no such level.
    """
    from toast_cli.methods.adapted_model import AdaptedModel

    steering = build_steering(options, backbone)
    if not options.channel_selection:
        return AdaptedModel(backbone, [steering.selection.xi] if options.token_selection else [], steering)
    feedback = steering.feedback if options.train_A else steering.feedback.B
    return AdaptedModel(
        backbone, [*get_trained_selection_parameters(options, steering), *feedback.parameters()], steering
    )


def check_frozen_path(options: ToastOptions, pretuned: bool) -> None:
    """Check that a frozen feedback path does not start at zero.

    Raises:
        UsageError: The path is frozen, and the least-squares start leaves it at zero.
    """
    if not options.channel_selection and options.start == "least-squares" and not pretuned:
        raise UsageError(
            "channel_selection: false freezes the feedback path, and the least-squares start leaves it at zero.",
            what_to_do="Give a pre-tuned path with --init-from, or set method.start=random.",
            code="method.frozen-zero-feedback",
        )


METHOD = Method(ToastOptions, build_toast, initialize_steering, count_start_images, check=check_frozen_path)
