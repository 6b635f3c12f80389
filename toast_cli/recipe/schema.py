"""The schema of recipes: all settings of a run, validated before the data and the model are loaded.

Each of the sections `backbone`, `dataset`, `method` and `task` has a `name`. The plugin registered under that name
defines the other fields of the section. The remaining settings are the same for every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, SerializeAsAny, StringConstraints

from toast_cli.backbones.base import BackboneOptions, Card
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.utils.config import RECOMMENDED, BaseOptions, NamedOptions, OrAuto


def _to_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class TrainingOptions(BaseOptions):
    """Settings of the training loop: duration, learning rate, validation and logging."""

    epochs: int = Field(100, ge=1, description="passes over the training split")
    max_steps: int | None = Field(
        None,
        ge=1,
        examples=[1000],
        description="end training after this many optimizer steps, whatever the epoch and the schedule",
    )
    batch_size: Annotated[int, Field(ge=1), OrAuto()] = Field(
        32,
        description="images (or texts) per forward pass in training; auto: the largest power of two that fits into "
        "memory, found by trial on a GPU and by an estimate on a CPU; the learning rate is not scaled",
    )
    accumulate: int = Field(1, ge=1, description="forward passes whose gradients are summed for one optimizer step")
    checkpoint_gradients: bool = Field(
        False, description="recompute every level in the backward pass instead of storing its activations"
    )
    cache: bool = Field(
        False,
        description="cache the output of the first pass, which training does not change, on disk across epochs; "
        "each image then has cache_views fixed augmentations",
    )
    cache_views: int = Field(1, ge=1, description="with cache: augmented views of each image, used in turn")
    cache_dtype: Literal["float16", "float32"] = Field("float16", description="with cache: data type on disk")
    cache_gigabytes: float = Field(20, gt=0, description="with cache: maximum size of a run's caches on disk, in GB")
    optimizer: Annotated[str, StringConstraints(to_lower=True)] = Field(
        "momentum",
        examples=["adamw"],
        description="any optimizer name of timm: momentum (SGD with momentum, as in the paper), adamw, ...; "
        "timm's sgd uses Nesterov momentum",
    )
    lr: Annotated[float, Field(gt=0), OrAuto(RECOMMENDED)] = Field(
        0.01,
        description="peak learning rate; auto: found by a range test at the start of the run; recommended, for "
        "language models: from a table by method and size of the model",
    )
    head_lr: float | None = Field(
        None,
        gt=0,
        examples=[0.01],
        description="peak learning rate of the task's head, on the same schedule; default: lr. With lr=auto, a number "
        "stays as it is",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; ignored by optimizers without momentum")
    weight_decay: float = Field(
        0.0, ge=0, examples=[0.0001], description="weight decay of trained parameters with two or more dimensions"
    )
    schedule: Literal["cosine", "poly", "constant"] = Field(
        "cosine",
        description="learning rate after warm-up; poly: the remaining share of the run to the power of poly_power",
    )
    poly_power: float = Field(0.9, gt=0, description="schedule=poly: the exponent; 1 is linear decay")
    warmup_epochs: float = Field(0.0, ge=0, examples=[5], description="linear warm-up from zero, in epochs")
    min_lr: float = Field(0.0, ge=0, examples=[1e-05], description="learning rate at the end of the schedule")
    cooldown_epochs: float = Field(
        0.0, ge=0, examples=[5], description="epochs at min_lr after the schedule, included in epochs"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations; the last epoch is always validated")
    validate_attention: bool = Field(
        False, description="measure attention on the object at every validation, if images have masks"
    )
    patience: int | None = Field(
        None, ge=1, examples=[10], description="stop after this many epochs without a better validation; default: never"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        examples=[0.999],
        description="decay of an exponential moving average of the trained parameters, which are then validated "
        "and saved",
    )
    shard: bool = Field(
        False,
        description="shard parameters, gradients and optimizer state across processes (FSDP), to train models too "
        "large for one device; each process first loads the whole model on the CPU",
    )
    save_every: int | None = Field(
        None,
        ge=1,
        examples=[500],
        description="optimizer steps between checkpoints within an epoch; default: one per epoch",
    )
    clip_grad: float | None = Field(
        None, gt=0, examples=[1.0], description="gradient clipping: maximum norm of the gradients; default: no clipping"
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="order of training images: shuffle: each once per epoch; balanced: each class equally often per "
        "epoch, so that images of small classes return, each time with another augmentation",
    )
    workers: Annotated[int, Field(ge=0, le=256), OrAuto()] = Field(
        "auto",  # type: ignore[assignment]  # see OrAuto
        examples=[8],
        description="processes that decode images, which do not change results; 0: decode in the main process; "
        "auto: up to 8 by the CPU cores of each process, and 0 on two cores without a GPU",
    )
    eval_batch_size: int | None = Field(
        None, ge=1, examples=[128], description="images (or texts) per forward pass in evaluation; default: batch_size"
    )
    log_every: int = Field(10, ge=1, description="optimizer steps between lines of metrics.jsonl")
    trackers: Annotated[tuple[str, ...], BeforeValidator(_to_names, json_schema_input_type=str | list[str])] = Field(
        (),
        examples=[["tensorboard"], ["wandb"]],
        description="trackers that also receive metrics and pictures: tensorboard, wandb, mlflow, trackio, swanlab or "
        "another one that Accelerate knows; one name or a list",
    )
    tensorboard: bool = Field(
        False,
        exclude=True,
        description="deprecated since 0.3.0, removed in 0.4.0 or later: write trackers=tensorboard",
    )


class PretuningOptions(BaseOptions):
    """Settings of pre-tuning, the stage that trains the initial feedback path (section 3.2)."""

    reconstruction: float = Field(
        0.03, ge=0, description="weight of the summed reconstruction losses, added to the task loss (appendix A.2)"
    )
    passes: Literal["last", "both"] = Field(
        "last",
        description="last: task loss of the second pass, as in the paper; both: mean over the two passes, "
        "as in the vision code that the authors built on",
    )
    target: Literal["labels", "first-pass"] = Field(
        "labels",
        description="labels: the task's loss; first-pass: match the second-pass features to those of the frozen "
        "first pass, which needs no labels (not in the paper)",
    )
    train_P: bool = Field(
        False,
        description="also train the channel transform P; by default it stays the identity in pre-tuning (as in the "
        "authors' code), whatever method.train_P is",
    )


IMAGE_FIELDS = {
    "images": True,
    "training": {"workers", "sampler", "validate_attention", "cache_views"},
}
"""Fields of a recipe that concern images alone, in the notation of pydantic's `exclude`."""


