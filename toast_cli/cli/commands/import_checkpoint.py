"""`toast import`: the authors' released checkpoints, as runs or as starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def run_import(
    checkpoint: Annotated[
        Path, typer.Argument(help="Full model or top-down parts: .pth, .bin, .safetensors, or a folder of them.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Fields of the recipe, such as backbone.value_bias=once.")
    ] = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    kind: Annotated[
        str | None,
        typer.Option("--as", help="run, or artifact (for --init-from). [default: run, where there is a head]"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, in the order of training. [default: their numbers]")
    ] = None,
    dataset: options.DatasetOption = None,
    output_dir: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/import-...]")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Read a checkpoint of the authors' released code; only tensors are read, and every one is accounted for."""
    from toast_cli.cli.output.console import print_json, print_line
    from toast_cli.export.detect_toast_files import reject_toast_files
    from toast_cli.utils.errors import UsageError, did_you_mean

    reject_toast_files(checkpoint)
    if backbone is None:
        raise UsageError(
            "Which backbone is it for?",
            what_to_do="Give --backbone; 'toast backbones' lists them.",
            code="cli.missing-option",
        )
    if kind not in (None, "run", "artifact"):
        raise UsageError(
            f"--as cannot be '{kind}'.", what_to_do=did_you_mean(kind, ("run", "artifact")), code="cli.invalid-value"
        )

    from toast_cli.export.import_authors import import_checkpoint as imported

    folder, account = imported(
        checkpoint,
        backbone,
        weights=weights,
        kind=kind,
        classes=None if classes is None else _read_class_names(classes),
        dataset=dataset,
        overrides=overrides or [],
        output_dir=output_dir,
    )
    if as_json:
        print_json({"run": str(folder.path), **account})
        return
    print_line(
        f"{account['tensors']} tensors: {account['network']} of the backbone, {account['feedback']} of selection and "
        f"feedback path, {account['head']} of the head, {len(account['left_out'])} left out."
    )
    for name, why in account["left_out"].items():
        print_line(f"Left out: {name}: {why}")
    if account["beside"]:
        print_line(f"Beside the weights, not read: {', '.join(account['beside'][:10])}")
    for name, value in account["departures"].items():
        print_line(f"As the authors' code computes: backbone.{name}={value}")
    print_line(f"{account['kind'].capitalize()}: {folder.path}")
    if account["kind"] == "artifact":
        own = folder.path / "backbone.safetensors"
        at = f" --weights {own}" if own.is_file() else ""
        print_line(f"Start from it: toast tune --backbone {backbone}{at} --dataset DATA --init-from {folder.path}")


def _read_class_names(path: Path) -> list[str]:
    from toast_cli.utils.errors import UsageError

    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The class names in {path} cannot be read.", str(error), code="data.unreadable-file"
        ) from error
