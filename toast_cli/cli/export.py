"""`toast export`: a trained run as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def export(
    format: Annotated[str, typer.Option(help="File format; safetensors for now.")] = "safetensors",
    run: options.Run = None,
    what: Annotated[
        str | None, typer.Option(help="adapter, full (with the backbone), or backbone alone. [default: adapter]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="How weights are stored: float32, float16 or bfloat16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="The file to write. [default: export/ in the run folder]")] = None,
    weights: options.Weights = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a run as one file that proves itself: it is read back and compared before it is kept."""
    from toast_cli import registry
    from toast_cli.cli.console import print_json, say
    from toast_cli.cli.runs import chosen_run
    from toast_cli.errors import UsageError, did_you_mean

    writer = registry.load(registry.EXPORTS, format)
    part = what or writer.parts[0]
    for option, value, allowed in (
        ("--what", part, writer.parts),
        ("--dtype", dtype, ("float32", "float16", "bfloat16")),
    ):
        if value not in allowed:
            raise UsageError(f"{option} cannot be '{value}'.", what_to_do=did_you_mean(value, allowed))
    path = chosen_run(run)
    folder = path / "export" if path.is_dir() else path.parent
    target = out or folder / f"{path.stem}-{part}{writer.suffix}"
    if target.is_dir():
        target = target / f"{path.stem}-{part}{writer.suffix}"
    if target.exists() and not force:
        raise UsageError(f"{target} already exists.", what_to_do="Choose another --out, or say --force.")

    from toast_cli.storage.adapter import load

    difference = writer.write(load(path, weights), part, dtype, target)
    size = target.stat().st_size
    if as_json:
        print_json({"run": str(path), "file": str(target), "bytes": size, "largest_difference": difference})
        return
    say(f"{part} written: {target} ({size / 1e6:.2f} MB)")
    say(f"Read back and compared: largest difference of outputs {difference:.1e}")
