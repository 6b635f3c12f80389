"""A recipe made real: its data, its model, its device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed

from toast_cli.data.base import BatchLoader, BatchOptions, DataSet
from toast_cli.model.batches import build_batches, open_data
from toast_cli.model.model import Model, build_model, count_elements, count_flops
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.pretuned import Lineage, initialize_from_artifact, resolve_artifact_path
from toast_cli.training.distributed.devices import check_compiling, make_accelerator
from toast_cli.training.distributed.fsdp import check_sharding, check_uniform_forward_calls, shard_model
from toast_cli.training.optimization import check_optimizer
from toast_cli.training.plan.memory import MemoryEstimate, estimate_memory
from toast_cli.training.step import freeze_parameters_for_pretuning
from toast_cli.utils.errors import ToastError, UsageError


@dataclass
class Session:
    """A recipe made real: the data opened, the model built, the device chosen; nothing trained or written yet.

    `lineage` is where the feedback path comes from, if the model has been given a pre-tuned one.
    """

    recipe: Recipe
    data: DataSet
    model: Model
    accelerator: Accelerator
    lineage: Lineage | None = None

    @property
    def batch_size(self) -> int:
        """Samples per forward pass where nothing is trained."""
        return self.recipe.training.eval_batch_size or self.recipe.training.batch_size

    def batches(self, split: str, *, train: bool = False, with_masks: bool = False) -> BatchLoader:
        """A split in batches: shuffled and augmented for training, in order and plain otherwise."""
        size = self.recipe.training.batch_size if train else self.batch_size
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        views = self.recipe.training.cache_views if self.recipe.training.cache and train else None
        return self._batches(split, BatchOptions(size, train, train, with_masks, process, processes, views))

    def sample(self, wanted: int) -> Iterator[Any]:
        """What the backbone looks at in `wanted` plain training samples that the seed draws, a batch at a time."""
        for batch in self._batches("train", BatchOptions(self.batch_size, shuffle=True)):
            batch = {name: tensor[:wanted] for name, tensor in batch.items()}
            wanted -= len(next(iter(batch.values())))
            yield send_to_device(self.model.objective.inputs(batch), self.accelerator.device)
            if wanted <= 0:
                return

    def _batches(self, split: str, wanted: BatchOptions) -> BatchLoader:
        return build_batches(self.data.splits[split], self.recipe, self.model.backbone, wanted)

    def can_measure_attention(self, split: str) -> bool:
        """Whether attention can be held against masks on this split."""
        return self.model.backbone.has_attention and self.data.splits[split].has_masks

    def sizes(self) -> dict[str, Any]:
        """Trainable and total parameters, and counted FLOPs against the plain backbone."""
        return {
            "trained_parameters": count_elements(self.model.trained().values()),
            "total_parameters": count_elements(self.model.parameters()),
            **count_flops(self.model),
        }

    def describe_backbone(self) -> list[str]:
        """What the backbone has to say, and how images are normalised where a weights file does not say it."""
        weights, seen = self.recipe.backbone.weights, self.model.backbone.preprocessing
        if weights in (None, "none") or seen is None:
            return list(self.model.backbone.notes)
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (seen.mean, seen.std))
        return [
            *self.model.backbone.notes,
            f"Weights of {weights}; images are normalised by mean ({mean}) and std ({std}), as for the published "
            f"weights of {self.recipe.backbone.name}: images.normalize, or images.mean and images.std, change that.",
        ]

    def place(self) -> None:
        """Bring the model to where it is trained: divided among the processes part by part, or whole on the device."""
        if self.recipe.training.shard:
            shard_model(self.model, self.accelerator)
        else:
            self.model.to(self.accelerator.device)

    def memory(self, batches: BatchLoader) -> MemoryEstimate:
        """What a training step on such batches will hold in each process, worked out before the model is placed."""
        return estimate_memory(self.model, self.recipe.training, next(iter(batches)), self.accelerator)


def prepare_session(recipe: Recipe, *, labels: bool = True, begun: bool = False, place: bool = True) -> Session:
    """Open the data and build the model; everything random after this point follows from the recipe's seed.

    A pre-tuned feedback path that the recipe names is put in here, so that a wrong one is refused before anything is
    written; not where the run has `begun` before and goes on from a checkpoint of its own. Without `place` the model
    stays on the CPU. What a pre-tuning cannot teach is frozen.

    Raises:
        UsageError: the method would begin from nothing; `labels` are to be learned, and the data has none; the
            pre-tuned path is none.
        ToastError: anything else that a user can mend.
    """
    recipe.plugins.method.check(recipe.method, recipe.init_from is not None)
    check_optimizer(recipe.training)
    if recipe.training.tensorboard and find_spec("tensorboard") is None:
        raise ToastError(
            "TensorBoard is not installed.",
            what_to_do="pip install 'toast-cli[tensorboard]', or training.tensorboard=false.",
            code="training.missing-package",
        )
    accelerator = make_accelerator(recipe.device, recipe.precision)
    if recipe.training.shard:
        check_sharding(accelerator)
    data = open_data(recipe)
    if recipe.training.patience is not None and "val" not in data.splits:
        raise UsageError(
            "training.patience needs a validation split, and the data has none.",
            what_to_do="Leave training.patience out, or hold images out with dataset.val_fraction.",
            code="data.missing-split",
        )
    if labels and len(data.classes) == 1:
        raise UsageError(
            "These images have no labels to learn from.",
            what_to_do="Pre-tune on them: 'toast pretune' with pretuning.target=first-pass, or with --least-squares.",
            code="data.missing-labels",
        )
    set_seed(recipe.seed)
    model = build_model(recipe, data.classes)
    if recipe.pretuning is not None:
        freeze_parameters_for_pretuning(model, recipe.pretuning)
    if recipe.training.shard:
        check_uniform_forward_calls(model)
    check_compiling(model, accelerator)
    lineage = (
        initialize_from_artifact(resolve_artifact_path(recipe), model, recipe)
        if recipe.init_from is not None and not begun
        else None
    )
    session = Session(recipe, data, model, accelerator, lineage)
    if place:
        session.place()
    return session


def build_plain_model(backbone: str, weights: str | None, device: str | None) -> tuple[Model, Recipe]:
    """A backbone with nothing on it but an untrained head of one class, and the recipe that stands for it."""
    raw = {
        "backbone": {"name": backbone, "weights": weights},
        "dataset": "demo",
        "method": "linear",
        "device": device or "auto",
    }
    recipe = build_recipe(raw, {}, origin="options")
    return build_model(recipe, ("none",)).eval(), recipe
