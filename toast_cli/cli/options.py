"""The options that several verbs share, spelled once. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperGroup

from toast_cli.utils.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from toast_cli.recipe.resolve import ResolvedRecipe

BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Frozen network: a short name (see 'toast backbones'), or vit:MODEL, convnext:MODEL, llama:MODEL."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="The backbone's weights: a file, or a language model's folder; 'none' for random ones."),
]
DatasetOption = Annotated[
    str | None, typer.Option(help="Data set, such as demo, cub, folder:PATH or alpaca:FILE: see 'toast data ls'.")
]
DataDirOption = Annotated[
    str | None, typer.Option(help="Folder that holds the data set. [default: TOAST_DATA_DIR, else ./data]")
]
RunOption = Annotated[
    Path | None, typer.Option(help="Run folder, adapter folder or exported file. [default: the newest run]")
]
RunsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--run", help="Run folder, adapter folder or exported file; may be repeated. [default: the newest run]"
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
InitFromOption = Annotated[
    str | None,
    typer.Option(
        help="Start selection and feedback path from what 'toast pretune' wrote (run folder, artifact folder or "
        "exported file), or from what comes with the backbone ('shipped')."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would run, train nothing.")]
AlphaOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=2.0, help="Send the feedback's signals so many times as strong. [default: 1]"),
]
HeadOption = Annotated[
    str, typer.Option(help="Mean or max over heads, one by its number from 0, or rollout over the layers.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ResumeOption = Annotated[
    Path | None, typer.Option(help="Go on with the interrupted run in this folder; nothing else but --device fits.")
]


def parse_head(head: str) -> int | Literal["mean", "max", "rollout"]:
    """What `--head` names.

    Raises:
        UsageError: it names none.
    """
    from toast_cli.utils.errors import UsageError, did_you_mean

    if head.isdecimal():
        return int(head)
    known = ("mean", "max", "rollout")
    if head not in known:
        raise UsageError(
            f"--head cannot be '{head}'.",
            what_to_do=did_you_mean(head, known) + " Or a head's number.",
            code="cli.invalid-value",
        )
    return cast("Literal['mean', 'max', 'rollout']", head)


def apply_recorded_backbone(resolved: ResolvedRecipe, recipe: str | None, backbone: str | None) -> ResolvedRecipe:
    """Give the recipe of an earlier version's run the backbone that its name meant then, and say so."""
    from toast_cli.recipe.resolve import resolve_recorded_backbone
    from toast_cli.storage.run_folder import RunFolder

    file = None if recipe is None else Path(recipe)
    if file is None or backbone is not None or not (file.parent / "environment.json").is_file():
        return resolved
    changed = resolve_recorded_backbone(resolved.recipe, RunFolder(file.parent).toast_version())
    if changed is resolved.recipe:
        return resolved
    before, after = resolved.recipe.backbone.name, changed.backbone.name
    said = f"The backbone '{before}' of this run's version of toast is now called '{after}'."
    return replace(resolved, recipe=changed, messages=[*resolved.messages, said])


def check_resume_options(run: Path, context: typer.Context) -> None:
    """Refuse what would make the rest of an interrupted run another run.

    Raises:
        UsageError: other options are given, or there is nothing to go on with.
    """
    from toast_cli.storage.run_folder import RunFolder
    from toast_cli.utils.errors import UsageError

    def left_out(value: Any) -> bool:
        return value is None or value is False or value in ([], ())

    allowed = {"resume", "device", "as_json"}
    if not all(left_out(value) for name, value in context.params.items() if name not in allowed):
        raise UsageError(
            "--resume goes on with the run as it was begun.",
            what_to_do="Leave all but --device out.",
            code="resume.conflicting-options",
        )
    RunFolder.reopen(run)


class CommandGroup(TyperGroup):
    """Commands in the order they were added."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names."""
        if args and args[0] not in self.commands:
            raise UsageError(
                f"There is no command '{ctx.command_path} {args[0]}'.",
                what_to_do=did_you_mean(args[0], self.commands),
                code="cli.unknown-command",
            )
        return super().resolve_command(ctx, args)
