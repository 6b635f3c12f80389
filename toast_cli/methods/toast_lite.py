"""TOAST-Lite: train low-rank factors on a frozen feedback path, and xi and P in full (sections 3.2 and 4.5)."""

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

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class ToastLiteOptions(FeedbackOptions):
    """Options of TOAST-Lite."""

    name: Literal["toast-lite"] = Field("toast-lite", description="the method")
    rank: int = Field(4, ge=1, description="rank of the factors on every A_l and B_l")
    alpha: float = Field(1.0, gt=0, description="the factors are scaled by alpha / rank; the authors' code uses 0.25")


def build_toast_lite(options: ToastLiteOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains xi, the factors on every `A_l` and `B_l`, and by default P."""
    from toast_cli.methods.adapted_model import AdaptedModel
    from toast_cli.steering.lite import add_low_rank_factors

    steering = build_steering(options, backbone)
    factors = add_low_rank_factors(steering.feedback, options.rank, options.alpha)
    return AdaptedModel(backbone, [*get_trained_selection_parameters(options, steering), *factors], steering)


METHOD = Method(ToastLiteOptions, build_toast_lite, initialize_steering, count_start_images)
