"""The memory of a training step, estimated before anything is moved to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from toast_cli.model.model import Model, count_elements
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.distributed.fsdp import get_sharded_modules
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.optimizer_state import pack_optimizer_state
from toast_cli.utils.formatting import format_bytes

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one process, in bytes.

    `weights` counts all weights and buffers, and the moving average if there is one. `activations` counts the outputs,
    their gradient and the tensors saved for the backward pass. For a sharded model, the first three fields are this
    process's shards, and `gathered` is the largest amount of parameters that is gathered at one time.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """Return the sum of all fields."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {format_bytes(value)}" for name, value in asdict(self).items() if value)
        trained = f"; trained weights ({format_bytes(self.gradients)}) are float32"
        return f"memory of training, about: {format_bytes(self.total)} ({parts}{trained})"

    def format_warning(self, device: torch.device) -> str | None:
        """Return a warning if the run needs more memory than `device` has free; a CPU already holds the weights."""
        free, needed = get_free_memory(device), self.total - (self.weights if device.type == "cpu" else 0)
        if free is None or needed <= free:
            return None
        return (
            f"A step needs about {format_bytes(needed)}, and {device.type} has {format_bytes(free)} free. "
            "To use less memory, lower training.batch_size and raise training.accumulate, set "
            "training.checkpoint_gradients=true, or use several processes with training.shard=true."
        )


