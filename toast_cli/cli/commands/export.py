"""`toast export`: write a run in a format for other programs, and verify it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.export.base import ExportFormat
    from toast_cli.export.verification import VerificationReport


def run_export(
    format: Annotated[
        str, typer.Option(help="Export format: safetensors, onnx, openvino, torch-export, timm, hf or peft.")
    ] = "safetensors",
    run: options.RunOption = None,
    what: Annotated[
        str | None,
        typer.Option(
            help="Part to export: adapter, full (adapter and backbone), backbone, or artifact (output of "
            "'toast pretune'). [default: adapter for safetensors, otherwise full]"
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Data type of the stored weights: float32, float16 or bfloat16.")
    ] = "float32",
    fold: Annotated[
        bool,
        typer.Option(
            "--fold",
            help="Merge the feedback path into one matrix per level, for inference only. Always on for graph formats.",
        ),
    ] = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="Graph formats: also output similarity and attention maps.")
    ] = False,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Graph formats: normalize inside the graph, so that the input is pixels in [0, 1]."
        ),
    ] = False,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize",
            help="Graph formats: also resize and crop inside the graph, so that the input is an image of any size. "
            "Includes --normalize.",
        ),
    ] = False,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="onnx: quantize to int8: weights, and activations where validation accuracy allows it (int8).",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Output file, or folder (existing, or with a trailing /). [default: export/ in the run folder]",
        ),
    ] = None,
    weights: options.WeightsOption = None,
    push: Annotated[
        str | None, typer.Option(help="Also upload the export to this Hugging Face Hub repository (OWNER/NAME).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing export.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Export a run to a file for other programs.

    Before the export is kept, another process loads it and compares its outputs with those of the run. If they differ,
    no file is written. Beside onnx, openvino and timm exports of images, infer.py is written: a script that labels
    files without toast.
    """
    from toast_cli import registry
    from toast_cli.cli.find_run import resolve_run_path
    from toast_cli.cli.output.console import err, print_json, print_line

    form = registry.load_entry(registry.EXPORTS, format)
    path = resolve_run_path(run)

    from toast_cli.export.existing_exports import require_free_target
    from toast_cli.storage.load_model import load_model
    from toast_cli.storage.pretuned import is_artifact, load_artifact

    pretuned = is_artifact(path)
    part = what or ("artifact" if pretuned else form.parts[0])
    _check_options(format, form, part, dtype, fold, {"maps": maps, "normalize": normalize, "resize": resize}, pretuned)
    _check_quantization(format, form, dtype, quantize)
    target = _choose_target(out, path, format, part, form)
    require_free_target(target, force)

    from toast_cli.export.base import SCRIPT_FILE, ExportRequest, forward_stages
    from toast_cli.export.export_run import compute_total_size, is_folded_by_default
    from toast_cli.export.export_run import export_model as exported
    from toast_cli.export.hub_upload import check_repository_name, make_card, upload_export
    from toast_cli.utils.names import quote_argument

    if push is not None:
        check_repository_name(push)
    loaded = (load_artifact if pretuned else load_model)(path, weights)
    wanted = ExportRequest(
        part,
        dtype,
        fold or is_folded_by_default(loaded, form),
        maps,
        normalize or resize,
        resize,
        quantize,
        None if part == "full" or loaded.config.whole else _get_backbone_path(loaded.recipe.backbone),
        loaded.recipe.backbone.model_dump(mode="json"),
        form.merges(loaded),
    )
    with forward_stages(lambda text: print_line(f"{text} ...", err)):
        proof, written = exported(loaded, format, wanted, target, force)
    pushed = upload_export(push, written, make_card(loaded, format, wanted, target, push)) if push is not None else None
    if as_json:
        record = {
            "run": str(path),
            "file": str(target),
            "bytes": compute_total_size(written),
            "largest_difference": proof.largest,
        }
        record |= {"seconds": proof.seconds, "seconds_pytorch": proof.seconds_pytorch, "missing": proof.missing}
        record |= {"compared_on": proof.compared_on, "dtype": dtype, "rounding": proof.rounding}
        record |= {"quantization": proof.quantization and asdict(proof.quantization)}
        print_json({**record, "same_top": proof.same_top, "pushed": pushed})
    else:
        _print_summary(part, target, compute_total_size(written), form, proof)
        for script in (file for file in written if file.name == SCRIPT_FILE):
            print_line(
                f"To use it without PyTorch: pip install numpy pillow {form.loads}; python {quote_argument(script)} "
                f"IMAGES --model {quote_argument(target)}"
            )
        _print_quantization(proof)
        _print_rounding(quantize or dtype, proof)
    if quantize is None:
        _warn_changed_predictions(dtype, proof)
    if pushed is not None and not as_json:
        typer.echo(f"Uploaded: {pushed}")


