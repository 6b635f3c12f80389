"""Options that several commands share. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperGroup

from toast_cli.utils.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from toast_cli.attention.image_box import ImageBox
    from toast_cli.recipe.lookup import ResolvedRecipe


def complete_backbone(incomplete: str) -> list[str]:
    """Return the names of backbones that begin with what was typed."""
    return _complete_registered("BACKBONES", incomplete)


def complete_dataset(incomplete: str) -> list[str]:
    """Return the names of data sources that begin with what was typed."""
    return _complete_registered("SOURCES", incomplete)


def complete_method(incomplete: str) -> list[str]:
    """Return the names of methods that begin with what was typed."""
    return _complete_registered("METHODS", incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names of built-in recipes that begin with what was typed."""
    from toast_cli.recipe.builtin import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def _complete_registered(group: str, incomplete: str) -> list[str]:
    from toast_cli import registry

    return [name for name in registry.list_names(getattr(registry, group)) if name.startswith(incomplete)]


RecipeOption = Annotated[
    str | None,
    typer.Option(autocompletion=complete_recipe, help="Built-in recipe (see 'toast recipes ls') or YAML file."),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_backbone,
        help="Backbone: a name from 'toast backbones', or PREFIX:MODEL, e.g. timm:MODEL or lm:MODEL, or a folder "
        "with a model of transformers.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="Backbone weights: a file, a folder of timm or transformers, OWNER/NAME on the Hugging Face Hub, "
        "or 'none' for random weights."
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_dataset,
        help="Data set, e.g. demo, cub, folder:PATH or alpaca:FILE (see 'toast data ls').",
    ),
]
DataDirOption = Annotated[
    str | None, typer.Option(help="Root folder of the data sets. [default: $TOAST_DATA_DIR or ./data]")
]


def download_run(run: Path | None) -> Path | None:
    """Return a local path as it is, and that of the download of a repository of the hub."""
    from toast_cli.utils.hub import resolve_place

    return None if run is None else resolve_place(run) if len(run.parts) == 2 else run


def download_runs(runs: list[Path] | None) -> list[Path] | None:
    """Return the paths of several runs, those of the hub downloaded."""
    return [path for run in runs or () if (path := download_run(run)) is not None]


