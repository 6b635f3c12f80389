"""A session: the data, model and device of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor

from toast_cli.backbones.conformance import check_backbone
from toast_cli.backbones.quantized_linear import count_parameters
from toast_cli.data.base import (
    BatchLoader,
    BatchOptions,
    DataSet,
    explain_missing_class_labels,
    get_class_labels,
)
from toast_cli.data.text.turn_formats import describe_template
from toast_cli.model.model import Model, build_model, count_elements, count_flops
from toast_cli.model.recipe_data import build_batches, choose_task, require_fitting_task
from toast_cli.recipe.schema import Recipe
from toast_cli.tasks.output_rows import add_output_rows
from toast_cli.training.automatic.end_tokens import EndTokenChoice, choose_end_tokens
from toast_cli.training.automatic.recommended_rates import (
    RateChoice,
    find_recommended_rate,
    require_recommended_rates,
)
from toast_cli.training.continuation.start import Start, initialize_model
from toast_cli.training.data.run_data import open_shared_data
from toast_cli.training.distributed.devices import check_compiling, make_accelerator
from toast_cli.training.distributed.fsdp import check_shardable, check_sharding, shard_model, shard_module
from toast_cli.training.optimization import check_optimizer
from toast_cli.training.plan.memory import MemoryEstimate, estimate_memory
from toast_cli.training.step import freeze_parameters_for_pretuning
from toast_cli.training.tracking.libraries import check_trackers
from toast_cli.utils.config import is_automatic, is_recommended
from toast_cli.utils.constants import OWN_PACKAGE
from toast_cli.utils.errors import UsageError


@dataclass
class Session:
    """The opened data, the model and the accelerator of a recipe, before anything is trained or written.

    `start` is the earlier model that the weights come from, if there is one (`init_from`). `rate` is the choice of the
    learning rate if it was `recommended`; the recipe has its number. So it has those of the end tokens whose output
    rows are trained, by the choice `ends`.
    """

    recipe: Recipe
    data: DataSet
    model: Model
    accelerator: Accelerator
    start: Start | None = None
    rate: RateChoice | None = None
    ends: EndTokenChoice = field(default_factory=EndTokenChoice)
    _packing_is_checked: bool = field(default=False, init=False, repr=False)

    @property
    def batch_size(self) -> int:
        """Return the number of samples in a forward pass without training."""
        return self.recipe.training.eval_batch_size or self.recipe.training.batch_size

    def make_loader(self, split: str, *, train: bool = False, with_masks: bool = False) -> BatchLoader:
        """Return a loader of a split, which shuffles and augments only with `train`.

        Raises:
            UsageError: texts are to be packed, and the model mixes those of a block.
            ToastError: see `build_batches`.
        """
        if train and getattr(self.recipe.dataset, "packing", False) and not self._packing_is_checked:
            from toast_cli.training.data.packing import check_packing  # imports the loader of texts

            check_packing(self.model)
            self._packing_is_checked = True
        size = self.recipe.training.batch_size if train else self.batch_size
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        views = self.recipe.training.cache_views if self.recipe.training.cache and train else None
        balance = train and self.recipe.training.sampler == "balanced"
        options = BatchOptions(size, train, train, with_masks, process, processes, views, balance)
        return self._make_task_loader(split, options)

    def iterate_training_inputs(self, count: int) -> Iterator[Any]:
        """Yield the inputs of `count` training samples, drawn by the seed and not augmented, in batches."""
        for batch in self._make_task_loader("train", BatchOptions(self.batch_size, shuffle=True)):
            batch = {name: tensor[:count] for name, tensor in batch.items()}
            count -= len(next(iter(batch.values())))
            yield send_to_device(self.model.objective.inputs(batch), self.accelerator.device)
            if count <= 0:
                return

    def _make_task_loader(self, split: str, options: BatchOptions) -> BatchLoader:
        return build_batches(self.data.splits[split], self.recipe, self.model.backbone, options)

    def can_measure_attention(self, split: str) -> bool:
        """Return whether attention can be compared with masks on this split."""
        return self.model.backbone.has_attention and self.data.splits[split].has_masks

    def measure_model_sizes(self) -> dict[str, Any]:
        """Return the trained and total parameters, and the FLOPs of the model and the plain backbone."""
        return {
            "trained_parameters": count_elements(self.model.get_trained_parameters().values()),
            "total_parameters": count_parameters(self.model),
            **count_flops(self.model),
        }

    def describe_choices(self) -> list[str]:
        """Return notes on the backbone, on template, adapted layers and end tokens of texts, and on a set rate."""
        method = self.model.adapted.notes if self.model.objective.target == "text" else ()
        rate = [] if self.rate is None else [self.rate.message]
        return [*self.describe_backbone(), *self._describe_template(), *method, *self.ends.notes, *rate]

    def _describe_template(self) -> list[str]:
        """Return a note on the format of the turns of conversations, or nothing for other data."""
        template = getattr(self.recipe.dataset, "template", None)
        tokenizer = self.model.backbone.tokenizer
        return [] if template is None or tokenizer is None else [describe_template(tokenizer, template)]

    def set_recommended_rate(self) -> None:
        """Set the learning rate of the recipe to the recommended one."""
        self.rate = self.find_recommended_rate()
        training = self.recipe.training.model_copy(update={"lr": self.rate.rate.lr})
        self.recipe = self.recipe.model_copy(update={"training": training})
        check_optimizer(training)

    def find_recommended_rate(self) -> RateChoice:
        """Return the recommended learning rate of this method and model."""
        parameters = count_parameters(self.model.adapted.network)
        return find_recommended_rate(self.recipe.method.name, parameters)

    def describe_backbone(self) -> list[str]:
        """Return the backbone's notes and, if its weights do not record it, how images are prepared."""
        backbone, weights, images = self.model.backbone, self.recipe.backbone.weights, self.recipe.images
        notes, preprocessing = list(backbone.notes), backbone.preprocessing
        from_path = weights not in (None, "none")
        if preprocessing is None:
            return notes
        if images.sets_normalization:
            summary = preprocessing.format_summary()
            line = f"Weights from {weights}. Images: {summary}; mean and std as set in the recipe."
            return [*notes, line] if from_path else notes
        if backbone.normalization_note is not None:
            return [*notes, backbone.normalization_note]
        if not from_path:
            return notes
        origin = f", as for the published weights of {self.recipe.backbone.name}"
        return [*notes, preprocessing.format_assumption(f"{weights} does not record how images are prepared", origin)]

    def move_to_device(self) -> None:
        """Move the model to the device, or shard it over the processes with `training.shard`."""
        if self.recipe.training.shard:
            shard_model(self.model, self.accelerator)
        else:
            self.model.to(self.accelerator.device)

    def estimate_memory(self, batch: Mapping[str, Tensor]) -> MemoryEstimate:
        """Estimate the memory of a training step on a batch in each process; call before `place`."""
        return estimate_memory(self.model, self.recipe.training, batch, self.accelerator)


