"""Parameters, gradients and optimizer state divided among processes, so that a model trains that fits into none.

Every process holds a part of every tensor; a level's are put together for as long as the level runs. PyTorch's own
`fully_shard` (FSDP2) does it, which Accelerate would call as well, but on GPUs alone.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.export import register_dataclass

from toast_cli.backbone import Readout
from toast_cli.errors import UsageError
from toast_cli.model import Model
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.steering.steering import Passes, Steering

# So that PyTorch finds the tensors in them whose gradients tell when parameters are needed again.
for kind in (Readout, Passes):
    register_dataclass(kind)


def check_sharding(training: TrainingOptions, accelerator: Accelerator) -> None:
    """Refuse to share out a model that only one process works on.

    Raises:
        UsageError: there is one process.
    """
    if training.shard and accelerator.num_processes == 1:
        raise UsageError(
            "training.shard divides the model among processes, and there is one.",
            what_to_do="Start several: torchrun --nproc-per-node 2 -m toast_cli tune ..., or leave training.shard out.",
        )


def check_even(training: TrainingOptions, model: Model) -> None:
    """Refuse to share out a model that one process would run more often than another: the others would wait for ever.

    Raises:
        UsageError: what is learned is predicted in that way.
    """
    if training.shard and model.objective.uneven:
        raise UsageError(
            "training.shard needs every process to run the model as often as the others.",
            "A sliding window does so more often on larger images.",
            "Use task.evaluation=whole, or leave training.shard out.",
        )


def shard(model: Model) -> None:
    """Divide every parameter of the model among the processes, in place."""
    steering = model.adapted.steering
    feedback = [*steering.feedback.A, *steering.feedback.B] if isinstance(steering, Steering) else []
    for module in (*model.backbone.level_modules, *feedback):
        fully_shard(module)
    # Put together for each call and let go at its end: evaluation has no backward pass to let it go.
    fully_shard(model, reshard_after_forward=True)
    for method in ("look", "outputs"):
        register_fsdp_forward_method(model, method)
