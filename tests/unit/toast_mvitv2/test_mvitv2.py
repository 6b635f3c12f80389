"""MViTv2: where signals enter, strides, sizes, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import Tensor

from tests.staged import build, check_values, normed_parts, strides
from toast_cli.plugin import ToastError, UsageError, wrap_model


@pytest.mark.parametrize("index", range(4))
def test_signals_enter_at_the_values_and_are_pooled_after_them(index: int) -> None:
    backbone = build("tiny_mvitv2")
    block = backbone.level_modules[index]

    def norm(map: Tensor) -> Tensor:
        return block.norm1(map.movedim(1, -1)).movedim(-1, 1)

    check_values(backbone, index, norm, partial(normed_parts, block.attn))


def test_pooled_queries_are_undone_by_deconvolutions() -> None:
    assert strides(build("tiny_mvitv2")) == [(16, 32, 2), (32, 64, 2)]
    assert strides(build("tiny_mvitv2_wide")) == [(16, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)]


def test_the_size_is_the_one_that_the_model_was_built_for() -> None:
    backbone = build("tiny_mvitv2", image_size=64)
    assert backbone.fixed_size == backbone.require_preprocessing().image_size == (64, 64)
    with pytest.raises(UsageError, match="64 × 64 pixels, not 32 × 64"):
        backbone.enter(torch.zeros(1, 3, 32, 64).double())
    with pytest.raises(UsageError, match="32 × 64") as refused:
        build("tiny_mvitv2", image_size=(32, 64))
    assert refused.value.code == "backbone.wrong-image-size"


@pytest.mark.parametrize(("given", "why"), [("use_cls_token", "class token"), ("pool_first", "before the value")])
def test_what_has_no_natural_form_is_refused(given: str, why: str) -> None:
    config = MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=16, **{given: True})
    with pytest.raises(ToastError, match=why) as refused:
        wrap_model(MultiScaleVit(config, 32), library="timm")
    assert refused.value.code == "backbone.cannot-steer"
