"""Verification of an export: another process loads and runs it, and its outputs are compared with the run's."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toast_cli.export import verification_worker
from toast_cli.export.base import ExportFormat, ExportRequest, Outputs, QuantizationReport, log_stage
from toast_cli.export.cast_model import make_reference_runner
from toast_cli.export.verification_inputs import make_verification_inputs
from toast_cli.export.verification_outputs import compute_requested_outputs
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import write_json, write_tensors

MAP_OUTPUTS = frozenset({"similarity", "attention_first", "attention_last"})
"""Outputs added by `--maps`."""

MERGING_TOLERANCE = 1e-4
"""Smallest tolerance, in standard deviations of the output, of merged weights: they add up numbers in another order."""

RESIZING_TOLERANCE = 2e-2
"""Smallest tolerance, in standard deviations of the output, of images resized in the graph: where a pixel is halfway
between two levels, it may be rounded to the other one."""

QUANTIZATION_TOLERANCE = 2.0
"""Largest difference of a quantized output, in its standard deviations. Its accuracy is measured beside it."""

MAX_ROUNDING_ULPS = 32
"""Allowed effect of rounding on an output, in units in the last place of the data type."""


@dataclass(frozen=True)
class VerificationReport:
    """Result of comparing an export with its run.

    The mappings of differences have one entry per input (`random`, `real`, ...) and output, e.g. `random.logits`.

    Args:
        differences: Largest absolute difference from the run with its weights rounded to the export's data type.
        allowed: Tolerance of each entry of `differences`.
        seconds: Time of the export for one batch.
        seconds_pytorch: Time of the run in PyTorch for the same batch, with the same number of threads.
        timed_on: Name of the input that was timed.
        compared_on: Number of images or texts per input.
        missing: Inputs that could not be compared, with the reason.
        rounding: Largest absolute difference from the unrounded run, if its precision differs from the export's.
        rounding_allowed: Tolerance of each entry of `rounding`.
        same_top: Share of images, tokens or pixels per input whose top-1 prediction is that of the unrounded run.
        quantization: What quantization changed; the differences are those of the file before it.
    """

    differences: dict[str, float]
    allowed: dict[str, float]
    seconds: float
    seconds_pytorch: float
    timed_on: str
    compared_on: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    rounding_allowed: dict[str, float] = field(default_factory=dict)
    same_top: dict[str, float] = field(default_factory=dict)
    quantization: QuantizationReport | None = None

    @property
    def largest(self) -> float:
        """The largest of all differences."""
        return max(self.differences.values())


@dataclass(frozen=True)
class ReferenceOutputs:
    """Inputs of the run and of the export, and the outputs of the run in its own precision."""

    inputs: dict[str, dict[str, Tensor]]
    given: dict[str, list[dict[str, Tensor]]]
    outputs: dict[str, Outputs]
    missing: dict[str, str]
    precision: torch.dtype


@torch.no_grad()
def compute_reference(loaded: LoadedModel, form: ExportFormat, wanted: ExportRequest) -> ReferenceOutputs:
    """Compute the outputs of the run before the export changes it.

    Raises:
        ToastError: The run's classes are in another order than those of its data.
    """
    log_stage("Computing the outputs of the run on random inputs and on its own data")
    made = make_verification_inputs(loaded, form, wanted)
    outputs = {key: compute_requested_outputs(loaded.model, wanted, named) for key, named in made.prepared.items()}
    kinds = {tensor.dtype for tensor in loaded.model.parameters()}
    precision = max(kinds, key=lambda kind: torch.finfo(kind).eps)
    return ReferenceOutputs(made.prepared, made.given, outputs, made.missing, precision)


def verify_export(
    loaded: LoadedModel, name: str, form: ExportFormat, wanted: ExportRequest, expected: ReferenceOutputs, path: Path
) -> VerificationReport:
    """Run the export in another process on the reference inputs, and compare the outputs.

    Raises:
        ToastError: The export cannot be loaded, an output differs by more than its tolerance, or the inputs cannot be
            written.
    """
    with tempfile.TemporaryDirectory(prefix="toast-proof-") as scratch:
        return _verify_in_folder(loaded, name, form, wanted, expected, path, Path(scratch))


def _verify_in_folder(
    loaded: LoadedModel,
    name: str,
    form: ExportFormat,
    wanted: ExportRequest,
    expected: ReferenceOutputs,
    path: Path,
    scratch: Path,
) -> VerificationReport:
    inputs = expected.inputs
    timed_on = "real" if "real" in inputs else "random"
    log_stage(f"Loading it with {form.loads} in another process, and running it")
    _run_in_worker(name, wanted, expected.given, timed_on, path, scratch)
    log_stage("Comparing the outputs")
    differences: dict[str, float] = {}
    allowed: dict[str, float] = {}
    rounding: dict[str, float] = {}
    rounding_allowed: dict[str, float] = {}
    same_top: dict[str, float] = {}
    # Compare with the run rounded to the same type, so that rounding errors do not hide a wrong export.
    half = wanted.dtype != "float32"
    stored = make_reference_runner(loaded, wanted, form.graph, wanted.dtype) if half else None
    made = (
        make_reference_runner(loaded, wanted, False, "float32")
        if half and (wanted.fold or wanted.merge or wanted.part == "backbone")
        else None
    )
    exact_tolerance = max(form.tolerance["float32"], MERGING_TOLERANCE if wanted.merge else 0.0)
    tolerance = form.tolerance[wanted.dtype] if half else exact_tolerance
    if wanted.resize:
        exact_tolerance, tolerance = (max(each, RESIZING_TOLERANCE) for each in (exact_tolerance, tolerance))
    # A model with its own weights was cast to float32 before the export; an adapter keeps the backbone's precision.
    cast = wanted.part != "adapter" and expected.precision != torch.float32
    coarser = max(torch.finfo(getattr(torch, wanted.dtype)).eps, torch.finfo(expected.precision).eps if cast else 0.0)
    with torch.no_grad():
        for key, named in inputs.items():
            theirs, as_is = load_file(scratch / f"{key}.out.safetensors"), expected.outputs[key]
            run = compute_requested_outputs(loaded.model, wanted, named) if cast else as_is
            if run.keys() != theirs.keys():
                raise ToastError(
                    f"The outputs of the export {path.name} are not those of the run.",
                    f"Expected {', '.join(run)}, got {', '.join(theirs)}.",
                    code="export.wrong-outputs",
                )
            ours = run if stored is None else stored(named)
            exact = {} if made is None else made(named)
            for output, tensor in ours.items():
                unit, entry = _compute_unit(output, run[output]), f"{key}.{output}"
                allowed[entry] = tolerance * unit
                differences[entry] = _compute_max_difference(theirs[output], tensor)
                if output in exact:
                    allowed[f"{entry} before rounding"] = exact_tolerance * unit
                    differences[f"{entry} before rounding"] = _compute_max_difference(exact[output], run[output])
                if half or cast:
                    rounding_allowed[entry] = MAX_ROUNDING_ULPS * coarser * unit
                    rounding[entry] = _compute_max_difference(theirs[output], as_is[output])
            if "logits" in theirs and (half or cast):
                dim = 1 if loaded.model.objective.dense else -1
                same_top[key] = _compute_top1_agreement(
                    theirs["logits"], as_is["logits"], dim, named.get("attention_mask")
                )
        own = verification_worker.measure_seconds(
            lambda named: compute_requested_outputs(loaded.model, wanted, named), inputs[timed_on]
        )
    _require_within_tolerance(
        differences, allowed, f"The outputs of the export {path.name} differ from those of the run.", half
    )
    _require_within_tolerance(
        rounding,
        rounding_allowed,
        f"The outputs of {path.name} in {wanted.dtype} differ too much from those of the unrounded run.",
        half,
    )
    return VerificationReport(
        differences,
        allowed,
        json.loads((scratch / "seconds.json").read_text(encoding="utf-8")),
        own,
        timed_on,
        {key: len(next(iter(named.values()))) for key, named in inputs.items()},
        expected.missing,
        rounding,
        rounding_allowed,
        same_top,
    )


def verify_quantized(name: str, wanted: ExportRequest, expected: ReferenceOutputs, path: Path) -> dict[str, Any]:
    """Run a quantized export in another process. Return the fields of the report with what it changed, and its speed.

    Images of noise are left out: its ranges are those of real images.

    Raises:
        ToastError: The file cannot be run, or its outputs are not the run's by far.
    """
    with tempfile.TemporaryDirectory(prefix="toast-proof-") as scratch:
        timed_on = "real" if "real" in expected.inputs else "random"
        _run_in_worker(name, wanted, {timed_on: expected.given[timed_on]}, timed_on, path, Path(scratch))
        theirs = load_file(Path(scratch) / f"{timed_on}.out.safetensors")
        seconds = json.loads((Path(scratch) / "seconds.json").read_text(encoding="utf-8"))
    ours = expected.outputs[timed_on]
    rounding = {f"{timed_on}.{key}": _compute_max_difference(theirs[key], tensor) for key, tensor in ours.items()}
    allowed = {f"{timed_on}.{key}": QUANTIZATION_TOLERANCE * _compute_unit(key, tensor) for key, tensor in ours.items()}
    what = f"The outputs of {path.name} in {wanted.quantize} differ too much from those of the run."
    _require_within_tolerance(rounding, allowed, what, False)
    same = _compute_top1_agreement(theirs["logits"], ours["logits"], -1, None)
    return {"rounding": rounding, "rounding_allowed": allowed, "same_top": {timed_on: same}, "seconds": seconds}


def _run_in_worker(
    name: str,
    wanted: ExportRequest,
    given: dict[str, list[dict[str, Tensor]]],
    timed_on: str,
    path: Path,
    scratch: Path,
) -> None:
    """Run the export in another process, which writes the outputs to `scratch`.

    Raises:
        ToastError: The export cannot be loaded or run, or the inputs cannot be written.
    """
    for key, batches in given.items():
        try:
            for index, named in enumerate(batches):
                write_tensors(scratch / f"{key}.{index}.safetensors", named)
        except OSError as error:
            raise ToastError(
                f"Cannot write the inputs of the verification to {scratch.parent}.",
                error.strerror or str(error),
                "Free some disk space there, or set TMPDIR to another folder.",
                code="disk.cannot-write",
            ) from error
    job = scratch / "job.json"
    write_json(
        job,
        {
            "format": name,
            "wanted": asdict(wanted),
            "path": str(path),
            "inputs": {key: len(batches) for key, batches in given.items()},
            "timed_on": timed_on,
            "threads": torch.get_num_threads(),
        },
    )
    verification_worker.run_in_new_process(job)


def _require_within_tolerance(differences: dict[str, float], allowed: dict[str, float], what: str, half: bool) -> None:
    """Check that no difference exceeds its tolerance.

    Raises:
        ToastError: One does; `what` is the first sentence of the message.
    """
    # `not <=` instead of `>`, so that NaN fails.
    beyond = [key for key in differences if not differences[key] <= allowed[key]]
    if beyond:
        worst = max(beyond, key=lambda key: differences[key] / allowed[key] if allowed[key] else 0)
        why = f"The largest difference is {differences[worst]:.3g} on {worst}; the tolerance is {allowed[worst]:.3g}."
        raise ToastError(what, why, "Use --dtype float32." if half else "", code="export.outputs-differ")


def _compute_unit(output: str, tensor: Tensor) -> float:
    """Return the unit of the tolerance of an output: its standard deviation, or the maximum of a map."""
    if output in MAP_OUTPUTS:
        return max(float(tensor.float().abs().max()), 1e-6)
    return max(1.0, float(tensor.float().std())) if tensor.numel() > 1 else 1.0


def _compute_max_difference(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        return float("inf")
    return float((theirs.double() - ours.double()).abs().max())


def _compute_top1_agreement(theirs: Tensor, ours: Tensor, dim: int, mask: Tensor | None) -> float:
    """Return the share of images, tokens (where the mask is set) or pixels with the same top-1 prediction."""
    if theirs.shape != ours.shape:
        return 0.0
    same = theirs.argmax(dim) == ours.argmax(dim)
    return float((same if mask is None else same[mask.bool()]).double().mean())
