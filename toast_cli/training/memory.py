"""What a training step will hold in memory, worked out before the first one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from toast_cli.model import Model, count
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.optimization import make_optimizer


@dataclass(frozen=True)
class Memory:
    """Bytes: all weights and buffers, gradients, the optimizer's state, and what the backward pass is kept for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {readable(value)}" for name, value in asdict(self).items())
        return f"memory while training, about: {readable(self.total)} ({parts})"

    def warning(self, device: torch.device) -> str | None:
        """What to say where a device has less to give than the step will ask for."""
        free, needed = free_memory(device), self.total - self.weights
        if free is None or needed <= free:
            return None
        return (
            f"A step needs about {readable(needed)} more, and {device.type} has {readable(free)} free. "
            "Less: a smaller training.batch_size with training.accumulate, training.checkpoint_gradients=true."
        )


@dataclass(frozen=True)
class Growth:
    """The memory of a step by the size of its batch: the first sample's activations, and those of each further one."""

    weights: int
    gradients: int
    optimizer: int
    first: int
    further: int

    def at(self, size: int) -> Memory:
        """The memory of a step over so many samples."""
        return Memory(self.weights, self.gradients, self.optimizer, self.first + self.further * (size - 1))

    def largest(self, memory: int) -> int:
        """The most samples whose step fits into so many bytes; 0: none does."""
        left = memory - self.at(1).total
        return 0 if left < 0 else 1 + left // max(self.further, 1)


def estimate(model: Model, training: TrainingOptions, batch: Mapping[str, Tensor], accelerator: Accelerator) -> Memory:
    """The memory of one step on such a batch."""
    return growth(model, training, batch, accelerator).at(len(next(iter(batch.values()))))


def growth(model: Model, training: TrainingOptions, batch: Mapping[str, Tensor], accelerator: Accelerator) -> Growth:
    """The memory of one step, by the number of samples like this batch's.

    Activations are counted, not guessed: one sample and then two go forward, every tensor kept for the backward pass is
    added up, and the difference is what each further sample costs. What a kernel needs for a moment and what the
    allocator leaves unused is not in it.
    """
    trained = list(model.trained().values())
    size = len(next(iter(batch.values())))
    backbone, was_training = model.backbone, model.training
    model.train()

    def activations() -> tuple[int, int]:
        one, two = (_kept(model, batch, samples, accelerator) for samples in (1, min(2, size)))
        return one, two - one

    with torch.random.fork_rng():
        first, further = activations()
        if backbone.checkpointing:
            # Levels are run again one at a time; what one of them keeps then comes on top.
            backbone.checkpointing = False
            levels = len(backbone.levels)
            first, further = (kept + more // levels for kept, more in zip((first, further), activations(), strict=True))
            backbone.checkpointing = True
        optimizer = _optimizer_state(trained, training)
    model.train(was_training)
    return Growth(_bytes([*model.parameters(), *model.buffers()]), _bytes(trained), optimizer, first, further)


def readable(size: int) -> str:
    """Bytes in the largest decimal unit that leaves at least one."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device now, or None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return None


def _kept(model: Model, batch: Mapping[str, Tensor], samples: int, accelerator: Accelerator) -> int:
    """Bytes of all distinct tensors that a forward pass keeps for the backward pass, the model's own left out."""
    sample = send_to_device({name: tensor[:samples] for name, tensor in batch.items()}, accelerator.device)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    # Storages are held until the end, so that none is freed and its address used again.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), accelerator.autocast(), saved_tensors_hooks(keep, lambda tensor: tensor):
        model.objective.loss(model(model.objective.inputs(sample)), sample)
    return sum(storage.nbytes() for storage in kept.values())


def _optimizer_state(trained: Sequence[nn.Parameter], training: TrainingOptions) -> int:
    """Bytes of the optimizer's state, found out by one step on a small matrix."""
    probe = nn.Linear(64, 64, bias=False)
    optimizer = make_optimizer(probe, training)
    probe.weight.grad = torch.zeros_like(probe.weight)
    optimizer.step()
    state = [value for value in optimizer.state[probe.weight].values() if isinstance(value, Tensor) and value.dim()]
    return _bytes(state) * count(trained) // probe.weight.numel()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
