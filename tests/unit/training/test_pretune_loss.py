"""What pre-tuning minimises, worked out by hand for each family: the task's loss and 0.03 times the reconstructions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backbones import BACKBONES, example, randomly
from toast_cli.backbones.base import Trace
from toast_cli.methods.toast import METHOD
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.recipe.schema import PretuningOptions
from toast_cli.steering.steering import Steering, run_one_pass
from toast_cli.tasks import classification, language
from toast_cli.training.step import DistillationStep, PretuningStep
from toast_cli.utils.constants import IGNORE_INDEX

FEEDBACK = ("full", "early", "late")


@pytest.fixture(params=["vit", "convnext", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def model_of(family: str, feedback: str = "full") -> Model:
    """In float64, with signals strong enough that the second pass is another, and everything trained, P too."""
    backbone = randomly(BACKBONES[family]())
    adapted = METHOD.build(METHOD.options(feedback=feedback), backbone)
    task = language.TASK if family == "llama" else classification.TASK
    model = Model(
        adapted, task.build(task.options(), backbone, ("a", "b", "c")), BackboneSnapshot.from_backbone(backbone)
    ).double()
    for weight in model.get_trained_parameters().values():
        nn.init.normal_(weight, std=0.2)
    return model


def batch_of(family: str, model: Model) -> dict[str, Tensor]:
    """Two images, or two texts of which the second ends in padding."""
    inputs: Any = example(model.backbone)
    if family != "llama":
        return {"image": inputs, "label": torch.tensor([2, 0])}
    inputs["attention_mask"][1, -5:] = 0
    return {**inputs, "labels": inputs["input_ids"].where(inputs["attention_mask"] == 1, IGNORE_INDEX)}


def steering_of(model: Model) -> Steering:
    assert isinstance(model.adapted.steering, Steering)
    return model.adapted.steering


def seen(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The task's losses of the second pass and of a plain one, how far apart their features are, reconstructions."""
    objective, steering, trace = model.objective, steering_of(model), Trace(levels=True)
    outputs, passes = model.forward_passes(objective.inputs(batch), last_trace=trace)
    plain = run_one_pass(model.backbone, objective.inputs(batch)).last
    far = 1 - F.cosine_similarity(passes.last.pooled, plain.pooled, dim=-1)
    real = batch.get("attention_mask", torch.ones(far.shape)) == 1
    rebuilt = []
    for level, A_l in zip(steering.levels, steering.feedback.A, strict=True):
        squares = (A_l(trace.outputs[level].detach()) - trace.inputs[level].detach()) ** 2
        rebuilt.append((squares[real] if "attention_mask" in batch else squares).mean())
    return objective.loss(outputs, batch), objective.loss(model.head(plain.pooled), batch), far[real].mean(), rebuilt


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_the_loss_is_the_tasks_and_0_03_times_the_sum_of_the_reconstructions(family: str, feedback: str) -> None:
    model = model_of(family, feedback)
    batch = batch_of(family, model)
    stepped = PretuningStep(model, PretuningOptions()).eval()(batch)
    task, _, _, rebuilt = seen(model, batch)
    for level, loss in zip(steering_of(model).levels, rebuilt, strict=True):
        torch.testing.assert_close(stepped.parts[f"reconstruction/{level + 1}"], loss.detach(), rtol=1e-12, atol=0)
    expected = task + 0.03 * sum(rebuilt) * model.objective.count(batch)
    torch.testing.assert_close(stepped.loss, expected, rtol=1e-12, atol=0)


def test_reconstruction_teaches_A_alone(family: str) -> None:
    model = model_of(family)
    batch = batch_of(family, model)
    step = PretuningStep(model, PretuningOptions()).eval()
    step.task_loss = lambda *_: (torch.zeros(()), {})  # type: ignore[method-assign]
    trained = model.get_trained_parameters()
    gradients = torch.autograd.grad(step(batch).loss, list(trained.values()), allow_unused=True)
    found = dict(zip(trained, gradients, strict=True))
    A = [name for name in trained if ".feedback.A." in name]
    assert len(A) == len(model.backbone.levels) and any(".feedback.B." in name for name in trained)
    assert any(name.endswith(".xi") for name in trained) and any(name.endswith(".P") for name in trained)
    for name in trained.keys() - set(A):
        assert found[name] is None or not found[name].any(), name
    weighted = 0.03 * sum(seen(model, batch)[-1]) * model.objective.count(batch)
    for name, expected in zip(A, torch.autograd.grad(weighted, [trained[name] for name in A]), strict=True):
        assert expected.any()
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_the_mean_over_both_passes_is_that_of_the_second_and_of_a_whole_plain_one(family: str, feedback: str) -> None:
    model = model_of(family, feedback)
    batch = batch_of(family, model)
    stepped = PretuningStep(model, PretuningOptions(passes="both", reconstruction=0)).eval()(batch)
    second, plain, _, _ = seen(model, batch)
    assert not torch.isclose(second, plain, rtol=1e-4), "otherwise either of them would do for the mean"
    torch.testing.assert_close(stepped.loss.double(), (second + plain).double() / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_without_labels_the_second_pass_is_held_against_a_whole_plain_one(family: str, feedback: str) -> None:
    model = model_of(family, feedback)
    batch = batch_of(family, model)
    step = DistillationStep(model, PretuningOptions(target="first-pass")).eval()
    far = seen(model, batch)[2]
    assert far > 1e-6
    torch.testing.assert_close(step(batch).parts["distance"], far, rtol=1e-9, atol=0)
    for B_l in steering_of(model).feedback.B:
        nn.init.zeros_(B_l.weight)
    assert step(batch).parts["distance"].abs() < 1e-12, "where no signal is sent, the second pass is the plain one"
