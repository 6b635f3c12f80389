"""Early and late feedback and the ablations of table 7: what is run, what is trained, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from toast_cli.methods.toast import METHOD
from toast_cli.model.model import Model, build_model, count_elements, count_flops
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.errors import UsageError

D, LEVELS, CLASSES = 192, 12, 5
HEAD = D * CLASSES + CLASSES


def model_of(name: str = "toast", **method: Any) -> Model:
    backbone = {"name": "vit_t16", "weights": "none"}
    raw = {"backbone": backbone, "dataset": "demo", "method": {"name": name, **method}}
    return build_model(build_recipe(raw, {}, origin="a test"), tuple("abcde"))


def trained(**method: Any) -> int:
    return count_elements(model_of(**method).get_trained_parameters().values())


def test_half_the_levels_are_half_the_feedback_path() -> None:
    assert trained() == HEAD + D + D**2 + 2 * LEVELS * D**2
    for feedback in ("early", "late"):
        assert trained(feedback=feedback) == HEAD + D + D**2 + LEVELS * D**2
    assert trained(feedback="early", feedback_level=3) == HEAD + D + D**2 + 2 * 3 * D**2
    assert trained(feedback="late", feedback_level=3) == HEAD + D + D**2 + 2 * 9 * D**2
    lite = trained(name="toast-lite", rank=4, feedback="late")
    assert lite == HEAD + D + D**2 + LEVELS * 4 * 2 * D


@pytest.mark.parametrize("feedback", ["early", "late"])
def test_counted_operations_are_about_one_and_a_half_of_the_plain_backbone(feedback: str) -> None:
    counted = count_flops(model_of(feedback=feedback))
    # 1.5 passes (table 9), less most of the last block, a twelfth of a pass, and what steering itself costs besides.
    assert 1.5 - 1 / 12 < counted["flops"] / counted["flops_plain"] < 1.6
    whole = count_flops(model_of())
    assert 2.0 - 1 / 12 < whole["flops"] / whole["flops_plain"] < 2.2


def test_without_token_selection_every_token_counts_in_full_and_xi_is_not_trained() -> None:
    model = model_of(token_selection=False)
    steering = model.adapted.steering
    assert steering is not None and not steering.selection.xi.requires_grad
    with torch.no_grad():
        passes = model.adapted(model.backbone.example(2))
    assert passes.similarity is not None and passes.selected is not None
    assert torch.equal(passes.similarity, torch.ones_like(passes.similarity))
    assert torch.allclose(passes.selected, passes.first.z, atol=1e-5)


def test_without_channel_selection_only_xi_and_the_head_are_trained() -> None:
    assert trained(channel_selection=False, start="random") == HEAD + D


def test_a_path_frozen_at_zero_is_refused() -> None:
    options = METHOD.options(channel_selection=False)
    with pytest.raises(UsageError) as refused:
        METHOD.check(options, pretuned=False)
    assert refused.value.code == "method.frozen-zero-feedback"
    METHOD.check(options, pretuned=True)
    METHOD.check(METHOD.options(channel_selection=False, start="random"), pretuned=False)


@pytest.mark.parametrize("level", [12, 13])
def test_a_level_the_backbone_does_not_have_is_refused(level: int) -> None:
    with pytest.raises(UsageError, match=f"level {level} of 12") as refused:
        model_of(feedback="late", feedback_level=level)
    assert refused.value.code == "method.feedback-level-out-of-range"
    with pytest.raises(UsageError) as refused:
        model_of(feedback_level=3)
    assert refused.value.code == "method.incomplete-feedback"


@pytest.mark.parametrize("feedback", ["early", "late"])
@pytest.mark.parametrize("name", ["toast", "toast-lite"])
def test_a_variant_comes_back_from_its_recipe(feedback: str, name: str) -> None:
    model = model_of(name=name, feedback=feedback)
    again = model_of(name=name, feedback=feedback)
    again.load_state_dict(model.state_dict())
    assert json.dumps(sorted(again.get_trained_parameters())) == json.dumps(sorted(model.get_trained_parameters()))
    with torch.no_grad():
        example = model.eval().backbone.example(1)
        assert torch.equal(model(example), again.eval()(example))
