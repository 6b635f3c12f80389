"""Every optimizer that a recipe may name trains and resumes exactly, or is refused before anything is written.

Reports of the same kind elsewhere: huggingface/transformers #18860 and #30038, bmaltais/kohya_ss #3383.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn
from torch.nn import functional as F

from tests.cli.conftest import toast
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training import optimization
from toast_cli.training.optimization import check_optimizer, make_optimizer, make_scheduler
from toast_cli.training.optimizer_state import pack_optimizer_state, unpack_optimizer_state
from toast_cli.utils.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
NEEDS_CUDA = ("bnb", "fused")


class Training:
    """A small model with a kernel, matrices and vectors, in steps on made inputs."""

    def __init__(self, name: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.options = TrainingOptions(optimizer=name, lr=0.01, weight_decay=0.1, epochs=2, **options)
        body = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 6), nn.LayerNorm(6))
        self.model = nn.ModuleDict({"body": body, "head": nn.Linear(6, 3)})
        self.optimizer = make_optimizer(self.model, self.options)
        self.schedule = make_scheduler(self.optimizer, self.options, steps_per_epoch=2)

    def train(self, *steps: int) -> None:
        for step in steps:
            torch.manual_seed(step)  # Kron draws noise in its step
            self.schedule.step_update(step)
            self.optimizer.zero_grad(set_to_none=True)
            outputs = self.model["head"](self.model["body"](torch.randn(5, 3, 3, 3)))
            F.cross_entropy(outputs, torch.arange(5) % 3).backward()
            self.optimizer.step()

    def reopened(self) -> Training:
        """The same after its state went to a file and back."""
        tensors, plain = pack_optimizer_state(self.optimizer)
        other = Training(self.options.optimizer, head_lr=self.options.head_lr)
        other.model.load_state_dict(self.model.state_dict())
        unpack_optimizer_state(
            load(save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})),
            json.loads(json.dumps(plain)),
            other.optimizer,
        )
        return other


def is_refused(name: str) -> bool:
    return name.startswith(NEEDS_CUDA) or bool(get_optimizer_info(name).second_order)


@pytest.mark.parametrize("name", [name for name in list_optimizers() if not is_refused(name)])
def test_two_steps_and_two_more_after_a_save_are_four(name: str) -> None:
    check_optimizer(TrainingOptions(optimizer=name))
    whole, cut = Training(name, head_lr=0.02), Training(name, head_lr=0.02)
    before = {key: tensor.clone() for key, tensor in whole.model.state_dict().items()}
    whole.train(0, 1, 2, 3)
    cut.train(0, 1)
    cut = cut.reopened()
    cut.train(2, 3)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, cut.model.state_dict()[key]), key
        assert not torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", [name for name in list_optimizers() if is_refused(name)])
def test_what_cannot_train_here_is_refused_by_name(name: str) -> None:
    if name.startswith(NEEDS_CUDA) and torch.cuda.is_available():
        pytest.skip("they may work with CUDA")
    with pytest.raises(UsageError, match=f"'{name}'") as caught:
        check_optimizer(TrainingOptions(optimizer=name))
    assert caught.value.code == "training.unsupported-optimizer" and caught.value.exit_code == 2
    assert any(word in caught.value.why for word in ("CUDA", "second derivatives", "bitsandbytes", "apex"))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"optimizer": "nope"}, "training.unknown-optimizer"),
        ({"optimizer": "sgd", "momentum": 0}, "training.invalid-momentum"),
        ({"optimizer": "nesterovw", "momentum": 0}, "training.unsupported-optimizer"),
        ({"lr": 0.01, "min_lr": 0.1}, "training.rising-rate"),
    ],
)
def test_options_that_an_optimizer_or_a_schedule_cannot_use_are_refused(options: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_optimizer(TrainingOptions(**options))
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "Lion", "MOMENTUM"])
def test_a_name_may_have_capitals(name: str) -> None:
    options = TrainingOptions(optimizer=name)
    assert options.optimizer == name.lower() and TrainingOptions(**options.model_dump()) == options
    check_optimizer(options)


@pytest.mark.parametrize(
    "name", ["adamw_8bit", "Adam-W", "fused_adamw", "adahessians", "lbfgs", "lookahead_sgd", "zzz"]
)
def test_a_suggested_name_can_be_used(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_optimizer(TrainingOptions(optimizer=name))
    assert caught.value.code == "training.unknown-optimizer" and caught.value.what_to_do
    if suggested := re.search(r"Did you mean '(\w+)'", caught.value.what_to_do):
        check_optimizer(TrainingOptions(optimizer=suggested[1]))
    else:
        assert "adamw" in caught.value.what_to_do


def test_a_state_that_no_checkpoint_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "odd": object()}

    monkeypatch.setattr(optimization, "create_optimizer_v2", lambda model, **_: Odd(model.parameters()))
    with pytest.raises(UsageError, match="a value of the type object"):
        check_optimizer(TrainingOptions())


def test_a_state_of_an_earlier_version_is_restored() -> None:
    """It holds tensors and numbers by `INDEX.NAME` and groups with lists for tuples, and has no other part."""
    whole, cut = Training("radamlegacy"), Training("radamlegacy")
    whole.train(0, 1, 2, 3)
    cut.train(0, 1)
    state = cut.optimizer.state_dict()
    entries = {f"{index}.{name}": value for index, part in state["state"].items() for name, value in part.items()}
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    values = {name: value for name, value in entries.items() if name not in tensors}
    old = json.loads(json.dumps({"optimizer": values, "groups": state["param_groups"]}))
    other = Training("radamlegacy")
    other.model.load_state_dict(cut.model.state_dict())
    unpack_optimizer_state({**tensors, "rng.0.cpu": torch.get_rng_state()}, old, other.optimizer)
    other.train(2, 3)
    assert all(torch.equal(tensor, other.model.state_dict()[key]) for key, tensor in whole.model.state_dict().items())


def test_every_command_refuses_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["tune"], ["tune", "--dry-run"], ["pretune"], ["plan"]):
        toast(*words, "--device", "cpu", "training.optimizer=adahessian").fails(
            2, "adahessian", error="training.unsupported-optimizer"
        )
    assert not list(tmp_path.iterdir())
    recipe = "backbone: vit_demo\ndataset: demo\nmethod: linear\ndevice: cpu\ntraining: {optimizer: fusedadam}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    toast("recipes", "validate", "r.yaml").fails(2, "fusedadam")
