"""Warnings of a loss that was still falling, of too low a rate, and of a pre-tuning that is too short."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.automatic.test_settings import recipe_of
from toast_cli.cli.output.run_summary import build_pretuning_table
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe, TrainingOptions
from toast_cli.training.automatic.recommended_rates import MEASURED, RecommendedRate
from toast_cli.training.closing_warnings.convergence import describe_unsettled_loss
from toast_cli.training.optimization import compute_learning_rate, sum_learning_rates
from toast_cli.training.pretune import describe_short_pretuning

TRAINING = TrainingOptions(epochs=3, lr=0.001, optimizer="adamw")
STEPS = [0, 10, 20, 30]


def make_rate(lr: float, source: str = MEASURED) -> RecommendedRate:
    return RecommendedRate("toast", 1e8, lr, source)


def test_the_sum_of_the_rates_is_that_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [compute_learning_rate(TRAINING, 10, step) for step in range(30)]
    expected = [sum(rates[:step]) for step in STEPS]
    assert sum_learning_rates(TRAINING, 10, STEPS) == pytest.approx(expected)
    monkeypatch.setattr("toast_cli.training.optimization.SAMPLED_STEPS", 15)
    assert sum_learning_rates(TRAINING, 10, [30])[0] == pytest.approx(expected[-1], rel=0.1)


def test_a_loss_that_falls_with_the_sum_of_the_rates_means_that_the_rate_is_too_low() -> None:
    sums = np.array(sum_learning_rates(TRAINING, 10, STEPS))
    steady = list(zip(STEPS, 5 - sums / sums[-1], strict=True))
    (said,) = describe_unsettled_loss(steady, TRAINING, 10, make_rate(0.001, "a paper"))
    assert "0.001) looks too low" in said and "--lr 0.003" in said and "from 5.000 to 4.000" in said
    assert "--lr 0.02" in describe_unsettled_loss(steady, TRAINING, 10, make_rate(0.02))[0]
    (said,) = describe_unsettled_loss(steady, TRAINING, 10, make_rate(0.0001))
    assert "too low" not in said and "--lr 0.0001" in said, "too high a rate makes a loss fall steadily as well"
    (said,) = describe_unsettled_loss(steady, TRAINING, 10, make_rate(0.001))
    assert "too low" not in said and "--epochs 6" in said, "a measured rate has been tried against higher ones"


def test_a_loss_that_still_falls_needs_more_epochs() -> None:
    (said,) = describe_unsettled_loss(list(zip(STEPS, [5, 2.8, 2.2, 2.0], strict=True)), TRAINING, 10, make_rate(0.001))
    assert "still falling" in said and "9.1% in the last epoch" in said
    assert "Start a new run with --epochs 6; or" in said and "toast tune --resume RUN training.epochs=6" in said


@pytest.mark.parametrize(
    "losses",
    [
        [5, 3.0, 2.504, 2.5],  # settled
        [5, 3.0, 2.5, 2.6],  # overfitted
        [2.0, 2.1, 2.2, 2.3],  # rose from the beginning
        [5.0],  # no epoch was validated
        [],
    ],
)
def test_a_loss_that_does_not_fall_any_more_needs_no_warning(losses: list[float]) -> None:
    assert describe_unsettled_loss(list(zip(STEPS, losses, strict=False)), TRAINING, 10, make_rate(0.001)) == []


def test_a_run_of_an_earlier_version_has_no_loss_before_training() -> None:
    assert (
        describe_unsettled_loss(list(zip(STEPS[1:], [5, 4.5, 4.0], strict=True)), TRAINING, 10, make_rate(0.001)) == []
    )


def recipe_for_text(start: str, **training: object) -> Recipe:
    raw = {
        "backbone": "llama_7b",
        "dataset": {"name": "text", "path": "openwebtext"},
        "method": {"name": "toast", "start": start},
        "training": {"epochs": 1, "optimizer": "adamw", "lr": 3e-5, "batch_size": 32, "accumulate": 4, **training},
    }
    return build_recipe(raw, {}, origin="a test")


@pytest.mark.parametrize(("start", "close"), [("random", "random"), ("least-squares", "the least-squares start")])
def test_pre_tuning_on_little_text_names_the_tokens_it_needs(start: str, close: str) -> None:
    (said,) = describe_short_pretuning(recipe_for_text(start), batches=60, length=512)
    assert "15 steps (about 983,040 tokens)" in said and "About 80,000,000 tokens" in said, said
    assert f"close to {close}" in said
    papers = describe_short_pretuning(recipe_for_text(start), batches=4 * 3400, length=512)
    assert papers == [], "the paper's 200,000 lines are enough"


def test_pre_tuning_on_images_needs_no_number_of_tokens() -> None:
    images = recipe_of(method={"name": "toast", "start": "random"}, lr=3e-5)
    assert describe_short_pretuning(images, batches=2, length=None) == []


def test_the_closing_table_of_a_pre_tuning_has_its_warnings() -> None:
    losses = {"before": {"1": 0.5}, "after": {"1": 0.4}}
    assert build_pretuning_table("a model", {**losses, "warnings": ["It was too short."]}).caption == (
        "Warning: It was too short."
    )
    assert build_pretuning_table("an earlier run", losses).caption is None
