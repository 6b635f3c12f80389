"""The settings that every method with a feedback path shares: how the path starts, and whether P is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.options import Named

if TYPE_CHECKING:
    from toast_cli.methods.adapted import Adapted


class FeedbackOptions(Named):
    """How the feedback path starts and what of the selection is trained."""

    train_P: bool = Field(
        True,
        description="train the channel transform P (the paper's text); false gives the counts of the paper's tables",
    )
    start: Literal["random", "least-squares"] = Field(
        "least-squares",
        description="random: normal, 0.02, as the authors; least-squares: A rebuilds each level's input (ours)",
    )
    start_images: int = Field(512, ge=1, description="training images that the least-squares start looks at")


def start_feedback(options: FeedbackOptions, adapted: Adapted, batches: Iterable[Any]) -> None:
    """Give the feedback path its least-squares start; a random one was drawn when it was built."""
    from toast_cli.steering.least_squares import least_squares_start

    assert adapted.steering is not None
    least_squares_start(adapted.steering, adapted.backbone, batches)


def start_images(options: FeedbackOptions) -> int:
    """How many training images the start needs."""
    return options.start_images if options.start == "least-squares" else 0
