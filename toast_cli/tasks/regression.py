"""Regression: one or several numbers per image, mean squared error or Huber loss, MAE, RMSE and R².

Numbers are standardized for the loss with mean and standard deviation of the training split. Outputs and metrics are in
the units of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.tasks.base import Meter, Objective, SampleMeasure, Task
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.constants import NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.backbones.base import Backbone
    from toast_cli.tasks.number_head import NumberHead


MIN_SPREAD = 1e-12
"""Variance of standardized numbers below which they count as equal, so that R² is not defined."""


class RegressionOptions(NamedOptions):
    """Options of regression."""

    name: Literal["regression"] = Field("regression", description="the task")
    loss: Literal["mse", "huber"] = Field(
        "mse", description="mse: mean squared error; huber: linear for errors above huber_delta, so outliers weigh less"
    )
    huber_delta: float = Field(
        1.0,
        gt=0,
        description="loss=huber: error, in standard deviations of the training numbers, where it turns linear",
    )
    select: str = Field(
        "loss",
        examples=["mae"],
        description="metric on the validation split that selects the best epoch; in the loss, numbers count alike, "
        "whatever their units; all but r2 are minimized",
    )


class RegressionMeter(Meter):
    """MAE, RMSE and R², from sums of standardized numbers in float64.

    Args:
        names: Names of the numbers.
        mean: Mean of each number in the training split.
        std: Standard deviation of each number in the training split.
        options: The options of the task.
    """

    def __init__(self, names: tuple[str, ...], mean: Tensor, std: Tensor, options: RegressionOptions) -> None:
        import torch

        self._names, self._options = names, options
        self._mean, self._std = (each.detach().cpu().double() for each in (mean, std))
        sums = {name: torch.zeros(len(names), dtype=torch.float64) for name in ("absolute", "squared")}
        moments = {name: torch.zeros(len(names), dtype=torch.float64) for name in ("total", "total_squared")}
        super().__init__(**sums, **moments, loss=0.0, images=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add numbers `[B, numbers]`, NaN for an image that is left out."""
        known = ~batch["label"].isnan().any(-1)
        answers, truth = ((each[known].cpu().double() - self._mean) / self._std for each in (outputs, batch["label"]))
        self.sums["absolute"] += (answers - truth).abs().sum(0)
        self.sums["squared"] += (answers - truth).square().sum(0)
        self.sums["total"] += truth.sum(0)
        self.sums["total_squared"] += truth.square().sum(0)
        self.sums["loss"] += compute_number_loss(answers, truth, self._options).item()
        self.sums["images"] += len(truth)

    def result(self) -> dict[str, Any]:
        """Return `mae` and `rmse` in the units of the data, `r2`, `loss` of standardized numbers, and `images`.

        With several numbers, they are means over them, and `number_mae`, `number_rmse` and `number_r2` are those of
        each. R² is None if all images have the same number.

        Raises:
            ToastError: There is no image.
        """
        images = self.sums["images"]
        if not images:
            raise ToastError(
                "There is nothing to measure: no image of this split could be read.",
                what_to_do="Run 'toast data check' to see what is wrong with each.",
                code=NOTHING_TO_MEASURE,
            )
        spread = self.sums["total_squared"] - self.sums["total"].square() / images
        mae = self._std * self.sums["absolute"] / images
        rmse = self._std * (self.sums["squared"] / images).sqrt()
        shares = zip(self.sums["squared"].tolist(), spread.tolist(), strict=True)
        r2 = [1 - squared / total if total > MIN_SPREAD * images else None for squared, total in shares]
        known = [value for value in r2 if value is not None]
        found: dict[str, Any] = {
            "mae": float(mae.mean()),
            "rmse": float(rmse.mean()),
            "r2": sum(known) / len(known) if known else None,
            "loss": self.sums["loss"] / images,
            "images": images,
        }
        if len(self._names) > 1:
            for name, values in (("mae", mae.tolist()), ("rmse", rmse.tolist()), ("r2", r2)):
                found[f"number_{name}"] = dict(zip(self._names, values, strict=True))
        return found


class Regression(Objective):
    """Head, loss and metrics for numbers."""

    target = "number"
    measure = SampleMeasure("absolute_error", "absolute error", percent=False)
    head: NumberHead

    def __init__(self, head: NumberHead, classes: tuple[str, ...], options: RegressionOptions) -> None:
        self.head = head
        self.classes = classes
        self.options = options

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images `[B, 3, H, W]`."""
        return batch["image"]

    def fit_to_labels(self, labels: Sequence[Any] | None) -> None:
        """Standardize with mean and standard deviation of the training split."""
        if labels:
            self.head.fit(labels)

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of images that are not left out."""
        return int((~batch["label"].isnan().any(-1)).sum())

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of numbers `[B, numbers]`, averaged over them and summed over images."""
        known = ~batch["label"].isnan().any(-1)
        answers, truth = (self.head.standardize(each[known]) for each in (outputs, batch["label"]))
        return compute_number_loss(answers, truth, self.options)

    def compute_scores(self, outputs: Tensor) -> Tensor:
        """Return the numbers in the units of the data, `[B, numbers]`."""
        return outputs.float()

    def measure_samples(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the absolute error of each image in the units of the data, averaged over its numbers, `[B]`."""
        return (outputs.float() - batch["label"]).abs().mean(-1)

    def describe_outputs(self) -> dict[str, Any]:
        """Return that outputs are numbers in the units of the data."""
        return {**super().describe_outputs(), "activation": "none"}

    def meter(self) -> RegressionMeter:
        """Return a new meter of MAE, RMSE and R²."""
        return RegressionMeter(self.classes, self.head.mean, self.head.std, self.options)


def compute_number_loss(answers: Tensor, truth: Tensor, options: RegressionOptions) -> Tensor:
    """Return the loss of standardized numbers `[B, numbers]`, averaged over them and summed over images."""
    from torch.nn import functional as F

    if options.loss == "mse":
        return F.mse_loss(answers, truth, reduction="none").mean(-1).sum()
    return F.huber_loss(answers, truth, reduction="none", delta=options.huber_delta).mean(-1).sum()


def build_regression(options: RegressionOptions, backbone: Backbone, classes: tuple[str, ...]) -> Regression:
    """Build a linear head whose outputs are in the units of the data."""
    from toast_cli.tasks.number_head import NumberHead

    return Regression(NumberHead(backbone.head_width, len(classes)), classes, options)


TASK = Task(RegressionOptions, build_regression, metrics={"loss": False, "mae": False, "rmse": False, "r2": True})