@dataclass(frozen=True)
class MemoryByBatchSize:
    """The memory of a step by batch size: activations of the `first` sample, and of each `further` one, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    first: int
    further: int

    def estimate(self, size: int) -> MemoryEstimate:
        """Return the memory of a step with a batch of `size` samples."""
        return MemoryEstimate(self.weights, self.gradients, self.optimizer, self.first + self.further * (size - 1))

    def find_largest_batch_size(self, memory: int) -> int:
        """Return the largest batch size whose step fits into `memory` bytes; 0 if not even one sample fits."""
        free = memory - self.estimate(1).total
        return 0 if free < 0 else 1 + free // max(self.further, 1)


def estimate_memory(
    model: Model, training: TrainingOptions, batch: Mapping[str, Tensor], accelerator: Accelerator
) -> MemoryEstimate:
    """Estimate the memory of one training step on a batch, before the model is sharded.

    A forward pass with fake tensors, which have shapes and types but no data, counts every tensor that is saved for the
    backward pass. If a layer needs data, the forward pass runs with one real sample and with two, and each further
    sample is assumed to add as much as the second. The estimate does not include temporary memory of kernels, unused
    memory of the allocator, or differences between the tensors that CPU kernels and other kernels save.
    """
    held = estimate_held_memory(model, training, accelerator.device)
    memory = replace(held, activations=measure_activations(model, batch, accelerator).total)
    if not training.shard:
        return memory
    n, sizes = accelerator.num_processes, [_count_bytes(part.parameters()) for part in get_sharded_modules(model)]
    # The next module is gathered while one runs. Parameters outside these modules stay gathered throughout.
    gathered = _count_bytes(model.parameters()) - sum(sizes) + sum(sorted(sizes)[-2:])
    shards = {"weights": held.weights // n, "gradients": held.gradients // n, "optimizer": held.optimizer // n}
    return replace(memory, **shards, gathered=gathered)


def estimate_held_memory(model: Model, training: TrainingOptions, device: torch.device) -> MemoryEstimate:
    """Return the memory that a step needs for any batch, without activations: weights, gradients, optimizer."""
    trained = list(model.get_trained_parameters().values())
    weights = _count_bytes([*model.parameters(), *model.buffers()]) + (_count_bytes(trained) if training.ema else 0)
    return MemoryEstimate(weights, _count_bytes(trained), _count_optimizer_bytes(trained, training, device), 0)


@dataclass(frozen=True)
class Activations:
    """The bytes that a forward pass keeps for the backward pass.

    `saved` is kept by the pass and the loss. The backward pass begins with the gradient of the outputs, of `outputs`
    bytes, while all of it is still kept. With gradient checkpointing, it then also runs the levels again, one at a
    time: a pass that keeps everything would keep `unchecked` in `levels` levels, at most `largest` in one.
    """

    saved: int
    outputs: int
    unchecked: int
    largest: int
    levels: int

    @property
    def total(self) -> int:
        """Return the bytes that are kept at most."""
        return self.saved + max(self.outputs, self.unchecked // max(self.levels, 1), self.largest)

    def extrapolate(self, larger: Activations, levels: int) -> Activations:
        """Return the activations of a model with more levels of the same kind, from those of this and a larger one."""
        return Activations(
            extrapolate_to_levels((self.saved, larger.saved), (self.levels, larger.levels), levels),
            self.outputs,
            extrapolate_to_levels((self.unchecked, larger.unchecked), (self.levels, larger.levels), levels),
            max(self.largest, larger.largest),
            levels,
        )


def extrapolate_to_levels(measured: tuple[int, int], measured_levels: tuple[int, int], levels: int) -> int:
    """Return the value at a number of levels on the line through the values at two other numbers of levels."""
    (small, large), (few, more) = measured, measured_levels
    return small + (large - small) * (levels - few) // (more - few)


def measure_activations(model: Model, batch: Mapping[str, Tensor], accelerator: Accelerator) -> Activations:
    """Measure what a training step on a batch keeps for the backward pass."""
    backbone, was_training = model.backbone, model.training
    model.train()
    dtype, unchecked, by_level = AUTOCAST_DTYPES.get(accelerator.mixed_precision), 0, [0]
    with torch.random.fork_rng(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs, saved, _ = _measure_forward(model, batch)
        saved += outputs.nbytes + _count_bytes_saved_by_loss(model, outputs, batch)
        if backbone.checkpointing:
            backbone.checkpointing = False
            _, unchecked, by_level = _measure_forward(model, batch)
            backbone.checkpointing = True
    model.train(was_training)
    return Activations(saved, outputs.nbytes, unchecked, max(by_level, default=0), len(backbone.levels))


def estimate_memory_by_batch_size(
    model: Model, training: TrainingOptions, batch: Mapping[str, Tensor], accelerator: Accelerator
) -> MemoryByBatchSize:
    """Estimate the memory of one step by batch size, from the first two samples of a batch, before sharding."""
    one, two = (
        estimate_memory(model, training, {name: tensor[:samples] for name, tensor in batch.items()}, accelerator)
        for samples in (1, 2)
    )
    return MemoryByBatchSize(
        one.weights, one.gradients, one.optimizer, one.activations, two.activations - one.activations
    )


def get_free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes, or None if it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return None


class _SavedTensorCounter:
    """A context manager that counts the distinct tensors saved for the backward pass, except for `excluded` ones.

    Tensors saved while `level` is set are also counted for that level.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        # Keep the storages alive, so that no address is used twice.
        self._storages: dict[int, tuple[torch.UntypedStorage, int | None]] = {}
        self._hooks = saved_tensors_hooks(self._record_tensor, lambda tensor: tensor)
        self.level: int | None = None

    def _record_tensor(self, tensor: Tensor) -> Tensor:
        for dense in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = dense.untyped_storage()
            if storage._cdata not in self._excluded:
                self._storages.setdefault(storage._cdata, (storage, self.level))
        return tensor

    def __enter__(self) -> _SavedTensorCounter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def count_bytes(self) -> int:
        """Return the bytes of all counted tensors."""
        return sum(storage.nbytes() for storage, _ in self._storages.values())

    def count_bytes_by_level(self) -> list[int]:
        """Return the bytes saved in every level."""
        sums: dict[int, int] = {}
        for storage, level in self._storages.values():
            if level is not None:
                sums[level] = sums.get(level, 0) + storage.nbytes()
        return list(sums.values())