@dataclass(frozen=True)
class RecipePlugins:
    """The registered objects that the sections of a recipe name, and all metrics. They are excluded from comparisons.

    `packages` holds the installed package of each section's object. `default_task` tells whether the recipe has no
    section `task`, so that the data may still decide.
    """

    backbone: Card = field(compare=False)
    dataset: Any = field(compare=False)
    """A `DataSource`."""
    method: Any = field(compare=False)
    """A `Method`."""
    task: Any = field(compare=False)
    """A `Task`."""
    metrics: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Every registered `Metric` by name."""
    packages: Mapping[str, str] = field(default_factory=dict, compare=False)
    default_task: bool = field(default=False, compare=False)


class Recipe(BaseOptions):
    """All settings of one run, and the plugins of its sections."""

    backbone: SerializeAsAny[BackboneOptions] = Field(
        description="the frozen network: a name, or a mapping with 'name' and the family's fields"
    )
    dataset: SerializeAsAny[NamedOptions] = Field(
        description="a name, NAME:PATH, or a mapping with 'name' and the source's fields"
    )
    method: SerializeAsAny[NamedOptions] = Field(description="a name, or a mapping with 'name' and the method's fields")
    task: SerializeAsAny[NamedOptions] = Field(
        description="the task to learn: a name, or a mapping with 'name' and the task's fields"
    )
    images: ImageOptions = Field(default_factory=ImageOptions, description="resizing, cropping, augmentation")
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="the training loop")
    pretuning: PretuningOptions | None = Field(None, description="settings of 'toast pretune' alone")
    init_from: str | None = Field(
        None,
        examples=["shipped"],
        description="tuned model (run, adapter or export) from which the method and the head start, or pre-tuned "
        "artifact, or its run, from which selection and feedback path start; 'shipped': the artifact that comes with "
        "the backbone",
    )
    data_dir: str | None = Field(
        None, examples=["/data"], description="folder with the data set; default: TOAST_DATA_DIR, else ./data"
    )
    test: bool = Field(
        True,
        description="evaluate the selected model once on the test split after training; false: never use the "
        "test split, for runs that compare settings",
    )
    seed: int = Field(0, ge=0, lt=2**32, examples=[1], description="seed of all random numbers of the run")
    device: str = Field("auto", examples=["cuda:1"], description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that support it, else fp32"
    )
    _plugins: RecipePlugins = PrivateAttr()

    @property
    def plugins(self) -> RecipePlugins:
        """Return the plugins that the sections name, looked up once when the recipe was validated."""
        return self._plugins