def _get_backbone_path(backbone: Any) -> str | None:
    """Return where the verification process finds the backbone. The export itself contains no local path."""
    from toast_cli.export.redact_paths import get_backbone_folder

    return backbone.weights or get_backbone_folder(backbone.name)


def _choose_target(given: str | None, run: Path, format: str, part: str, form: ExportFormat) -> Path:
    """Return the path to write. A file always gets the suffix of its format.

    The export is written into an existing folder, unless that folder is itself an export.
    """
    from toast_cli.export.existing_exports import is_folder_export
    from toast_cli.utils.hub import find_repository_name
    from toast_cli.utils.names import to_file_name

    folder = run / "export" if run.is_dir() else run.parent
    stem = to_file_name(run.resolve().name if run.is_dir() else run.stem)
    if (repository := find_repository_name(run)) is not None:  # nothing is written into the cache of the hub
        folder, stem = Path("export"), to_file_name(repository)
    name = f"{stem}-{format if form.graph or not form.suffix else part}{form.suffix}"
    if given is None:
        return folder / name
    out = Path(given)
    if given.endswith(("/", os.sep)) or (out.is_dir() and (form.suffix or not is_folder_export(out))):
        return out / name
    return out if out.name.endswith(form.suffix) else out.with_name(out.name + form.suffix)


def _check_options(
    format: str, form: ExportFormat, part: str, dtype: str, fold: bool, inside: dict[str, bool], pretuned: bool
) -> None:
    """Check that the format and the run support the options. `inside` has those of graphs.

    Raises:
        UsageError: An option is not supported; the message lists the supported values.
    """
    from toast_cli.utils.errors import UsageError, did_you_mean

    if pretuned and "artifact" not in form.parts:
        raise UsageError(
            f"Cannot export a pre-tuned artifact as {format}: it initializes tuning and is not a model.",
            what_to_do="Use --format safetensors, or tune from the artifact first.",
            code="export.unsupported-part",
        )
    parts = tuple(name for name in form.parts if (name == "artifact") == pretuned)
    for option, value, allowed in (
        ("--what", part, parts),
        ("--dtype", dtype, tuple(form.tolerance)),
    ):
        if value not in allowed:
            raise UsageError(
                f"Invalid value for {option} with format {format}: '{value}'.",
                what_to_do=did_you_mean(value, allowed),
                code="cli.invalid-value",
            )
    for option in (f"--{name}" for name, chosen in inside.items() if chosen):
        if not form.graph:
            from toast_cli import registry

            prepares = {"hf": "The image processor normalizes images", "safetensors": "toast normalizes images"}
            graphs = sorted(name for name, other in registry.load_all(registry.EXPORTS).items() if other.graph)
            raise UsageError(
                f"{option} needs a graph format, got {format}.",
                f"{prepares[format]}, and toast_cli.load(PATH).attention(images) returns the maps."
                if format in prepares
                else "",
                f"Use --format {', '.join(graphs[:-1])} or {graphs[-1]}.",
                code="export.not-a-graph",
            )
    if fold and part in ("backbone", "artifact"):
        why = "a backbone has none" if part == "backbone" else "an artifact must stay trainable"
        raise UsageError(
            f"--fold cannot be used with --what {part}.",
            f"It merges the feedback path: {why}.",
            code="export.nothing-to-fold",
        )


