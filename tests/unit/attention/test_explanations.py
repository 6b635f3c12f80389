"""Explanations: each against a second way of computing it, and their scores against those of 'toast eval'."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from tests.scenes import demo_model, scenes, viewer_of
from toast_cli.attention.deletion_insertion import DeletionInsertionCurves
from toast_cli.attention.explanations.base import ExplainedBatch
from toast_cli.attention.explanations.integrated_gradients import (
    compute_integrated_gradients,
    run_differentiable_passes,
)
from toast_cli.attention.explanations.registry import EXPLANATIONS, explain_batch, find_explanations
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.strength_sweep import sweep_strength
from toast_cli.model.model import Model
from toast_cli.utils.errors import ToastError, UsageError


@pytest.fixture(scope="module")
def model() -> Model:
    return demo_model()


@pytest.fixture(scope="module")
def images(model: Model) -> Tensor:
    transform = viewer_of(model).transform
    return torch.stack([transform(sample.image)[0] for sample in scenes(1)])


def test_integrated_gradients_of_both_passes_add_up_to_the_change_of_the_output(model: Model, images: Tensor) -> None:
    """Completeness, the axiom of the method: it fails for pass two if no gradient flows through the first pass."""
    outputs = torch.tensor([3])
    found = compute_integrated_gradients(model, images, outputs, steps=32)
    assert list(found) == ["pass_one", "pass_two"]
    for name, function in (("pass_one", model.forward_plain), ("pass_two", model)):
        with torch.no_grad():
            change = (function(images) - function(torch.zeros_like(images))).gather(1, outputs[:, None])[:, 0]
        maps, error = found[name]
        assert torch.allclose(maps.sum((1, 2, 3)), change, atol=0.03 * float(change.abs().max()))
        assert torch.allclose(maps.sum((1, 2, 3)) - change, error, atol=1e-3)
    assert not torch.allclose(found["pass_one"][0], found["pass_two"][0], atol=1e-3)
    assert all(weight.grad is None for weight in model.parameters()) and model.get_trained_parameters()


def test_passes_with_gradients_are_those_of_the_model(model: Model, images: Tensor) -> None:
    with torch.no_grad():
        assert torch.allclose(run_differentiable_passes(model, images), model(images), atol=1e-4)


def test_all_explanations_have_the_cells_of_the_grid_and_the_scores_of_the_curves(model: Model, images: Tensor) -> None:
    output = AttentionRecorder(model).record(images)
    answers = output.logits.argmax(-1)
    explained = explain_batch(list(EXPLANATIONS.values()), ExplainedBatch(model, images, answers), steps=2)
    curves = DeletionInsertionCurves(model, steps=2)
    curves.add(output, images)
    for number, image in enumerate(explained):
        assert list(image.maps) == [(name, which) for name in EXPLANATIONS for which in ("pass_one", "pass_two")]
        assert {map.shape for map in image.maps.values()} == {torch.Size((8, 8))}
        for which, map in (("pass_one", output.first), ("pass_two", output.last)):
            assert map is not None and torch.equal(image.maps["attention", which], map[number])
            for kind in ("deletion", "insertion"):
                area = float(curves.compute_areas(which, kind)[number])
                assert image.scores["attention", which][kind] == pytest.approx(area, abs=1e-6)
        assert image.random["deletion"] == pytest.approx(float(curves.compute_areas("random", "deletion")[number]))


def test_a_class_changes_the_explanations_that_depend_on_it_and_no_other(model: Model, images: Tensor) -> None:
    for explanation in EXPLANATIONS.values():
        one, other = (
            explanation.compute(ExplainedBatch(model, images[:1], torch.tensor([output]))) for output in (0, 2)
        )
        same = torch.allclose(one["pass_two"], other["pass_two"], atol=1e-6)
        assert same == (not explanation.depends_on_class), explanation.name


def test_a_single_pass_has_one_map_of_each(images: Tensor) -> None:
    linear = demo_model("linear")
    (explained,) = explain_batch(
        find_explanations("all"), ExplainedBatch(linear, images[:1], torch.tensor([0])), steps=2
    )
    assert {which for _, which in explained.maps} == {"pass_one"} and len(explained.maps) == len(EXPLANATIONS)


def test_prompts_between_the_levels_are_refused_and_not_left_out(images: Tensor) -> None:
    prompted = demo_model("vpt")
    for weight in prompted.get_trained_parameters().values():
        torch.nn.init.normal_(weight, std=0.5)
    with pytest.raises(ToastError) as refused:
        compute_integrated_gradients(prompted, images, torch.tensor([0]))
    assert refused.value.code == "attention.gradients-mismatch"


def test_an_unknown_name_and_a_missing_library_are_refused(
    model: Model, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [each.name for each in find_explanations("rollout, attention,rollout")] == ["rollout", "attention"]
    with pytest.raises(UsageError) as refused:
        find_explanations("attention,gradcam")
    assert refused.value.code == "cli.invalid-value" and "grad-cam" in refused.value.what_to_do
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError) as refused:
        compute_integrated_gradients(model, images[:1], torch.tensor([0]))
    assert refused.value.code == "cli.missing-package"


def test_a_sweep_runs_the_first_pass_once_and_ends_where_the_model_is(
    model: Model, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, steering = AttentionRecorder(model, head="rollout"), model.adapted.steering
    output = recorder.record(images)
    assert steering is not None and output.last is not None
    entered = []
    enter = model.backbone.enter
    monkeypatch.setattr(model.backbone, "enter", lambda inputs: entered.append(1) or enter(inputs))
    frames = list(sweep_strength(recorder, images, (0.0, 1.0, 0.5)))
    assert len(entered) == 1 and steering.strength == 1.0
    for frame, logits, map in (
        (frames[0], model.compute_outputs(output.passes.first.pooled), output.first),
        (frames[1], output.logits, output.last),
    ):
        assert torch.allclose(frame.logits, logits, atol=1e-4) and torch.allclose(frame.map, map, atol=1e-5)
    assert not torch.allclose(frames[1].map, frames[2].map, atol=1e-4)
    with pytest.raises(UsageError) as refused:
        next(sweep_strength(AttentionRecorder(demo_model("linear")), images, (1.0,)))
    assert refused.value.code == "method.no-feedback-path"
