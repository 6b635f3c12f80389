"""The goals of the demo on `vit_demo`, over three seeds, by the recipes demo/*. About 20 minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest, evaluate_attention
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
MANY = [
    "dataset.train_images=300", "training.epochs=8", "training.validate_every=2", "training.batch_size=20",
]  # fmt: skip
Runs = Callable[..., list[tuple[Path, dict[str, Any]]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """`runs("toast", *overrides)` tunes with three seeds, once, and returns folders and results."""
    made: dict[tuple[str, ...], list[tuple[Path, dict[str, Any]]]] = {}

    def run(method: str, *overrides: str) -> list[tuple[Path, dict[str, Any]]]:
        key = (method, *overrides)
        if key not in made:
            made[key] = []
            for seed in SEEDS:
                recipe = resolve_recipe(recipe=f"demo/{method}", seed=seed, device="cpu", overrides=overrides).recipe
                folder, results = tune_model(recipe, tmp_path_factory.mktemp("goal") / "run", Reporter())
                made[key].append((folder.path, results))
        return made[key]

    return run


def accuracy(found: list[tuple[Path, dict[str, Any]]]) -> float:
    return 100 * fmean(results["test"]["accuracy"] for _, results in found)


def attention(found: list[tuple[Path, dict[str, Any]]], which: str) -> float:
    return 100 * fmean(results["test"]["attention_share"][which] for _, results in found)


def check(value: float, goal: float, floor: float | None = None) -> None:
    """Hold a number to its goal. Where the goal is not reached yet, the number must still not fall below `floor`."""
    if floor is not None and floor <= value < goal:
        pytest.xfail(f"the goal is {goal:.1f}, measured is {value:.1f} (docs/reports/results.md)")
    assert value >= goal


BOTH = pytest.mark.parametrize("method", ["toast", "toast-lite"])


@BOTH
def test_with_50_scenes_it_is_five_points_ahead_of_lora(runs: Runs, method: str) -> None:
    check(accuracy(runs(method)) - accuracy(runs("lora")), 5, floor=0)


@BOTH
def test_with_50_scenes_it_is_not_behind_vpt(runs: Runs, method: str) -> None:
    check(accuracy(runs(method)) - accuracy(runs("vpt")), 0)


@BOTH
def test_with_50_scenes_it_is_twenty_points_ahead_of_a_random_start(runs: Runs, method: str) -> None:
    check(accuracy(runs(method)) - accuracy(runs("toast", "init_from=null", "method.start=random")), 20, floor=5)


@BOTH
def test_with_300_scenes_it_is_nearly_always_right(runs: Runs, method: str) -> None:
    own = accuracy(runs(method, *MANY))
    check(own, 99)
    check(own - accuracy(runs("linear", *MANY)), 50)


@BOTH
def test_attention_rises_on_nearly_every_scene(runs: Runs, method: str) -> None:
    for path, _ in runs(method, *MANY):
        gained = evaluate_attention(AttentionEvalRequest(path, curve_images=0), Reporter()).numbers.column(
            "passes/share_gained"
        )
        check(fmean(value > 0 for value in gained), 0.95)


@BOTH
def test_attention_on_the_object_rises_eight_fold(runs: Runs, method: str) -> None:
    found = runs(method, *MANY)
    check(attention(found, "pass_two") / attention(found, "pass_one"), 8, floor=6.5)


@BOTH
def test_attention_on_the_object_is_not_below_loras(runs: Runs, method: str) -> None:
    check(attention(runs(method, *MANY), "pass_two") - attention(runs("lora", *MANY), "pass_one"), 0, floor=-12)


def test_channel_selection_helps(runs: Runs) -> None:
    # It freezes the path, which must be there: the shipped one. Each has the rate of its own search.
    without = runs("toast", "init_from=shipped", "training.lr=0.008", "method.channel_selection=false")
    check(accuracy(runs("toast", "init_from=shipped", "training.lr=0.0005")) - accuracy(without), 20)


def test_token_selection_helps(runs: Runs) -> None:
    with_it = ["init_from=shipped", "training.lr=0.0005"]
    without = runs("toast", *with_it, "method.token_selection=false")
    check(accuracy(runs("toast", *with_it)) - accuracy(without), 0, floor=-5)


@pytest.mark.parametrize(("method", "rate"), [("toast", "0.0005"), ("toast-lite", "0.008")])
def test_the_path_that_ships_is_at_least_as_good_as_least_squares(runs: Runs, method: str, rate: str) -> None:
    shipped = runs(method, "init_from=shipped", f"training.lr={rate}")
    from_least_squares = runs(method, "init_from=null", "method.start=least-squares")
    check(accuracy(shipped) - accuracy(from_least_squares), 0, floor=-4)