def prepare_session(recipe: Recipe, *, labels: bool = True, begun: bool = False, place: bool = True) -> Session:
    """Open the data and build the model of a recipe. All randomness follows from the recipe's seed.

    Args:
        recipe: the recipe.
        labels: the run needs labels.
        begun: the run resumes from its own checkpoint, so `init_from` is not loaded. Otherwise it is loaded here, so
            that an artifact that does not fit is refused before anything is written.
        place: move the model to the device; else it stays on the CPU.

    Raises:
        UsageError: the method needs `init_from`, the optimizer cannot be used, the data has no labels or lacks a split,
            the task does not fit the labels, `init_from` is neither a tuned model nor an artifact, or a tracker is
            unknown.
        ToastError: any other error that the user can fix.
    """
    recipe.plugins.method.check(recipe.method, recipe.init_from is not None)
    _require_numbers(recipe)
    check_trackers(recipe.training.trackers)
    accelerator = make_accelerator(recipe.device, recipe.precision)
    if recipe.training.shard:
        check_sharding(accelerator)
    check_optimizer(
        recipe.training, accelerator.device, partial(shard_module, accelerator) if recipe.training.shard else None
    )
    data = open_shared_data(recipe, accelerator)
    if "train" not in data.splits:
        raise UsageError(
            f"The data set '{recipe.dataset.name}' has no train split, so it can only be evaluated.",
            what_to_do="Add training images, or use 'toast eval --dataset'.",
            code="data.no-train-split",
        )
    if recipe.training.patience is not None and "val" not in data.splits:
        raise UsageError(
            "training.patience needs a validation split, and the data set has none.",
            what_to_do="Leave training.patience out, or hold images out with dataset.val_fraction.",
            code="data.missing-split",
        )
    recipe = choose_task(recipe, data)
    if labels and len(data.classes) == 1 and data.target == "class":
        raise UsageError(
            "The images have no labels, which this run needs.",
            what_to_do="To pre-tune on them, use 'toast pretune' with pretuning.target=first-pass or --least-squares.",
            code="data.missing-labels",
        )
    labels_by_class = get_class_labels(data, "train")
    if recipe.training.sampler == "balanced" and labels_by_class is None:
        raise UsageError(
            "training.sampler=balanced needs the class of every training image before the first step.",
            explain_missing_class_labels(data, "train"),
            "Use training.sampler=shuffle.",
            code="training.unknown-class-counts",
        )
    set_seed(recipe.seed)
    model = build_model(recipe, data.classes)
    recipe, ends = _train_end_tokens(model, recipe)
    require_fitting_task(model.objective, data, recipe.task.name)
    labels_of_train = getattr(data.splits["train"], "labels", None)
    model.objective.fit_to_labels(labels_by_class if data.target == "class" else labels_of_train)
    package = recipe.plugins.packages.get("backbone", OWN_PACKAGE)
    if package != OWN_PACKAGE:
        check_backbone(model.backbone, recipe.backbone.name, package)
    if recipe.pretuning is not None:
        freeze_parameters_for_pretuning(model, recipe.pretuning)
    if recipe.training.shard:
        check_shardable(model)
    check_compiling(model, accelerator)
    start = initialize_model(model, recipe, data.classes) if recipe.init_from is not None and not begun else None
    session = Session(recipe, data, model, accelerator, start, ends=ends)
    if is_recommended(recipe.training.lr):
        require_recommended_rates(recipe)
        session.set_recommended_rate()
    if place:
        session.move_to_device()
    return session


