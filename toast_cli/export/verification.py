"""Proving an export: another process opens it and runs it, and what comes out is held against the run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from toast_cli.export import verification_worker
from toast_cli.export.base import ExportFormat, ExportRequest, Outputs, log_stage
from toast_cli.export.cast_model import make_reference_runner
from toast_cli.export.verification_inputs import make_verification_inputs
from toast_cli.export.verification_outputs import compute_requested_outputs
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import write_json, write_tensors

MAP_OUTPUTS = frozenset({"similarity", "attention_first", "attention_last"})
"""Outputs that `--maps` adds."""

MAX_ROUNDING_ULPS = 32
"""Last places of its type by which rounding may move an output, in the output's unit."""


@dataclass(frozen=True)
class VerificationReport:
    """How an export stands against its run.

    `differences` and `allowed` have an entry per input (`random`, `real`, ...) and output, as `random.logits`: in half
    precision from the run with its numbers stored so. Where the export's precision is not the run's, `rounding` and
    `rounding_allowed` have the same from the run as it is, and `same_top` the share of each input's images (tokens,
    pixels) whose likeliest class is the run's. `seconds` is for one batch of `timed_on`, by the export and by the run
    in PyTorch, on as many threads; `compared_on` says how many images or texts, `missing` what it could not be
    compared on, and why.
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

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.differences.values())


@dataclass(frozen=True)
class ReferenceOutputs:
    """What an export is held against: inputs, and the outputs of the run as it is, in its own precision."""

    inputs: dict[str, dict[str, Tensor]]
    outputs: dict[str, Outputs]
    missing: dict[str, str]
    precision: torch.dtype


@torch.no_grad()
def compute_reference(loaded: LoadedModel, form: ExportFormat, wanted: ExportRequest) -> ReferenceOutputs:
    """Run the run, before anything is done to it.

    Raises:
        ToastError: the run's classes are those of its data in another order.
    """
    log_stage("Running the run itself, on random input and its own data")
    inputs, missing = make_verification_inputs(loaded, form)
    outputs = {key: compute_requested_outputs(loaded.model, wanted, named) for key, named in inputs.items()}
    kinds = {tensor.dtype for tensor in loaded.model.parameters()}
    return ReferenceOutputs(inputs, outputs, missing, max(kinds, key=lambda kind: torch.finfo(kind).eps))


def verify_export(
    loaded: LoadedModel, name: str, form: ExportFormat, wanted: ExportRequest, expected: ReferenceOutputs, path: Path
) -> VerificationReport:
    """Run the export in another process on the same inputs, and compare.

    Raises:
        ToastError: it cannot be opened, an output differs by more than is allowed, or there is no space for inputs.
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
    log_stage(f"Opening it in another process with {form.loads}, and running it")
    _run_in_worker(loaded, name, wanted, inputs, timed_on, path, scratch)
    log_stage("Comparing")
    differences: dict[str, float] = {}
    allowed: dict[str, float] = {}
    rounding: dict[str, float] = {}
    rounding_allowed: dict[str, float] = {}
    same_top: dict[str, float] = {}
    # Of the same stored numbers: what half precision costs is no leeway for an export that is wrong besides.
    half = wanted.dtype != "float32"
    stored = make_reference_runner(loaded, wanted, form.graph, wanted.dtype) if half else None
    made = (
        make_reference_runner(loaded, wanted, False, "float32")
        if half and (wanted.fold or wanted.part == "backbone")
        else None
    )
    # What brings its own weights was made float32 before it was written; an adapter leaves the backbone as it is.
    cast = wanted.part != "adapter" and expected.precision != torch.float32
    coarser = max(torch.finfo(getattr(torch, wanted.dtype)).eps, torch.finfo(expected.precision).eps if cast else 0.0)
    with torch.no_grad():
        for key, named in inputs.items():
            theirs, as_is = load_file(scratch / f"{key}.out.safetensors"), expected.outputs[key]
            run = compute_requested_outputs(loaded.model, wanted, named) if cast else as_is
            if run.keys() != theirs.keys():
                raise ToastError(
                    f"The export to {path.name} has other outputs than the run.",
                    f"It has {', '.join(theirs)}, not {', '.join(run)}.",
                    code="export.wrong-outputs",
                )
            ours = run if stored is None else stored(named)
            exact = {} if made is None else made(named)
            for output, tensor in ours.items():
                unit, entry = _compute_unit(output, run[output]), f"{key}.{output}"
                allowed[entry] = form.tolerance[wanted.dtype] * unit
                differences[entry] = _compute_max_difference(theirs[output], tensor)
                if output in exact:
                    allowed[f"{entry} before rounding"] = form.tolerance["float32"] * unit
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
        differences, allowed, f"The export to {path.name} does not give the run's outputs back.", half
    )
    _require_within_tolerance(
        rounding, rounding_allowed, f"{path.name} in {wanted.dtype} is too far from the run as it is.", half
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


def _run_in_worker(
    loaded: LoadedModel,
    name: str,
    wanted: ExportRequest,
    inputs: dict[str, dict[str, Tensor]],
    timed_on: str,
    path: Path,
    scratch: Path,
) -> None:
    """Have another process run the export; its outputs lie in `scratch`.

    Raises:
        ToastError: it could not, or there is no space for its inputs.
    """
    seen = loaded.model.backbone.preprocessing
    for key, named in inputs.items():
        pixels = named
        if wanted.normalize and seen is not None:  # the export is given what the backbone would see, before that
            mean, std = (torch.tensor(of)[:, None, None] for of in (seen.mean, seen.std))
            pixels = {"image": named["image"] * std + mean}
        try:
            write_tensors(scratch / f"{key}.safetensors", pixels)
        except OSError as error:
            raise ToastError(
                f"What the export is checked with could not be written into {scratch.parent}.",
                error.strerror or str(error),
                "Make space there, or name another folder in TMPDIR.",
                code="disk.cannot-write",
            ) from error
    job = scratch / "job.json"
    write_json(
        job,
        {
            "format": name,
            "wanted": asdict(wanted),
            "path": str(path),
            "inputs": list(inputs),
            "timed_on": timed_on,
            "threads": torch.get_num_threads(),
        },
    )
    verification_worker.run_in_new_process(job)


def _require_within_tolerance(differences: dict[str, float], allowed: dict[str, float], what: str, half: bool) -> None:
    """Check that nothing differs by more than is allowed.

    Raises:
        ToastError: something does; it says `what` that means.
    """
    # Written so that a difference that is no number fails, too.
    beyond = [key for key in differences if not differences[key] <= allowed[key]]
    if beyond:
        worst = max(beyond, key=lambda key: differences[key] / allowed[key] if allowed[key] else 0)
        why = f"On {worst} the largest difference is {differences[worst]:.3g}, {allowed[worst]:.3g} is allowed."
        raise ToastError(what, why, "Use --dtype float32." if half else "", code="export.outputs-differ")


def _compute_unit(output: str, tensor: Tensor) -> float:
    """What a difference in an output is measured by: its spread; of a map, whose numbers are small, its largest."""
    if output in MAP_OUTPUTS:
        return max(float(tensor.float().abs().max()), 1e-6)
    return max(1.0, float(tensor.float().std())) if tensor.numel() > 1 else 1.0


def _compute_max_difference(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        return float("inf")
    return float((theirs.double() - ours.double()).abs().max())


def _compute_top1_agreement(theirs: Tensor, ours: Tensor, dim: int, mask: Tensor | None) -> float:
    """The share of images, tokens (that the mask counts) or pixels whose likeliest class is the same."""
    if theirs.shape != ours.shape:
        return 0.0
    same = theirs.argmax(dim) == ours.argmax(dim)
    return float((same if mask is None else same[mask.bool()]).double().mean())
