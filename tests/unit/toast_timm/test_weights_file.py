"""A weights file is the backbone's, whole, or it is refused: nothing is ever left at its random start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from toast_cli import registry
from toast_cli.utils.errors import ToastError

Tensors = dict[str, Tensor]
BACKBONES = {"vit:test_vit": "blocks.1.", "convnext:test_convnext": "stages.1."}


@pytest.fixture(params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def whole(name: str) -> Tensors:
    torch.manual_seed(1)
    return timm.create_model(name.partition(":")[2]).state_dict()


def built_from(name: str, file: Path) -> Tensors:
    card = registry.load_backbone_card(name)
    return card.build(card.options(name=name, weights=str(file))).module.state_dict()


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_the_right_file_is_taken_whole_whatever_its_classifier(
    name: str, whole: Tensors, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"weights.{ending}"
    save_file(whole, file) if ending == "safetensors" else torch.save(whole, file)
    found = built_from(name, file)
    assert found and all(torch.equal(tensor, whole[key]) for key, tensor in found.items())


SPOILT: dict[str, Callable[[Tensors, str], Tensors]] = {
    "of something else": lambda _, __: {"x": torch.zeros(3)},
    "under other names": lambda whole, _: {f"encoder.{key}": tensor for key, tensor in whole.items()},
    "without a part": lambda whole, part: {key: tensor for key, tensor in whole.items() if not key.startswith(part)},
    "without a tensor": lambda whole, part: {k: t for k, t in whole.items() if k != min(n for n in whole if part in n)},
    "of a deeper network": lambda whole, part: {
        **whole,
        **{key.replace(part, part.replace("1", "9")): tensor for key, tensor in whole.items() if key.startswith(part)},
    },
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_holds_less_or_more_is_refused(name: str, whole: Tensors, tmp_path: Path, how: str) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({key: tensor.clone() for key, tensor in SPOILT[how](whole, BACKBONES[name]).items()}, file)
    with pytest.raises(ToastError) as refused:
        built_from(name, file)
    assert refused.value.code == "weights.wrong-model"
