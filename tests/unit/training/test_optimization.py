from __future__ import annotations

from typing import Any

import pytest

from tests.scenes import demo_model
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.optimization import make_optimizer, make_scheduler


def rates(**training: Any) -> dict[str, float]:
    """The learning rate of every trained parameter after warm-up."""
    model = demo_model("toast")
    options = TrainingOptions(optimizer="adamw", lr=0.001, warmup_epochs=1, epochs=4, **training)
    optimizer = make_optimizer(model, options)
    make_scheduler(optimizer, options, steps_per_epoch=5).step_update(5)
    by_id = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    return {name: by_id[id(weight)] for name, weight in model.get_trained_parameters().items()}


def test_the_head_has_a_rate_of_its_own_on_the_same_schedule() -> None:
    found = rates(head_lr=0.02)
    (rest,) = {rate for name, rate in found.items() if not name.startswith("head.")}
    assert found["head.weight"] == found["head.bias"] == pytest.approx(20 * rest)


def test_without_one_everything_has_the_same_rate() -> None:
    assert len(set(rates().values())) == 1


def test_the_groups_hold_everything_trained_once_and_spare_vectors_weight_decay() -> None:
    model = demo_model("toast")
    optimizer = make_optimizer(model, TrainingOptions(optimizer="adamw", head_lr=0.1, weight_decay=0.3))
    grouped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.get_trained_parameters().values()))
    for group in optimizer.param_groups:
        assert all((weight.ndim < 2) == (group["weight_decay"] == 0) for weight in group["params"])
