"""Validation chooses, test is seen once and by the chosen epoch, and the loop does what the recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.language import make_model
from toast_cli.model.model import Model, build_model, count_flops
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import PretuningOptions, Recipe, TrainingOptions
from toast_cli.storage.checkpoint import load_checkpoint, save_checkpoint
from toast_cli.training import session as session_module
from toast_cli.training import tune as tuning
from toast_cli.training.optimization import describe_schedule, make_optimizer, make_scheduler
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import initialize_feedback
from toast_cli.training.session import Session, prepare_session
from toast_cli.training.state import BestEpoch
from toast_cli.training.step import DistillationStep
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError

SIZES = {"train_images": 20, "val_images": 10, "test_images": 15}


def recipe_of(method: Any = "linear", training: dict[str, Any] | None = None, **task: Any) -> Recipe:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": {"name": "demo", **SIZES},
        "method": method,
        "task": {"name": "classification", **task},
        "training": {"epochs": 3, "batch_size": 5, "optimizer": "sgd", "lr": 0.05, **(training or {})},
    }
    return build_recipe(raw, {}, origin="a test")


def test_the_best_is_the_highest_score_and_of_equals_the_one_with_the_lower_loss() -> None:
    best = BestEpoch()
    offers = [(0.5, 1.0), (0.7, 0.9), (0.6, 0.1), (0.7, 0.8), (0.7, 0.85)]
    taken = [best.update(epoch, {"loss": loss}, score) for epoch, (score, loss) in enumerate(offers, start=1)]
    assert taken == [True, True, False, True, False] and best.epoch == 4


def test_validation_chooses_and_test_is_seen_once_at_the_end_by_the_chosen_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.2, 0.9, 0.4])
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []

    def evaluate(model: Model, batches: Any, *_: Any, **__: Any) -> dict[str, Any]:
        images = len(list(batches)) and sum(len(batch["label"]) for batch in batches)
        seen.append(
            (images, {name: weight.detach().clone() for name, weight in model.get_trained_parameters().items()})
        )
        return {"accuracy": next(accuracies) if images == 10 else 0.0, "loss": 1.0, "images": images}

    monkeypatch.setattr("toast_cli.training.loop.evaluate_model", evaluate)
    monkeypatch.setattr(tuning, "evaluate_model", evaluate)
    _, results = tune_model(recipe_of(), tmp_path / "run", Reporter())
    assert [images for images, _ in seen] == [10, 10, 10, 15]
    assert results["selected_epoch"] == 2
    for name, weight in seen[-1][1].items():
        assert torch.equal(weight, seen[1][1][name]) and not torch.equal(weight, seen[2][1][name])


def test_the_demos_splits_share_no_picture() -> None:
    session = prepare_session(recipe_of())
    pictures = {
        name: {session.data.splits[name].load(index).image.tobytes() for index in range(10)} for name in SIZE_OF
    }
    assert not pictures["train"] & pictures["test"] and not pictures["train"] & pictures["val"]
    assert not pictures["val"] & pictures["test"]


SIZE_OF = ("train", "val", "test")


def test_the_start_looks_at_as_many_images_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def solve(steering: Any, backbone: Any, batches: Any) -> None:
        looked.extend(len(batch) for batch in batches)

    monkeypatch.setattr("toast_cli.steering.least_squares.initialize_least_squares", solve)
    session = prepare_session(recipe_of({"name": "toast", "start_images": 13}))
    assert initialize_feedback(session, Reporter())
    assert looked == [5, 5, 3]


def test_the_start_is_kept_in_the_run(tmp_path: Path) -> None:
    folder, _ = tune_model(recipe_of("toast", {"epochs": 1}), tmp_path / "run", Reporter())
    again = prepare_session(recipe_of("toast"))
    load_checkpoint(folder.checkpoints, "start", again.model)
    first = {name: weight.clone() for name, weight in again.model.get_trained_parameters().items()}
    initialize_feedback(again, Reporter())
    for name, weight in again.model.get_trained_parameters().items():
        assert torch.allclose(weight, first[name], atol=1e-5), name


def rates(**training: Any) -> list[float]:
    options = TrainingOptions(optimizer="sgd", lr=1.0, **training)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), options)
    schedule = make_scheduler(optimizer, options, steps_per_epoch=10)
    found = []
    for step in range(options.epochs * 10):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_warms_up_linearly_and_falls_like_a_cosine() -> None:
    found = rates(epochs=10, warmup_epochs=2)
    assert found[0] == pytest.approx(1 / 21) and found[10] == pytest.approx(1 / 21 + 0.5 * 20 / 21)
    assert found[60] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 60 / 100)).item()))
    assert found[-1] < 0.001 < found[90] < found[60] < found[25]
    assert set(rates(epochs=4, schedule="constant")) == {1.0}


def test_a_warm_up_longer_than_the_run_is_cut_and_said() -> None:
    assert max(rates(epochs=2, warmup_epochs=10)) > 0.9
    notes = describe_schedule(TrainingOptions(epochs=2, warmup_epochs=10), 10)
    assert any("does not fit into 2" in note for note in notes)
    assert any("few steps" in note for note in describe_schedule(TrainingOptions(epochs=1), 2))
    assert describe_schedule(TrainingOptions(epochs=100, warmup_epochs=10), 10) == [
        "1,000 optimizer steps, 10 per epoch"
    ]


def test_the_rate_ends_with_a_cool_down_at_its_lowest() -> None:
    cooled = rates(epochs=4, cooldown_epochs=1, min_lr=0.25)
    steps = len(cooled) // 4
    assert cooled[-steps:] == [0.25] * steps
    assert cooled[-steps - 1] > 0.25
    notes = describe_schedule(TrainingOptions(epochs=2, cooldown_epochs=3), 10)
    assert any("cool-down of 3 epochs does not fit into 2" in note for note in notes)


def test_weight_decay_is_on_matrices_alone() -> None:
    options = TrainingOptions(optimizer="adamw", lr=0.1, weight_decay=0.3)
    groups = make_optimizer(torch.nn.Linear(2, 2), options).param_groups
    decay = {tuple(weight.shape): group["weight_decay"] for group in groups for weight in group["params"]}
    assert decay == {(2, 2): 0.3, (2,): 0.0}


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path: Path) -> None:
    def moved(**training: Any) -> float:
        recipe = recipe_of(
            training={"epochs": 1, "batch_size": 20, "lr": 1.0, "optimizer": "momentum", "momentum": 0.0, **training}
        )
        folder, _ = tune_model(recipe, tmp_path / f"run{len(list(tmp_path.iterdir()))}", Reporter())
        before = prepare_session(recipe).model.get_trained_parameters()
        after = prepare_session(recipe).model
        load_checkpoint(folder.checkpoints, "last", after)
        steps = [(after.get_trained_parameters()[name] - weight).pow(2).sum() for name, weight in before.items()]
        return float(torch.stack(steps).sum().sqrt())

    assert moved(clip_grad=1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert moved() > 1e-2


@pytest.mark.parametrize(("method", "network"), [("toast", False), ("linear", False), ("lora", False), ("full", True)])
def test_a_frozen_backbone_stays_in_evaluation_mode(method: str, network: bool) -> None:
    model = build_model(recipe_of(method), ("a", "b"))
    model.train()
    assert model.adapted.network.training is network and model.head.training
    model.eval()
    assert not model.adapted.network.training


def test_label_smoothing_is_in_the_loss_and_not_in_the_metrics() -> None:
    logits, batch = torch.tensor([[4.0, 0.0]]), {"label": torch.tensor([0])}
    plain, smooth = (build_model(recipe_of(label_smoothing=s), ("a", "b")).objective for s in (0.0, 0.2))
    expected = 0.9 * plain.loss(logits, batch) + 0.1 * plain.loss(logits, {"label": torch.tensor([1])})
    assert torch.isclose(smooth.loss(logits, batch), expected)
    meter = smooth.meter()
    meter.add(logits, batch)
    assert meter.result()["loss"] == pytest.approx(float(plain.loss(logits, batch)))


def test_plain_operations_are_those_of_one_pass_without_what_the_method_added() -> None:
    methods = ("linear", "full", "toast", "toast-lite", "vpt", "lora", "peft:dora")
    counted = {method: count_flops(build_model(recipe_of(method), ("a", "b"))) for method in methods}
    assert len({each["flops_plain"] for each in counted.values()}) == 1
    linear, toast = counted["linear"], counted["toast"]
    assert linear["flops"] == counted["full"]["flops"] == linear["flops_plain"]
    assert 1.005 < counted["lora"]["flops"] / linear["flops"] < 1.1 and counted["vpt"]["flops"] > 2 * linear["flops"]
    # Two passes and the feedback path, less what is not computed twice: much, in a network of three blocks.
    assert 1.8 < toast["flops"] / toast["flops_plain"] < 2.2


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step is finite, its gradient is not, and no later loss would tell."""
    calls = []

    def backward(self: Any, loss: torch.Tensor) -> None:
        loss.backward()
        calls.append(1)
        if len(calls) == 12:
            for parameter in _trained:
                parameter.grad = torch.full_like(parameter, float("nan"))

    recipe = recipe_of(training={"epochs": 3})
    _trained: list[torch.nn.Parameter] = []
    built = session_module.build_model
    monkeypatch.setattr(session_module, "build_model", lambda *a: _remember(built(*a), _trained))
    monkeypatch.setattr("accelerate.Accelerator.backward", backward)
    monkeypatch.setattr(
        "toast_cli.training.loop.evaluate_model", lambda *_, **__: {"accuracy": 0.5, "loss": 1.0, "images": 10}
    )
    with pytest.raises(ToastError) as refused:
        tune_model(recipe, tmp_path / "run", Reporter())
    assert refused.value.code == "training.non-finite"
    assert "nan at step 12 (epoch 3)" in refused.value.what
    model = prepare_session(recipe).model
    assert load_checkpoint(tmp_path / "run" / "checkpoints", "last", model)["at"]["epochs"] == 2
    assert all(weight.isfinite().all() for weight in model.get_trained_parameters().values())