RunOption = Annotated[
    Path | None,
    typer.Option(
        callback=download_run,
        help="Run folder, adapter folder, exported file, or OWNER/NAME on the Hugging Face Hub. [default: newest run]",
    ),
]
RunsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--run",
        callback=download_runs,
        help="Run folder, adapter folder, exported file, or OWNER/NAME on the Hugging Face Hub. Can be repeated. "
        "[default: newest run]",
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda, cuda:N or mps.")]
PrecisionOption = Annotated[str | None, typer.Option(help="Compute precision: auto, fp32, bf16 or fp16.")]
InitFromOption = Annotated[
    str | None,
    typer.Option(
        help="Continue from a tuned model (run folder, adapter folder, exported file or hf folder), also with new "
        "classes; or start the feedback path from the output of 'toast pretune', or from what comes with the backbone "
        "('shipped')."
    ),
]
ArtifactOption = Annotated[
    str | None,
    typer.Option(
        help="Start the feedback path from another output of 'toast pretune' (run folder, artifact folder or exported "
        "file), or from what comes with the backbone ('shipped')."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the cost of the run and the resolved recipe, without training.")
]
AlphaOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=2.0, help="Scale of the feedback signals. [default: 1]"),
]
HeadOption = Annotated[
    str, typer.Option(help="Attention head: mean, max, a head index starting at 0, or rollout over the layers.")
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="Sampling temperature. 0 selects greedy decoding.")]
TopPOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Nucleus sampling: keep the most likely tokens whose probabilities add up to this value.",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Sample from this many of the most likely tokens; 0 for all. [default: as the model's own settings]"
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Divide the scores of tokens that occur already, in the prompt or the answer, by this number; 1 for none. "
        "[default: as the model's own settings]",
    ),
]
RawOption = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the prompt template.")]
SamplingSeedOption = Annotated[int, typer.Option("--seed", help="Random seed for sampling.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
EpochsOption = Annotated[str | None, typer.Option(help="Passes over the training split: training.epochs.")]
LearningRateOption = Annotated[
    str | None,
    typer.Option(
        "--lr", help="Peak learning rate; auto: found by a range test; recommended: from a table. training.lr."
    ),
]
BatchSizeOption = Annotated[
    str | None, typer.Option(help="Batch size, or auto: the largest that fits. training.batch_size.")
]
WorkersOption = Annotated[
    str | None, typer.Option(help="Processes that decode images, or auto: by the CPU cores. training.workers.")
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        help="Resume the interrupted run in this folder, or extend it: training.epochs=20. Only --device, --json and a "
        "few overrides can be combined with it."
    ),
]


def parse_head(head: str) -> int | Literal["mean", "max", "rollout"]:
    """Parse the value of `--head`.

    Raises:
        UsageError: The value is neither a number nor a known name.
    """
    from toast_cli.utils.errors import UsageError, did_you_mean

    if head.isdecimal():
        return int(head)
    known = ("mean", "max", "rollout")
    if head not in known:
        raise UsageError(
            f"Invalid value for --head: '{head}'.",
            what_to_do=did_you_mean(head, known) + " A head index is also valid.",
            code="cli.invalid-value",
        )
    return cast("Literal['mean', 'max', 'rollout']", head)


def parse_box(point: str | None, box: str | None) -> ImageBox | None:
    """Parse the values of `--point` and `--box`; None without any.

    Raises:
        UsageError: Both are given, or a value is not two or four numbers.
    """
    if point is None and box is None:
        return None
    if point is not None and box is not None:
        raise UsageError("--point and --box cannot be combined.", code="cli.conflicting-options")
    option, value, count = ("--point", point, 2) if point is not None else ("--box", box, 4)
    try:
        numbers = [float(part) for part in (value or "").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or min(numbers[2:], default=0) < 0:
        form = "X,Y" if point is not None else "X,Y,WIDTH,HEIGHT"
        raise UsageError(
            f"Invalid value for {option}: '{value}'.",
            what_to_do=f"Use {form}, in pixels of the image from its upper left corner.",
            code="cli.invalid-value",
        )
    from toast_cli.attention.image_box import ImageBox

    return ImageBox(*numbers)


def read_start(init_from: str | None, overrides: list[str], weights: str | None) -> dict[str, Any] | None:
    """Return the recipe of the tuned model that `--init-from` or an override names; None if there is none.

    Raises:
        ToastError: The model is damaged, has not finished, or lacks the weights of its backbone.
    """
    if init_from is None and not any(override.startswith("init_from=") for override in overrides):
        return None
    from toast_cli.training.continuation.start import read_start_recipe  # imports PyTorch

    return read_start_recipe(init_from, overrides, weights)


def split_dataset_overrides(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the arguments without those of the form `dataset.KEY=VALUE`, and those, in order."""
    overrides = tuple(each for each in arguments if each.startswith("dataset.") and "=" in each)
    return [each for each in arguments if each not in overrides], overrides


def collect_training_options(overrides: Sequence[str] | None, **values: str | None) -> dict[str, str]:
    """Return the training fields that options set, by name.

    Raises:
        UsageError: An override sets the same field.
    """
    given = {name: value for name, value in values.items() if value is not None}
    keys = {override.partition("=")[0] for override in overrides or ()}
    for name in given:
        if f"training.{name}" in keys:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} and training.{name} set the same field.",
                what_to_do="Leave one of them out.",
                code="cli.conflicting-options",
            )
    return given


def apply_recorded_backbone(resolved: ResolvedRecipe, recipe: str | None, backbone: str | None) -> ResolvedRecipe:
    """Replace the backbone of an earlier version's recipe with the one that its name referred to at the time.

    Without a change, `resolved` is returned; otherwise a message is added to it.
    """
    from toast_cli.recipe.lookup import resolve_recorded_backbone
    from toast_cli.storage.run_folder import RunFolder

    file = None if recipe is None else Path(recipe)
    if file is None or backbone is not None or not (file.parent / "environment.json").is_file():
        return resolved
    changed = resolve_recorded_backbone(resolved.recipe, RunFolder(file.parent).read_toast_version())
    if changed is resolved.recipe:
        return resolved
    before, after = resolved.recipe.backbone.name, changed.backbone.name
    message = f"The backbone '{before}' of this run's version of toast is now called '{after}'."
    return replace(resolved, recipe=changed, messages=[*resolved.messages, message])


def check_resume_options(run: Path, context: typer.Context, changes: list[str]) -> None:
    """Check that `--resume` is not combined with options that would change the run.

    `changes` are its overrides and training options. They may set a few fields: see `training.continuation.extension`.

    Raises:
        UsageError: Another option or override is given, or the run cannot be resumed.
    """
    from toast_cli.storage.run_folder import RunFolder
    from toast_cli.training.continuation.extension import CHANGEABLE_FIELDS, check_changes
    from toast_cli.utils.errors import UsageError

    def is_unset(value: Any) -> bool:
        return value is None or value is False or value in ([], ())

    allowed = {"resume", "device", "as_json", "overrides", "epochs", "lr", "batch_size", "workers"}
    if not all(is_unset(value) for name, value in context.params.items() if name not in allowed):
        raise UsageError(
            "--resume continues a run with its own options.",
            what_to_do="Remove the other options; only --device, --json and overrides of "
            f"{', '.join(CHANGEABLE_FIELDS)} are allowed.",
            code="resume.conflicting-options",
        )
    check_changes(changes, run)
    RunFolder.reopen(run, extend=bool(changes))


class JsonOutput:
    """Whether a command has printed its result as JSON on stdout."""

    printed = False


class CommandGroup(TyperGroup):
    """A command group that suggests the nearest name for an unknown command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first argument names.

        Raises:
            UsageError: There is no such command.
        """
        if args and args[0] not in self.commands:
            raise UsageError(
                f"Unknown command '{ctx.command_path} {args[0]}'.",
                what_to_do=did_you_mean(args[0], [name for name in self.commands if not self.commands[name].hidden]),
                code="cli.unknown-command",
            )
        return super().resolve_command(ctx, args)
