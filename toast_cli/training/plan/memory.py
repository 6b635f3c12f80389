"""What a training step will hold in memory, worked out before anything is put on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from toast_cli.model.model import Model, count_elements
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.distributed.fsdp import get_sharded_modules
from toast_cli.training.optimization import make_optimizer
from toast_cli.utils.files import format_bytes

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process.

    `weights` are all weights and buffers (an average of the trained ones included), `activations` what is kept for the
    backward pass, and the outputs. Where the model is divided, the first three are this process's share, and `gathered`
    is what is put together for a moment.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {format_bytes(value)}" for name, value in asdict(self).items() if value)
        trained = f"; the trained weights, {format_bytes(self.gradients)} of them, are kept in float32"
        return f"memory while training, about: {format_bytes(self.total)} ({listed}{trained})"

    def warning(self, device: torch.device) -> str | None:
        """What to say where a device has less to give than the run will ask for; the weights are on the CPU by now."""
        free, needed = get_free_memory(device), self.total - (self.weights if device.type == "cpu" else 0)
        if free is None or needed <= free:
            return None
        return (
            f"A step needs about {format_bytes(needed)}, and {device.type} has {format_bytes(free)} free. "
            "Less: a smaller training.batch_size with training.accumulate, training.checkpoint_gradients=true, or "
            "several processes with training.shard=true."
        )


@dataclass(frozen=True)
class MemoryByBatchSize:
    """The memory of a step by the size of its batch: the first sample's activations, and those of each further one."""

    weights: int
    gradients: int
    optimizer: int
    first: int
    further: int

    def at(self, size: int) -> MemoryEstimate:
        """The memory of a step over so many samples."""
        return MemoryEstimate(self.weights, self.gradients, self.optimizer, self.first + self.further * (size - 1))

    def largest(self, memory: int) -> int:
        """The most samples whose step fits into so many bytes; 0: none does."""
        left = memory - self.at(1).total
        return 0 if left < 0 else 1 + left // max(self.further, 1)


