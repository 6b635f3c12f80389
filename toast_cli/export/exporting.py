"""Exporting: write, open in another process, compare with the run, and only then keep.

What fails on the way leaves no file behind.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from toast_cli import __version__, registry
from toast_cli.backbone import Backbone, Card
from toast_cli.data.source import Asked, DataSet
from toast_cli.errors import ToastError, UsageError
from toast_cli.export import checking
from toast_cli.export.base import Format, Outputs, Wanted
from toast_cli.export.outputs import Graph, as_inputs, by_name, outputs_of, start_of, takes_any_size
from toast_cli.fingerprint import digest_of
from toast_cli.model import folded, plain_network
from toast_cli.places import cache_folder
from toast_cli.steering.steering import Steering, one_pass
from toast_cli.storage.adapter import Loaded
from toast_cli.storage.artifact import feedback_tensors
from toast_cli.storage.atomic import write_json, write_tensors

REPORT = "export_report.json"
BATCH = 3
REAL = 2
OTHER_SIZE = 32
"""Pixels that the second random image is wider, where every size can be shown."""

OTHER_TOKENS = 7
"""Tokens that the second random texts are longer."""


MAPS = frozenset({"similarity", "attention_first", "attention_last"})
"""Outputs that `--maps` adds."""


@dataclass(frozen=True)
class Proof:
    """How an export stands against its run.

    `differences` and `allowed` have an entry per input (`random`, `real`, ...) and output, as `random.logits`: in half
    precision from the run with its numbers stored so, and `rounding` has what that itself costs, from the run as it is;
    `seconds` is for one batch of `timed_on`, by the export and by the run in PyTorch, on as many threads; `missing`
    says what it could not be compared on, and why.
    """

    differences: dict[str, float]
    allowed: dict[str, float]
    seconds: float
    seconds_pytorch: float
    timed_on: str
    missing: dict[str, str] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.differences.values())


def export(
    loaded: Loaded, name: str, wanted: Wanted, target: Path, replace: bool = False
) -> tuple[Proof, tuple[Path, ...]]:
    """Write `loaded` in a registered format, prove it, and keep it at `target`, with `export_report.json`.

    Returns:
        How it stands against its run, and what was written: the target and, maybe, a second file with its weights.

    Raises:
        UsageError: the format cannot write what is wanted, or something is there already.
        ToastError: it cannot be written, cannot be opened, or does not give the run's outputs back; no file is left.
    """
    form: Format = registry.load(registry.EXPORTS, name)
    if wanted.part != "adapter":
        # What brings its own weights computes in one precision, not in the one that a backbone happens to be stored in.
        loaded.model.float()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_away(target.parent)
        folder = tempfile.TemporaryDirectory(prefix=f"{_begun_here()}{os.getpid()}-", dir=target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    with folder as temporary:
        place = Path(temporary) / "made"
        try:
            place.mkdir()
            form.write(loaded, wanted, place / target.name)
            proof = prove(loaded, name, form, wanted, place / target.name, Path(temporary))
            made = tuple(sorted(path.name for path in place.iterdir()))
            report = {"run": loaded.path.resolve().name, "format": name, **_told(wanted), **asdict(proof)}
            report |= {"bytes": size(place / each for each in made), "toast_version": __version__}
            with _alone_in(target.parent):
                if (place / target.name).is_dir():
                    write_json(place / target.name / REPORT, {target.name: report})
                else:
                    write_json(place / REPORT, {**_reports(target.parent / REPORT), target.name: report})
                _keep(place, target.parent, Path(temporary) / "before", replace)
        except OSError as error:
            raise _cannot_write(target, error) from error
    return proof, tuple(target.parent / each for each in made)


def _begun_here() -> str:
    """What the folders of unfinished exports of this machine begin with, before the number of their process."""
    return f".export-{platform.node() or 'here'}-"


def _clear_away(folder: Path) -> None:
    """Remove what killed exports left: folders of processes that are no more."""
    for left in folder.glob(f"{glob.escape(_begun_here())}*"):
        process = left.name.removeprefix(_begun_here()).partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Within the block, no other export of this machine moves anything into the folder or adds to its report.

    The lock lies in the cache: a folder of exports holds nothing else than them.
    """
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{digest_of(str(folder.resolve()).encode()).hex()}.lock"):
        yield


def _keep(place: Path, folder: Path, before: Path, replace: bool) -> None:
    """Move everything in `place` into `folder`, or nothing; what stood there waits in `before` until all is done.

    Raises:
        UsageError: something other than a report stands there, and is not to be replaced.
        OSError: it cannot be moved.
    """
    names = sorted(path.name for path in place.iterdir())
    for name in names:
        if (folder / name).exists() and name != REPORT and not replace:
            raise UsageError(f"{folder / name} already exists.", what_to_do="Choose another --out, or say --force.")
    before.mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                _set_aside(folder / name, before / name)
            (place / name).replace(folder / name)
    except OSError:
        for name in names:
            if not (place / name).exists():
                (folder / name).replace(place / name)
            if (before / name).exists():
                (before / name).replace(folder / name)
        raise


