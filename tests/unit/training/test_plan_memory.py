"""The memory of a training step, told before it begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from toast_cli.model.model import Model, build_model, count_elements
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.plan.memory import MemoryEstimate, estimate_memory
from toast_cli.utils.formatting import format_bytes

IMAGES = {"image": torch.zeros(8, 3, 64, 64), "label": torch.zeros(8, dtype=torch.int64)}


def model_of(method: str, **training: object) -> Model:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": method, "training": training}
    return build_model(build_recipe(raw, {}, origin="a test"), ("a", "b"))


def memory_of(model: Model, images: int = 8, **training: object) -> MemoryEstimate:
    batch = {name: tensor[:images] for name, tensor in IMAGES.items()}
    return estimate_memory(model, TrainingOptions(**training), batch, Accelerator(cpu=True))


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 1), ("adamw", 2)])
def test_gradients_and_optimizer_follow_from_what_is_trained(optimizer: str, copies: int) -> None:
    model = model_of("toast")
    memory = memory_of(model, optimizer=optimizer)
    assert memory.gradients == 4 * count_elements(model.get_trained_parameters().values())
    assert memory.optimizer == copies * memory.gradients
    assert memory.weights >= 4 * count_elements(model.parameters())


def test_activations_grow_with_the_batch_and_shrink_with_what_is_trained() -> None:
    toast = memory_of(model_of("toast")).activations
    # Not to the byte: the composed feedback path is as large for any number of images.
    assert memory_of(model_of("toast"), images=2).activations == pytest.approx(toast / 4, rel=0.05)
    assert memory_of(model_of("linear")).activations < toast / 20
    checkpointed = memory_of(model_of("toast", checkpoint_gradients=True)).activations
    assert checkpointed < 0.8 * toast


def test_activations_are_what_a_step_keeps() -> None:
    """Counted another way: by the whole batch, at once, without any scaling."""
    model, kept = model_of("full"), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()
        logits = model(IMAGES["image"])
        model.objective.loss(logits, IMAGES)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    whole = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    assert memory_of(model).activations == pytest.approx(whole + logits.nbytes, rel=1e-3)


def test_the_estimate_changes_nothing() -> None:
    model = model_of("toast")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    memory_of(model)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_too_little_memory_is_said_with_what_helps() -> None:
    memory = memory_of(model_of("linear"))
    assert memory.format_warning(torch.device("cpu")) is None
    warning = replace(memory, activations=10**15).format_warning(torch.device("cpu"))
    assert warning is not None and "1e+03 TB" in warning and "training.checkpoint_gradients" in warning


def test_sizes_are_readable() -> None:
    assert [format_bytes(n) for n in (5, 1500, 2_340_000, 7 * 10**9)] == ["5 B", "1.5 kB", "2.34 MB", "7 GB"]
