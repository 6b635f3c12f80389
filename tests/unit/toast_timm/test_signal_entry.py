"""Where `toast backbones --check` says that signals enter levels of different kinds, and checks without weights."""

from __future__ import annotations

import pytest

from tests.contract.tiny_models import list_tiny_models
from toast_cli import registry
from toast_cli.backbones.steering_check import check_steering

TINY_MODELS = list_tiny_models()
AT_THE_VALUES = "the input of the value projection of {}; queries and keys do not change"
BEFORE = "the input of {}, before the down-sampling; from there they reach the whole level"


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("timm:tiny_swin_padded", [AT_THE_VALUES.format("levels 1-2 and 4-5"), BEFORE.format("levels 3 and 6")]),
        ("torchvision:toast_tiny_swin_v2", [AT_THE_VALUES.format("levels 1-2 and 4"), BEFORE.format("levels 3 and 5")]),
        ("timm:tiny_pvt", [AT_THE_VALUES.format("levels 1, 3 and 5"), BEFORE.format("levels 2 and 4")]),
        ("timm:tiny_coatnet_max", [BEFORE.format("level 1"), AT_THE_VALUES.format("levels 2-3")]),
        ("timm:tiny_mvitv2", [AT_THE_VALUES.format("every level")]),
        ("timm:toast_tiny_resnet", ["the input of every level"]),
    ],
)
def test_signals_enter_groups_of_levels_in_different_places(name: str, entry: list[str]) -> None:
    assert check_steering(registry.load_backbone_card(name), name).signal_entry == "; and ".join(entry)


def test_a_model_that_reads_tensor_values_is_checked_on_a_real_build() -> None:
    (name,) = (each for each in TINY_MODELS["hf_vision"] if each.endswith("/siglip2"))
    assert check_steering(registry.load_backbone_card(name), name).width == 16