def _measure_forward(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, list[int]]:
    """Return the outputs of a batch, without data, the bytes saved for the backward pass, and those of each level."""
    try:
        return _measure_forward_with_fake_tensors(model, batch)
    except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError):
        return _measure_forward_with_real_tensors(model, batch)


def _measure_forward_with_fake_tensors(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, list[int]]:
    """Measure with fake tensors."""
    # Tensors that the network itself creates also become fake.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    own = make_fake_tensors(model, mode)
    inputs = tree_map_only(Tensor, mode.from_tensor, model.objective.inputs(batch))
    counter = _SavedTensorCounter(excluded=own.values())
    with _track_levels(model, counter), torch.enable_grad(), mode, counter:
        outputs = functional_call(model, own, (inputs,), tie_weights=False)
    return outputs, counter.count_bytes(), counter.count_bytes_by_level()


def make_fake_tensors(module: nn.Module, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Return the tensors of a module by name as fake ones; those on the meta device become fake ones of the CPU.

    They are named by module, because weights may be tied and the head may be a module of the backbone.
    """

    def make_fake(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return mode.from_tensor(tensor)
        fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    return {
        f"{place}.{name}".lstrip("."): make_fake(tensor)
        for place, part in module.named_modules()
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }


def _measure_forward_with_real_tensors(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, list[int]]:
    """Measure with one real sample and with two, and assume that each further sample saves as much as the second."""
    samples = len(next(iter(batch.values())))
    measured = []
    for size in range(1, min(samples, 2) + 1):
        counter = _SavedTensorCounter(excluded=[*model.parameters(), *model.buffers()])
        with _track_levels(model, counter), torch.enable_grad(), counter:
            outputs = model(model.objective.inputs({name: tensor[:size] for name, tensor in batch.items()}))
        measured.append([counter.count_bytes(), *counter.count_bytes_by_level()])
    total, *by_level = (one + (two - one) * (samples - 1) for one, two in zip(measured[0], measured[-1], strict=True))
    return torch.empty((samples, *outputs.shape[1:]), dtype=outputs.dtype, device="meta"), total, by_level


@contextmanager
def _track_levels(model: Model, counter: _SavedTensorCounter) -> Iterator[None]:
    """Set `level` of the counter to the running level within the block."""

    def enters(index: int | None) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counter.level = index

        return hook

    handles = []
    for index, level in enumerate(model.backbone.level_modules):
        handles += [level.register_forward_pre_hook(enters(index)), level.register_forward_hook(enters(None))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count_bytes_saved_by_loss(model: Model, outputs: Tensor, batch: Mapping[str, Tensor]) -> int:
    """Return the bytes saved by the loss, scaled up from one real sample, because they depend on the labels."""
    objective = model.objective
    samples = [{name: tensor[at : at + 1] for name, tensor in batch.items()} for at in range(len(outputs))]
    counts = [objective.count(sample) for sample in samples]
    probe, sample = objective.make_loss_probe(outputs, samples[counts.index(max(counts))])
    probe.requires_grad_()
    with torch.enable_grad(), _SavedTensorCounter(excluded=[probe]) as counter:
        objective.loss(probe, sample)
    return counter.count_bytes() * sum(counts) // max(objective.count(sample), 1)


def _count_optimizer_bytes(trained: Sequence[nn.Parameter], training: TrainingOptions, device: torch.device) -> int:
    """Return the bytes of the optimizer's state, scaled up from one step on a small matrix on the device.

    A few optimizers run only on the device of the run. The learning rate, which need not be a number yet, does not
    change the size of the state.
    """
    with torch.random.fork_rng():
        probe = nn.Linear(64, 64, bias=False, device=device)
    optimizer = make_optimizer(probe, training.model_copy(update={"head_lr": None, "lr": 1e-3}))
    probe.weight.grad = torch.zeros_like(probe.weight)
    optimizer.step()
    state, _ = pack_optimizer_state(optimizer)
    return (
        _count_bytes(value for value in state.values() if value.dim()) * count_elements(trained) // probe.weight.numel()
    )


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