def _remember(model: Model, into: list[torch.nn.Parameter]) -> Model:
    into.extend(model.get_trained_parameters().values())
    return model


def test_a_checkpoint_survives_a_save_that_was_killed_half_way(tmp_path: Path) -> None:
    model = build_model(recipe_of(), ("a", "b"))
    save_checkpoint(tmp_path, "last", model.get_trained_parameters(), {"epoch": 1})
    (tmp_path / "last").rename(tmp_path / ".last.old")
    assert load_checkpoint(tmp_path, "last", model)["epoch"] == 1
    with pytest.raises(ToastError, match="of another model"):
        load_checkpoint(tmp_path, "last", build_model(recipe_of("toast"), ("a", "b")))


def test_a_session_knows_its_sizes() -> None:
    session: Session = prepare_session(recipe_of())
    assert session.measure_model_sizes()["trained_parameters"] == 128 * 5 + 5


@torch.no_grad()
def test_padding_has_no_part_in_pre_training_without_labels(tmp_path: Path) -> None:
    raw = {"backbone": f"llama:{make_model(tmp_path / 'model')}", "dataset": "text:nowhere", "method": "toast"}
    model = build_model(build_recipe(raw, {}, origin="a test"), ()).train()
    step = DistillationStep(model, PretuningOptions(target="first-pass"))
    torch.manual_seed(0)
    for weight in step.steering.feedback.parameters():
        torch.nn.init.normal_(weight, std=1.0)
    ids = torch.randint(6, 200, (2, 12))
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    filled = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in alone.items()}
    distances = [step(batch).parts["distance"] for batch in (alone, filled)]
    assert torch.isclose(*distances, rtol=1e-3) and distances[0] > 1e-3
