"""Sharding of parameters, gradients and optimizer state, to train models that do not fit on one device.

Every process holds a shard of every tensor, and the tensors of a level are gathered while the level runs, with
PyTorch's `fully_shard` (FSDP2). Accelerate's plugin is not used for three reasons: it does nothing on CPUs, so it could
not be tested there; it selects modules by class; and it supports no entry point of a model except `forward`.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.export import register_dataclass

from toast_cli.backbones.base import Readout
from toast_cli.backbones.quantized_linear import get_quantization
from toast_cli.model.model import Model
from toast_cli.steering.steering import PassOutputs, Steering
from toast_cli.utils.errors import UsageError

# FSDP hooks into the gradients of output tensors, and finds them in registered classes only.
for kind in (Readout, PassOutputs):
    register_dataclass(kind)


def check_sharding(accelerator: Accelerator) -> None:
    """Check that there are processes to shard the model over.

    Raises:
        UsageError: there is one process.
    """
    if accelerator.num_processes == 1:
        raise UsageError(
            "training.shard needs several processes, and this run has one.",
            what_to_do="Use torchrun --nproc-per-node 2 -m toast_cli tune ..., or leave training.shard out.",
            code="training.single-process",
        )


def check_shardable(model: Model) -> None:
    """Check that a model can be sharded.

    All processes must run it equally often; otherwise the collectives would deadlock. FSDP shards parameters alone, and
    the packed weights of a quantized backbone are buffers: every process would hold all of them.

    Raises:
        UsageError: the number of forward passes depends on the image, as with a sliding window; or the backbone is
            quantized.
    """
    if (kind := get_quantization(model.backbone.module)) is not None:
        raise UsageError(
            f"training.shard cannot shard a backbone in {kind}.",
            "FSDP shards parameters, and packed weights are none.",
            "Leave training.shard or backbone.quantize out.",
            code="training.conflicting-options",
        )
    if model.objective.has_variable_cost:
        raise UsageError(
            "training.shard needs the same number of forward passes in every process.",
            "A sliding window runs the model more often on larger images.",
            "Use task.evaluation=whole, or leave training.shard out.",
            code="training.uneven-forward-calls",
        )


def get_sharded_modules(model: Model) -> list[nn.Module]:
    """Return the modules that are gathered for their own call only; the rest is gathered for every model call."""
    steering = model.adapted.steering
    own = [steering.selection, *steering.feedback.A, *steering.feedback.B] if isinstance(steering, Steering) else []
    return [*model.backbone.level_modules, *own]


def shard_module(accelerator: Accelerator, module: nn.Module) -> None:
    """Shard the parameters of a single module over the processes, in place."""
    fully_shard(module, mesh=init_device_mesh(accelerator.device.type, (accelerator.num_processes,)))


def shard_model(model: Model, accelerator: Accelerator) -> None:
    """Shard every parameter of the model over the processes, in place.

    A model on the CPU is moved to the device one module at a time, so no device ever holds all of it.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in get_sharded_modules(model):
        fully_shard(module, mesh=mesh)
    # Reshard after the forward pass, because evaluation has no backward pass that would do so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in ("forward_passes", "compute_outputs", "initialize_method"):
        register_fsdp_forward_method(model, method)
