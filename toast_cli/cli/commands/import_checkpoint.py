"""`toast import`: convert a checkpoint of the authors' released code to a run or a pre-tuned artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options
from toast_cli.utils.names import quote_argument


def run_import(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Full model or top-down parameters: .pth, .bin or .safetensors file, or a folder of shards.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe fields to override, e.g. backbone.value_bias=once."),
    ] = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--as", help="Import as a run or as an artifact for --init-from. [default: run if there is a head]"
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File with one class name per line, in training order. [default: class indices]")
    ] = None,
    dataset: options.DatasetOption = None,
    output_dir: Annotated[Path | None, typer.Option(help="Output folder. [default: runs/import-...]")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Import a checkpoint of the paper's authors.

    Reads only tensors, never code, and reports what happened to each of them.
    """
    from toast_cli.cli.output.console import print_json, print_line
    from toast_cli.export.detect_toast_files import reject_toast_files
    from toast_cli.utils.errors import UsageError, did_you_mean

    reject_toast_files(checkpoint)
    if backbone is None:
        raise UsageError(
            "--backbone is missing.",
            what_to_do="Pass the backbone that the checkpoint was trained with ('toast backbones' lists them).",
            code="cli.missing-option",
        )
    if kind not in (None, "run", "artifact"):
        raise UsageError(
            f"Invalid value for --as: '{kind}'.",
            what_to_do=did_you_mean(kind, ("run", "artifact")),
            code="cli.invalid-value",
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
        f"Tensors: {account['tensors']} ({account['network']} backbone, {account['feedback']} selection and feedback, "
        f"{account['head']} head, {len(account['left_out'])} not used)"
    )
    for name, why in account["left_out"].items():
        print_line(f"Not used: {name}: {why}")
    if account["beside"]:
        print_line(f"Other entries, not read: {', '.join(account['beside'][:10])}")
    for name, value in account["departures"].items():
        print_line(f"To match the authors' code: backbone.{name}={value}")
    print_line(f"{account['kind'].capitalize()}: {folder.path}")
    if account["kind"] == "artifact":
        own = folder.path / "backbone.safetensors"
        at = f" --weights {quote_argument(own)}" if own.is_file() else ""
        use = f"toast tune --backbone {quote_argument(backbone)}{at} --dataset DATA"
        print_line(f"To use it: {use} --init-from {quote_argument(folder.path)}")


def _read_class_names(path: Path) -> list[str]:
    from toast_cli.utils.errors import UsageError

    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the class names in {path}.", str(error), code="data.unreadable-file") from error