def _train_end_tokens(model: Model, recipe: Recipe) -> tuple[Recipe, EndTokenChoice]:
    """Add the output rows of the end tokens that the run trains to the model; return the recipe with their numbers.

    Raises:
        UsageError: the rows are to be trained, and cannot be.
    """
    if recipe.pretuning is not None or recipe.task.name != "language":
        return recipe, EndTokenChoice()
    choice = choose_end_tokens(model, recipe)
    if choice.tokens:
        add_output_rows(model.backbone.module, choice.tokens)
    if getattr(recipe.task, "end_tokens", None) in ("auto", "trained"):
        task = recipe.task.model_copy(update={"end_tokens": choice.tokens})
        recipe = recipe.model_copy(update={"task": task})
    return recipe, choice


def _require_numbers(recipe: Recipe) -> None:
    """Check that no setting is left to choose.

    Raises:
        UsageError: the batch size or the learning rate is `auto`, which is chosen for runs of single commands alone.
    """
    for name in ("batch_size", "lr"):
        if is_automatic(getattr(recipe.training, name)):
            raise UsageError(
                f"training.{name}=auto cannot be used here.",
                "It is chosen when a run of 'toast tune' or 'toast pretune' starts.",
                f"Set training.{name} to a number.",
                code="training.automatic-setting",
            )
