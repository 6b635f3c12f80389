"""Parameters, gradients and optimizer state divided among processes, so that a model trains that fits on no device.

Every process holds a part of every tensor; a level's are put together for as long as the level runs. PyTorch's own
`fully_shard` (FSDP2) does it. Accelerate's plugin calls the same, but does nothing on CPUs, so that nothing of it could
be tested here; it also takes parts by their class, and knows of no way into a model but `forward`.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.export import register_dataclass

from toast_cli.backbones.base import Readout
from toast_cli.model.model import Model
from toast_cli.steering.steering import PassOutputs, Steering
from toast_cli.utils.errors import UsageError

# So that PyTorch finds the tensors in them whose gradients tell when parameters are needed again.
for kind in (Readout, PassOutputs):
    register_dataclass(kind)


def check_sharding(accelerator: Accelerator) -> None:
    """Refuse to share out a model that only one process works on.

    Raises:
        UsageError: there is one process.
    """
    if accelerator.num_processes == 1:
        raise UsageError(
            "training.shard divides the model among processes, and there is one.",
            what_to_do="Start several: torchrun --nproc-per-node 2 -m toast_cli tune ..., or leave training.shard out.",
            code="training.single-process",
        )


def check_uniform_forward_calls(model: Model) -> None:
    """Refuse to share out a model that one process would run more often than another: the others would wait for ever.

    Raises:
        UsageError: what is learned is predicted in that way.
    """
    if model.objective.has_variable_cost:
        raise UsageError(
            "training.shard needs every process to run the model as often as the others.",
            "A sliding window does so more often on larger images.",
            "Use task.evaluation=whole, or leave training.shard out.",
            code="training.uneven-forward-calls",
        )


def get_sharded_modules(model: Model) -> list[nn.Module]:
    """What is put together for its own call alone; all that is in none of them, for every call of the model."""
    steering = model.adapted.steering
    own = [steering.selection, *steering.feedback.A, *steering.feedback.B] if isinstance(steering, Steering) else []
    return [*model.backbone.level_modules, *own]


def shard_model(model: Model, accelerator: Accelerator) -> None:
    """Divide every parameter of the model among the processes, in place.

    A model on the CPU comes to the device one part at a time: no device ever holds it whole.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for part in get_sharded_modules(model):
        fully_shard(part, mesh=mesh)
    # Put together for each call and let go at its end: evaluation has no backward pass to let it go.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in ("forward_passes", "outputs", "initialize_method"):
        register_fsdp_forward_method(model, method)