def estimate_memory(
    model: Model, training: TrainingOptions, batch: Mapping[str, Tensor], accelerator: Accelerator
) -> MemoryEstimate:
    """The memory of one step on such a batch, of a model that is whole.

    Activations are counted, not guessed: the batch goes forward through tensors that have shapes and types but no
    numbers, which takes no memory and little time, and every tensor kept for the backward pass is added up. Where a
    layer needs numbers to go forward at all, one real sample goes and then two, and each further one is taken to add
    what the second did. What a kernel needs for a moment and what the allocator leaves unused is not in it, nor is
    where a kernel of another device keeps other things than the CPU's.
    """
    trained = list(model.trained().values())
    backbone, was_training = model.backbone, model.training
    model.train()
    dtype = AUTOCAST_DTYPES.get(accelerator.mixed_precision)
    with torch.random.fork_rng(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs, kept, _ = _measure_forward(model, batch)
        kept += outputs.nbytes + _count_bytes_saved_by_loss(model, outputs, batch)
        if backbone.checkpointing:
            # Levels are run again one at a time; what the largest keeps then comes on top.
            backbone.checkpointing = False
            _, everything, by_level = _measure_forward(model, batch)
            kept += max([everything // len(backbone.levels), *by_level])
            backbone.checkpointing = True
        optimizer = _count_optimizer_bytes(trained, training)
    model.train(was_training)
    weights = _count_bytes([*model.parameters(), *model.buffers()]) + (_count_bytes(trained) if training.ema else 0)
    if not training.shard:
        return MemoryEstimate(weights, _count_bytes(trained), optimizer, kept)
    n, sizes = accelerator.num_processes, [_count_bytes(part.parameters()) for part in get_sharded_modules(model)]
    # While one part runs the next is fetched; what is in no part stays together throughout.
    gathered = _count_bytes(model.parameters()) - sum(sizes) + sum(sorted(sizes)[-2:])
    return MemoryEstimate(weights // n, _count_bytes(trained) // n, optimizer // n, kept, gathered)


def estimate_memory_by_batch_size(
    model: Model, training: TrainingOptions, batch: Mapping[str, Tensor], accelerator: Accelerator
) -> MemoryByBatchSize:
    """The memory of one step, by the number of samples like this batch's first two; of a model that is whole."""
    one, two = (
        estimate_memory(model, training, {name: tensor[:samples] for name, tensor in batch.items()}, accelerator)
        for samples in (1, 2)
    )
    return MemoryByBatchSize(
        one.weights, one.gradients, one.optimizer, one.activations, two.activations - one.activations
    )


def get_free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device now, or None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return None


class _SavedTensorCounter:
    """Within, all distinct tensors that a forward pass keeps for the backward pass are counted, `but` for the model's.

    What is kept while a `level` is set counts as that level's, too.
    """

    def __init__(self, but: Iterable[Tensor] = ()) -> None:
        self._but = {tensor.untyped_storage()._cdata for tensor in but}
        # Storages are held until the end, so that none is freed and its address used again.
        self._found: dict[int, tuple[torch.UntypedStorage, int | None]] = {}
        self._hooks = saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self.level: int | None = None

    def _keep(self, tensor: Tensor) -> Tensor:
        for dense in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = dense.untyped_storage()
            if storage._cdata not in self._but:
                self._found.setdefault(storage._cdata, (storage, self.level))
        return tensor

    def __enter__(self) -> _SavedTensorCounter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def bytes(self) -> int:
        """All of them."""
        return sum(storage.nbytes() for storage, _ in self._found.values())

    def by_level(self) -> list[int]:
        """For every level, what was kept while it was set."""
        sums: dict[int, int] = {}
        for storage, level in self._found.values():
            if level is not None:
                sums[level] = sums.get(level, 0) + storage.nbytes()
        return list(sums.values())


def _measure_forward(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, list[int]]:
    """The outputs for a batch, without numbers in them; what is kept to go back from them; of that, each level's."""
    try:
        return _measure_forward_with_fake_tensors(model, batch)
    except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError):
        return _measure_forward_with_real_tensors(model, batch)


def _measure_forward_with_fake_tensors(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, list[int]]:
    """By tensors that have a shape and a type."""
    # Whatever a network makes for itself on the way becomes a tensor without numbers, too.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # By every module once: weights may be tied, and the head may be a module of the backbone's.
    own: dict[str, Tensor] = {
        f"{place}.{name}".lstrip("."): mode.from_tensor(tensor)
        for place, module in model.named_modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    inputs = tree_map_only(Tensor, mode.from_tensor, model.objective.inputs(batch))
    kept = _SavedTensorCounter(but=own.values())
    with _track_levels(model, kept), torch.enable_grad(), mode, kept:
        outputs = functional_call(model, own, (inputs,), tie_weights=False)
    return outputs, kept.bytes(), kept.by_level()


def _measure_forward_with_real_tensors(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, list[int]]:
    """By one real sample and by two; each of the others is taken to keep what the second does."""
    samples = len(next(iter(batch.values())))
    found = []
    for size in range(1, min(samples, 2) + 1):
        kept = _SavedTensorCounter(but=[*model.parameters(), *model.buffers()])
        with _track_levels(model, kept), torch.enable_grad(), kept:
            outputs = model(model.objective.inputs({name: tensor[:size] for name, tensor in batch.items()}))
        found.append([kept.bytes(), *kept.by_level()])
    every, *by_level = (one + (two - one) * (samples - 1) for one, two in zip(found[0], found[-1], strict=True))
    return torch.empty((samples, *outputs.shape[1:]), dtype=outputs.dtype, device="meta"), every, by_level


@contextmanager
def _track_levels(model: Model, kept: _SavedTensorCounter) -> Iterator[None]:
    """Within the block, what is kept counts as the level's that runs."""

    def enters(index: int | None) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            kept.level = index

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
    """What the loss keeps: how many tokens or pixels are learned is a matter of numbers, so it sees one real sample."""
    objective = model.objective
    samples = [{name: tensor[at : at + 1] for name, tensor in batch.items()} for at in range(len(outputs))]
    counts = [objective.count(sample) for sample in samples]
    sample, most = samples[counts.index(max(counts))], max(counts)
    logits = torch.zeros(outputs[:1].shape, dtype=outputs.dtype, requires_grad=True)
    with torch.enable_grad(), _SavedTensorCounter(but=[logits]) as kept:
        objective.loss(logits, sample)
    return kept.bytes() * sum(counts) // max(most, 1)


def _count_optimizer_bytes(trained: Sequence[nn.Parameter], training: TrainingOptions) -> int:
    """Bytes of the optimizer's state, found out by one step on a small matrix."""
    probe = nn.Linear(64, 64, bias=False)
    optimizer = make_optimizer(probe, training.model_copy(update={"head_lr": None}))
    probe.weight.grad = torch.zeros_like(probe.weight)
    optimizer.step()
    state = [value for value in optimizer.state[probe.weight].values() if isinstance(value, Tensor) and value.dim()]
    return _count_bytes(state) * count_elements(trained) // probe.weight.numel()


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
