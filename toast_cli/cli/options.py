"""The options that several verbs share, spelled once. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

Backbone = Annotated[
    str | None,
    typer.Option(
        help="Frozen network: a short name (see 'toast backbones'), or vit:MODEL, convnext:MODEL, llama:MODEL."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="The backbone's weights: a file, or a language model's folder; 'none' for random ones."),
]
Dataset = Annotated[
    str | None, typer.Option(help="Data set, such as demo, cub, folder:PATH or alpaca:FILE: see 'toast data ls'.")
]
DataDir = Annotated[
    str | None, typer.Option(help="Folder that holds the data set. [default: TOAST_DATA_DIR, else ./data]")
]
Run = Annotated[
    Path | None, typer.Option(help="Run folder, adapter folder or exported file. [default: the newest run]")
]
Runs = Annotated[
    list[Path] | None,
    typer.Option(
        "--run", help="Run folder, adapter folder or exported file; may be repeated. [default: the newest run]"
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
InitFrom = Annotated[
    str | None,
    typer.Option(
        help="Start selection and feedback path from what 'toast pretune' wrote (run folder, artifact folder or "
        "exported file), or from what comes with the backbone ('shipped')."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would run, train nothing.")]
Alpha = Annotated[
    float | None,
    typer.Option(min=0.0, max=2.0, help="Send the feedback's signals so many times as strong. [default: 1]"),
]
Head = Annotated[
    str, typer.Option(help="Mean or max over heads, one by its number from 0, or rollout over the layers.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Resume = Annotated[
    Path | None, typer.Option(help="Go on with the interrupted run in this folder; nothing else but --device fits.")
]


def chosen_head(head: str) -> int | Literal["mean", "max", "rollout"]:
    """What `--head` names.

    Raises:
        UsageError: it names none.
    """
    from toast_cli.errors import UsageError, did_you_mean

    if head.isdecimal():
        return int(head)
    known = ("mean", "max", "rollout")
    if head not in known:
        raise UsageError(f"--head cannot be '{head}'.", what_to_do=did_you_mean(head, known) + " Or a head's number.")
    return cast("Literal['mean', 'max', 'rollout']", head)


def check_resume(run: Path, context: typer.Context) -> None:
    """Refuse what would make the rest of an interrupted run another run.

    Raises:
        UsageError: other options are given, or there is nothing to go on with.
    """
    from toast_cli.errors import UsageError
    from toast_cli.storage.run_folder import RunFolder

    def left_out(value: Any) -> bool:
        return value is None or value is False or value in ([], ())

    allowed = {"resume", "device", "as_json"}
    if not all(left_out(value) for name, value in context.params.items() if name not in allowed):
        raise UsageError("--resume goes on with the run as it was begun.", what_to_do="Leave all but --device out.")
    RunFolder.reopen(run)