def _set_aside(path: Path, before: Path) -> None:
    """Keep what stands at `path` as `before`, too: a file under both names, so that it is never gone."""
    if path.is_file():
        try:
            before.hardlink_to(path)
            return
        except OSError:  # a file system that has no second names
            pass
    path.replace(before)


def prove(loaded: Loaded, name: str, form: Format, wanted: Wanted, path: Path, scratch: Path) -> Proof:
    """Run the export in another process on random and on real inputs, and compare.

    Raises:
        ToastError: it cannot be opened, or an output differs by more than is allowed.
    """
    inputs, missing = _inputs(loaded, form)
    seen = loaded.model.backbone.preprocessing
    for key, named in inputs.items():
        pixels = named
        if wanted.normalize and seen is not None:  # the export is given what the backbone would see, before that
            mean, std = (torch.tensor(of)[:, None, None] for of in (seen.mean, seen.std))
            pixels = {"image": named["image"] * std + mean}
        write_tensors(scratch / f"{key}.safetensors", pixels)
    job = scratch / "job.json"
    write_json(
        job,
        {
            "format": name,
            "wanted": asdict(wanted),
            "path": str(path),
            "inputs": list(inputs),
            "threads": torch.get_num_threads(),
        },
    )
    checking.in_new_process(job)
    differences, allowed, rounding = {}, {}, {}
    # Of the same stored numbers: what half precision costs is no leeway for an export that is wrong besides.
    half = wanted.dtype != "float32"
    stored = as_stored(loaded, wanted, form.graph, wanted.dtype) if half else None
    made = as_stored(loaded, wanted, False, "float32") if half and (wanted.fold or wanted.part == "backbone") else None
    with torch.no_grad():
        for key, named in inputs.items():
            theirs = load_file(scratch / f"{key}.out.safetensors")
            run = _outputs(loaded, wanted, named)
            if run.keys() != theirs.keys():
                raise ToastError(
                    f"The export to {path.name} has other outputs than the run.",
                    f"It has {', '.join(theirs)}, not {', '.join(run)}.",
                )
            ours = run if stored is None else stored(named)
            exact = {} if made is None else made(named)
            for output, tensor in ours.items():
                unit = _unit(output, run[output])
                allowed[f"{key}.{output}"] = form.tolerance[wanted.dtype] * unit
                differences[f"{key}.{output}"] = _difference(theirs[output], tensor)
                if output in exact:
                    allowed[f"{key}.{output} before rounding"] = form.tolerance["float32"] * unit
                    differences[f"{key}.{output} before rounding"] = _difference(exact[output], run[output])
                if half:
                    rounding[f"{key}.{output}"] = _difference(theirs[output], run[output])
        timed_on = "real" if "real" in inputs else "random"
        own = checking.timed(lambda named: _outputs(loaded, wanted, named), inputs[timed_on])
    worst = max(differences, key=lambda key: differences[key] / allowed[key] if allowed[key] else 0)
    # Written so that a difference that is no number fails, too.
    if not all(differences[key] <= allowed[key] for key in differences):
        raise ToastError(
            f"The export to {path.name} does not give the run's outputs back.",
            f"On {worst} the largest difference is {differences[worst]:.3g}, {allowed[worst]:.3g} is allowed.",
            "" if wanted.dtype == "float32" else "Use --dtype float32.",
        )
    seconds = json.loads((scratch / "seconds.json").read_text(encoding="utf-8"))[timed_on]
    return Proof(differences, allowed, seconds, own, timed_on, missing, rounding)


def _unit(output: str, tensor: Tensor) -> float:
    """What a difference in an output is measured by: its spread; of a map, whose numbers are small, its largest."""
    if output in MAPS:
        return max(float(tensor.float().abs().max()), 1e-6)
    return max(1.0, float(tensor.float().std())) if tensor.numel() > 1 else 1.0


