"""Figures on disk, each with the numbers it was drawn from and how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toast_cli import registry
from toast_cli.data.base import Sample
from toast_cli.utils.atomic import write_json, write_tensors
from toast_cli.utils.hashing import digest_of, digest_of_tensors
from toast_cli.utils.version import __version__
from toast_cli.visualize.figure import draw, write
from toast_cli.visualize.layout import passes_row, shortened, viewers_rows
from toast_cli.visualize.output_names import KEY, free_name, made_of
from toast_cli.visualize.view import Verdict, View, Viewer, covering, see

COMPARISON = "comparison"
"""What the figure of several viewers is called, before their names."""
LONGEST = 80
"""Characters of viewers' names in the name of a file, and of an image's above a figure."""


def picture(viewer: Viewer, sample: Sample, folder: Path, name: str, kind: str = "png") -> dict[str, Any]:
    """Draw what one viewer saw of one image, with the raw maps and a record beside the figure; returns the record."""
    view = see(viewer, sample)
    own = made_of([viewer], [sample.image.tobytes()])
    name = free_name(folder, name + viewer.ending, own)
    path = folder / f"{name}.{kind}"
    write(draw([passes_row(sample, view)], "\n".join(captions(sample, view))), path)
    return keep(sample, [view], folder, name, path, own)


def comparison(
    viewers: Sequence[Viewer], samples: Iterable[tuple[str, Sample]], folder: Path, kind: str = "png"
) -> Any:
    """Draw several viewers side by side, a row an image; returns a record an image, with all of its views.

    Of no images there is no figure.
    """
    named = list(samples)
    if not named:
        return []
    views = [[see(viewer, sample) for viewer in viewers] for _, sample in named]
    own = made_of(viewers, (sample.image.tobytes() for _, sample in named))
    whole = free_name(folder, compared_name(viewers), own, "*-{}.json")
    path = folder / f"{whole}.{kind}"
    rows = viewers_rows([sample for _, sample in named], views)
    described = dict.fromkeys(described_maps(view.viewer, view.kind) for view in views[0])
    write(draw(rows, f"Where each model looks in its last pass: {'; '.join(described)}"), path)
    return [
        keep(sample, row, folder, f"{name}-{whole}", path, own)
        for (name, sample), row in zip(named, views, strict=True)
    ]


def compared_name(viewers: Sequence[Viewer]) -> str:
    """What the files of several viewers are called: who they are, and how they look; long lists end in a digest."""
    listed = "-".join([COMPARISON, *(viewer.name for viewer in viewers)])
    plain = "".join(character if character.isalnum() or character in "-_." else "-" for character in listed)
    if len(plain) > LONGEST:
        plain = f"{plain[:LONGEST]}-{digest_of(listed.encode()).hex()[:8]}"
    return plain + viewers[0].ending


def keep(sample: Sample, views: Sequence[View], folder: Path, name: str, figure: Path, own: str) -> dict[str, Any]:
    """Write the raw maps (safetensors) and how they were made (JSON), and return the latter; `own` is its `made_of`."""
    names = unique([view.viewer.name for view in views])
    tensors = {
        map if len(views) == 1 else f"{own}/{map}": tensor
        for own, view in zip(names, views, strict=True)
        for map, tensor in view.maps.items()
    }
    maps = folder / f"{name}.safetensors"
    write_tensors(maps, tensors)
    record = {
        "image": sample.name,
        KEY: own,
        "image_size": [sample.image.height, sample.image.width],
        "figure": str(figure),
        "maps": str(maps),
        "versions": versions(),
        "views": [made(view, own) for own, view in zip(names, views, strict=True)],
    }
    write_json(folder / f"{name}.json", record)
    return record


def made(view: View, name: str) -> dict[str, Any]:
    """How a view was made, and what came out besides its maps."""
    viewer = view.viewer
    model, recorder = viewer.model, viewer.recorder
    backbone, steering = model.backbone, model.adapted.steering
    preprocessing = backbone.require_preprocessing()
    return {
        **origin(viewer, name),
        "kind": view.kind,
        "layer": recorder.level,
        "head": viewer.head,
        "alpha": None if steering is None else steering.strength,
        "input_size": list(preprocessing.image_size),
        "images": viewer.images.model_dump(mode="json"),
        "crop_pct": preprocessing.crop_pct,
        "window": vars(view.window),
        "shape": list(view.maps["pass_one"].shape),
        "prefix_tokens_left_out": backbone.prefix_tokens,
        "checks": None if view.checks is None else view.checks.told(),
        "pass_one": told(view.first),
        "pass_two": told(view.last),
        "share_inside": view.shares,
        "segments": {name: covering(found) for name, found in view.segments.items()},
    }


def origin(viewer: Viewer, name: str) -> dict[str, Any]:
    """Who looks: which run, trained how, on which backbone with which weights; of paths, the last part alone."""
    model, recipe = viewer.model, viewer.recipe
    found: dict[str, Any] = {"name": name, "run": None, "run_fingerprint": None}
    if not viewer.plain:
        found |= {"run": viewer.name, "run_fingerprint": digest_of_tensors(model.trained())}
    if recipe is not None:
        weights = recipe.backbone.weights
        source = registry.backbone_card(recipe.backbone.name).source
        if not viewer.plain:
            data = without_folders(recipe.dataset.name)
            found |= {"method": recipe.method.name, "dataset": data, "seed": recipe.seed}
        found |= {
            "backbone": without_folders(recipe.backbone.name),
            "weights": f"{source} (no file was named)" if weights is None else without_folders(weights),
        }
    return found | {"network": type(model.backbone.module).__name__, "backbone_fingerprint": model.backbone_fingerprint}


def without_folders(name: str) -> str:
    """`KIND:PATH` or a path with the path's last part alone."""
    kind, colon, path = name.rpartition(":")
    return kind + colon + path.rstrip("/").rsplit("/", 1)[-1]


