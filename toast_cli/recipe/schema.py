"""The recipe: everything that decides a run, checked before anything heavy starts.

The sections `backbone`, `dataset`, `method` and `task` each begin with a `name`; whoever registered that name
also brought the section's own fields. The rest is the same for every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny

from toast_cli.backbones.base import BackboneOptions, Card
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.utils.config import BaseOptions, NamedOptions


class TrainingOptions(BaseOptions):
    """The loop: how long, how fast, how it is watched."""

    epochs: int = Field(100, ge=1, description="passes over the training split")
    max_steps: int | None = Field(
        None, ge=1, description="end training after so many optimizer steps, wherever epoch and schedule are then"
    )
    batch_size: int = Field(32, ge=1, description="images (or texts) per forward pass while training")
    accumulate: int = Field(1, ge=1, description="forward passes whose gradients make one optimizer step")
    checkpoint_gradients: bool = Field(
        False, description="run every level again in the backward pass instead of keeping what it computed"
    )
    cache: bool = Field(
        False,
        description="keep what the first pass puts out, which training never changes, on disk from epoch to epoch; "
        "images are then augmented in cache_views fixed ways",
    )
    cache_views: int = Field(1, ge=1, description="with cache: augmented views of each image, taken in turns")
    cache_dtype: Literal["float16", "float32"] = Field("float16", description="with cache: what it is kept in")
    cache_gigabytes: float = Field(20, gt=0, description="with cache: the most that a run's caches may take on disk")
    optimizer: str = Field(
        "momentum",
        description="any optimizer name that timm knows: momentum (SGD with momentum, the paper's), adamw, ...; "
        "timm's sgd is Nesterov's",
    )
    lr: float = Field(0.01, gt=0, description="learning rate at its peak")
    head_lr: float | None = Field(
        None, gt=0, description="learning rate of the task's head at its peak, on the same schedule; left out: lr"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; ignored by optimizers that have none")
    weight_decay: float = Field(
        0.0, ge=0, description="weight decay on everything trained that has two dimensions or more"
    )
    schedule: Literal["cosine", "poly", "constant"] = Field(
        "cosine",
        description="how the learning rate goes after warm-up; poly: the remaining share of the run to the poly_power",
    )
    poly_power: float = Field(0.9, gt=0, description="schedule=poly: its power; 1 is a straight line")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from zero, in epochs")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the schedule")
    cooldown_epochs: float = Field(0.0, ge=0, description="epochs at min_lr after the schedule, counted in epochs")
    validate_every: int = Field(
        1, ge=1, description="epochs from one validation to the next; the last epoch is always validated"
    )
    validate_attention: bool = Field(
        False, description="measure attention on the object at every validation, where images have masks"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a better validation; left out: never"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of what is trained, which is then what "
        "is validated and kept",
    )
    shard: bool = Field(
        False,
        description="divide parameters, gradients and optimizer state among the processes (FSDP), "
        "so that a model trains that fits on no device; each process has it whole on the CPU first",
    )
    save_every: int | None = Field(
        None, ge=1, description="optimizer steps between two checkpoints within an epoch; left out: by epoch alone"
    )
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm")
    workers: int = Field(0, ge=0, le=256, description="processes that decode images; 0 decodes in the main one")
    eval_batch_size: int | None = Field(
        None, ge=1, description="images (or texts) per forward pass in evaluation; left out: batch_size"
    )
    log_every: int = Field(10, ge=1, description="optimizer steps between two lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="also write TensorBoard events (needs the 'tensorboard' extra)")


class PretuningOptions(BaseOptions):
    """The first stage, which gives the feedback path its start (section 3.2)."""

    reconstruction: float = Field(
        0.03, ge=0, description="weight of the reconstruction losses' sum beside the task loss (appendix A.2)"
    )
    passes: Literal["last", "both"] = Field(
        "last",
        description="task loss of the second pass's output, as the paper's text has it, or the mean over both passes, "
        "as in the vision code that the authors built on",
    )
    target: Literal["labels", "first-pass"] = Field(
        "labels",
        description="labels: the task's own loss; first-pass: second-pass features are to stay those of the frozen "
        "first pass, which needs no labels (ours, not the paper's)",
    )
    train_P: bool = Field(
        False,
        description="train the channel transform P too; in pre-tuning it stays the identity otherwise (the authors'), "
        "whatever method.train_P says",
    )


@dataclass(frozen=True)
class RecipePlugins:
    """The registered objects that the names of a recipe's sections stand for; they take no part in comparisons."""

    backbone: Card = field(compare=False)
    dataset: Any = field(compare=False)
    """A `DataSource`."""
    method: Any = field(compare=False)
    """A `Method`."""
    task: Any = field(compare=False)
    """A `Task`."""


class Recipe(BaseOptions):
    """One run, fully decided: plain settings, and beside them the plugins that take those of each section."""

    backbone: SerializeAsAny[BackboneOptions] = Field(
        description="the frozen network: a name, or a mapping with 'name' and the family's fields"
    )
    dataset: SerializeAsAny[NamedOptions] = Field(
        description="a name, NAME:PATH, or a mapping with 'name' and the source's fields"
    )
    method: SerializeAsAny[NamedOptions] = Field(description="a name, or a mapping with 'name' and the method's fields")
    task: SerializeAsAny[NamedOptions] = Field(
        description="what is learned: a name, or a mapping with 'name' and the task's fields"
    )
    images: ImageOptions = Field(default_factory=ImageOptions, description="resizing, cropping, augmentation")
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="the loop")
    pretuning: PretuningOptions | None = Field(None, description="for 'toast pretune' alone: what it adds to the loss")
    init_from: str | None = Field(
        None,
        description="pre-tuned artifact, or the run that made it, whose selection and feedback path are the start; "
        "'shipped': the one that comes with the backbone",
    )
    data_dir: str | None = Field(
        None, description="folder that holds the data set; left out: TOAST_DATA_DIR, else ./data"
    )
    test: bool = Field(
        True,
        description="measure the kept model on the test split, once, at the end; false: never look at it, "
        "for runs among which settings are chosen",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random in the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp32 elsewhere"
    )
    _plugins: RecipePlugins = PrivateAttr()

    @property
    def plugins(self) -> RecipePlugins:
        """What the sections' names are registered for, looked up once, when the recipe was checked."""
        return self._plugins