def size(paths: Iterable[Path]) -> int:
    """Bytes of all files, and of all in folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def _inputs(loaded: Loaded, form: Format) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Random and real inputs as the backbone takes them, and why there are none of a kind."""
    backbone = loaded.model.backbone
    torch.manual_seed(0)
    inputs = {"random": by_name(backbone.example(BATCH))}
    if form.graph and "input_ids" in inputs["random"]:
        inputs["other-size"] = _longer(inputs["random"])
    elif form.graph and takes_any_size(loaded.model):
        height, width = backbone.require_preprocessing().image_size
        inputs["other-size"] = {"image": torch.randn(1, 3, height + OTHER_SIZE, width + 2 * OTHER_SIZE)}
    recipe = loaded.recipe
    try:
        source = registry.load(registry.SOURCES, recipe.dataset.name)
        data = source.open(recipe.dataset, Path(recipe.data_dir).expanduser() if recipe.data_dir else None)
        inputs["real"] = _real(loaded, data)
    except ToastError as error:
        return inputs, {"real": " ".join(part for part in (error.what, error.why) if part)}
    if data.classes != loaded.classes and sorted(data.classes) == sorted(loaded.classes):
        raise ToastError(
            f"The classes of {loaded.path} are not in the order of its data.",
            "They are the same names in another order, so every prediction would bear a wrong name.",
            "Restore its configuration, or train it again.",
        )
    return inputs, {}


def _longer(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Texts of more tokens, the first of them padded at its end."""
    ids = torch.cat([named["input_ids"], named["input_ids"][:, :OTHER_TOKENS]], dim=1)[:2]
    mask = torch.ones_like(ids)
    mask[0, -OTHER_TOKENS:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _real(loaded: Loaded, data: DataSet) -> dict[str, Tensor]:
    """The first few samples of the run's own data.

    Raises:
        ToastError: they cannot be read.
    """
    recipe = loaded.recipe
    split = data.splits[next(name for name in ("test", "val", "train") if name in data.splits)]
    batch = next(iter(data.batches(split, recipe, loaded.model.backbone, Asked(REAL))))
    named = by_name(loaded.model.objective.inputs(batch))
    return {key: named[key] for key in ("image", "input_ids", "attention_mask") if key in named}


def as_stored(loaded: Loaded, wanted: Wanted, graph: bool, dtype: str) -> Callable[[dict[str, Tensor]], Outputs]:
    """The run with everything that an export holds folded, if wanted, and rounded to a type, but never written.

    A graph also computes in that type; what other formats hold is computed with in float32.
    """
    kind: torch.dtype = getattr(torch, dtype)
    model = deepcopy(loaded.model)
    if wanted.part == "backbone":
        network = {name: _rounded(tensor, kind) for name, tensor in plain_network(model).items()}
        refilled = _refilled(loaded, network)
        return lambda named: {"features": _features(refilled, named)}
    if wanted.fold and isinstance(model.adapted.steering, Steering):
        model = folded(model)
    if graph:
        shell: Graph = Graph(model, kind, wanted.maps, normalize=False)
        return shell.run
    held: dict[str, Tensor] = {**model.trained(), **model.frozen_additions()}
    if wanted.part == "artifact":
        assert isinstance(model.adapted.steering, Steering)
        held = feedback_tensors(model.adapted.steering)
    elif wanted.part == "full" or loaded.config.whole:
        held |= model.network_tensors()
    for tensor in held.values():
        tensor.data.copy_(_rounded(tensor.data, kind))
    return lambda named: _outputs(replace(loaded, model=model), wanted, named)


def _rounded(tensor: Tensor, kind: torch.dtype) -> Tensor:
    return tensor.to(kind).to(tensor.dtype) if tensor.is_floating_point() else tensor


def _refilled(loaded: Loaded, network: Mapping[str, Tensor]) -> Backbone:
    """The run's backbone, built anew around other numbers."""
    options = loaded.recipe.backbone.model_dump(mode="json")
    card: Card = registry.backbone_card(options["name"])
    backbone = card.build(card.options(**{**options, "weights": "none"}))
    backbone.module.float().load_state_dict(dict(network), strict=False)
    backbone.module.eval()
    return backbone


def _features(backbone: Backbone, named: dict[str, Tensor]) -> Tensor:
    return one_pass(backbone, as_inputs(named)).last.pooled


def _outputs(loaded: Loaded, wanted: Wanted, named: dict[str, Tensor]) -> Outputs:
    if wanted.part == "artifact":
        return start_of(loaded.model, named)
    if wanted.part == "backbone":
        return {"features": _features(loaded.model.backbone, named)}
    return outputs_of(loaded.model, named, wanted.maps)


def _difference(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        return float("inf")
    return float((theirs.double() - ours.double()).abs().max())


def _told(wanted: Wanted) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(wanted).items() if not name.startswith("backbone_")}


def _reports(path: Path) -> dict[str, Any]:
    """What was exported into this folder before."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _cannot_write(target: Path, error: OSError) -> ToastError:
    return ToastError(f"{target} could not be written.", error.strerror or str(error), "Check space and permissions.")


def folds(loaded: Loaded, form: Format) -> bool:
    """Whether an export of this run in this format is folded unasked."""
    return form.graph and isinstance(loaded.model.adapted.steering, Steering)