def versions() -> dict[str, str]:
    """Of this program and the libraries that maps come from."""
    return {"toast": __version__, **{name: version(name) for name in ("torch", "torchvision", "timm", "transformers")}}


def told(verdict: Verdict | None) -> dict[str, Any] | None:
    """A verdict as JSON has it."""
    return None if verdict is None else {"prediction": verdict.label, "confidence": verdict.probability}


def captions(sample: Sample, view: View) -> list[str]:
    """What is said above a figure of one image: of what and whom it is, and how much lies on the outlined object."""
    lines = [f"{shortened(sample.name, LONGEST)} · {view.viewer.name}: {described_maps(view.viewer, view.kind)}"]
    if view.viewer.plain:
        lines[0] += " · plain backbone, no run: one pass, nothing selected"
    lines += [f"{name}: {covering(found)}" for name, found in view.segments.items()]
    if view.shares:
        words = {"pass_one": "pass one", "similarity": "similarity", "pass_two": "pass two", "even": "an even map"}
        if "pass_two" not in view.maps:
            words["pass_one"] = ""
        inside = ", ".join(f"{words[name]} {share:.0%}".lstrip() for name, share in view.shares.items())
        lines.append(f"{view.kind} on the outlined object: {inside}")
    return lines


def described_maps(viewer: Viewer, kind: str) -> str:
    """Which maps these are: `attention of layer 11, mean over heads`."""
    heads = {
        "mean": ", mean over heads",
        "max": ", maximum over heads",
        "rollout": ", rolled out over all layers so far",
    }
    of = heads.get(str(viewer.head), f", head {viewer.head}") if kind == "attention" else ""
    steering = viewer.model.adapted.steering
    strength = "" if steering is None or steering.strength == 1 else f", signals × {steering.strength:g}"
    return f"{kind} of layer {viewer.recorder.level}{of}{strength}"


def unique(names: Iterable[str]) -> list[str]:
    """Names with a number behind those that came before."""
    found: list[str] = []
    for name in names:
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name}-{number}"
        found.append(free)
    return found