def _check_quantization(format: str, form: ExportFormat, dtype: str, quantize: str | None) -> None:
    """Check that the format can be quantized to a type.

    Raises:
        UsageError: It cannot, or the weights are to be rounded to half precision too.
    """
    from toast_cli import registry
    from toast_cli.utils.errors import UsageError, did_you_mean

    if quantize is None:
        return
    if not form.quantizes:
        able = sorted(name for name, each in registry.load_all(registry.EXPORTS).items() if each.quantizes)
        raise UsageError(
            f"--quantize is not available for {format}.",
            what_to_do=f"Use --format {' or '.join(able)}.",
            code="export.cannot-quantize",
        )
    if quantize not in form.quantizes:
        raise UsageError(
            f"Invalid value for --quantize with format {format}: '{quantize}'.",
            what_to_do=did_you_mean(quantize, tuple(form.quantizes)),
            code="cli.invalid-value",
        )
    if dtype != "float32":
        raise UsageError(
            f"--quantize and --dtype {dtype} are mutually exclusive.",
            f"{quantize} is the type of the weights.",
            "Leave --dtype out.",
            code="export.cannot-quantize",
        )


def _print_summary(part: str, target: Path, size: int, form: Any, proof: VerificationReport) -> None:
    from toast_cli.cli.output.console import print_line

    print_line(f"Exported {part}: {target} ({size / 1e6:.2f} MB)")
    on = " and ".join(f"{proof.compared_on[kind]} {kind}" for kind in sorted(proof.compared_on, reverse=True))
    print_line(
        f"Verified: loaded with {form.loads} in another process and compared on {on} inputs; "
        f"largest difference {proof.largest:.1e}"
    )
    for kind, why in proof.missing.items():
        print_line(f"Not compared on {kind} inputs: {why}")
    faster = proof.seconds_pytorch / proof.seconds
    print_line(
        f"Speed: {proof.seconds * 1e3:.1f} ms per batch of {proof.timed_on} inputs, "
        f"{proof.seconds_pytorch * 1e3:.1f} ms in PyTorch ({faster:.2f} × as fast)"
    )


def _print_quantization(proof: VerificationReport) -> None:
    """Print the accuracy before and after quantization, and warn if it loses more than a point."""
    from toast_cli.cli.output.console import err, print_line

    if (found := proof.quantization) is None:
        return
    print_line(
        f"Quantized to {found.type}: {found.split} accuracy {found.accuracy:.1%}, {found.accuracy_float:.1%} before, "
        f"on {found.images} images; {found.bytes / found.bytes_float:.2f} times the size "
        f"({found.scheme}, calibrated on {found.calibration_images} training images)"
    )
    if found.loses_too_much:
        print_line(
            f"Warning: {found.type} loses {100 * (found.accuracy_float - found.accuracy):.1f} points of {found.split} "
            "accuracy. Use --dtype float16, or the file without --quantize.",
            err,
        )


def _print_rounding(dtype: str, proof: VerificationReport) -> None:
    from toast_cli.cli.output.console import print_line

    if not proof.rounding:
        return
    worst = max(proof.rounding, key=lambda key: proof.rounding[key] / proof.rounding_allowed[key])
    text = f"Rounding to {dtype}: {worst.partition('.')[2]} differ by at most {proof.rounding[worst]:.1e} from the run "
    text += f"(tolerance {proof.rounding_allowed[worst]:.1e})"
    if proof.same_top:
        same = (f"{share:.1%} of the {kind}" for kind, share in sorted(proof.same_top.items(), reverse=True))
        text += f"; the top-1 prediction is unchanged for {' and '.join(same)} inputs"
    print_line(text)


def _warn_changed_predictions(dtype: str, proof: VerificationReport) -> None:
    from toast_cli.cli.output.console import err, print_line

    kind = "real" if "real" in proof.same_top else "random"
    if proof.same_top.get(kind, 1.0) < 1:
        print_line(
            f"Warning: {dtype} changes the top-1 prediction for "
            f"{1 - proof.same_top[kind]:.1%} of the {kind} inputs. Check the accuracy with 'toast eval', or use "
            "--dtype float32.",
            err,
        )
