"""Figures on disk, each with the numbers it was drawn from and how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toast_cli import __version__
from toast_cli.attention.figure import draw, write
from toast_cli.attention.panels import passes_row, viewers_rows
from toast_cli.attention.seeing import Verdict, View, Viewer, covering, see
from toast_cli.data.source import Sample
from toast_cli.storage.atomic import write_json, write_tensors

COMPARISON = "comparison"
"""What the figure of several viewers is called."""


def picture(viewer: Viewer, sample: Sample, folder: Path, name: str, kind: str = "png") -> dict[str, Any]:
    """Draw what one viewer saw of one image, with the raw maps and a record beside the figure; returns the record."""
    view = see(viewer, sample)
    path = folder / f"{name}.{kind}"
    write(draw([passes_row(sample, view)], "\n".join(captions(sample, view))), path)
    return keep(sample, [view], folder, name, path)


def comparison(
    viewers: Sequence[Viewer], samples: Iterable[tuple[str, Sample]], folder: Path, kind: str = "png"
) -> Any:
    """Draw several viewers side by side, a row an image; returns a record an image, with all of its views."""
    named = list(samples)
    views = [[see(viewer, sample) for viewer in viewers] for _, sample in named]
    path = folder / f"{COMPARISON}.{kind}"
    rows = viewers_rows([sample for _, sample in named], views)
    described = dict.fromkeys(described_maps(view.viewer, view.kind) for view in views[0])
    write(draw(rows, f"Where each model looks in its last pass: {'; '.join(described)}"), path)
    return [keep(sample, row, folder, name, path) for (name, sample), row in zip(named, views, strict=True)]


def keep(sample: Sample, views: Sequence[View], folder: Path, name: str, figure: Path) -> dict[str, Any]:
    """Write the raw maps (safetensors) and how they were made (JSON), and return the latter."""
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
        "image_size": [sample.image.height, sample.image.width],
        "figure": str(figure),
        "maps": str(maps),
        "toast": __version__,
        "views": [made(view, own) for own, view in zip(names, views, strict=True)],
    }
    write_json(folder / f"{name}.json", record)
    return record


def made(view: View, name: str) -> dict[str, Any]:
    """How a view was made, and what came out besides its maps."""
    viewer = view.viewer
    model, recorder = viewer.model, viewer.recorder
    backbone, steering = model.backbone, model.adapted.steering
    return {
        "name": name,
        "backbone": type(backbone.module).__name__,
        "backbone_fingerprint": model.backbone_fingerprint,
        "kind": view.kind,
        "layer": recorder.level,
        "head": viewer.head,
        "alpha": None if steering is None else steering.strength,
        "window": vars(view.window),
        "shape": list(view.maps["pass_one"].shape),
        "prefix_tokens_left_out": backbone.prefix_tokens,
        "largest_mismatch_with_fused_attention": view.mismatch,
        "pass_one": told(view.first),
        "pass_two": told(view.last),
        "share_inside": view.shares,
        "segments": {name: covering(found) for name, found in view.segments.items()},
    }


def told(verdict: Verdict | None) -> dict[str, Any] | None:
    """A verdict as JSON has it."""
    return None if verdict is None else {"prediction": verdict.label, "confidence": verdict.probability}


def captions(sample: Sample, view: View) -> list[str]:
    """What is said above a figure of one image: of what and whom it is, and how much lies on the outlined object."""
    lines = [f"{sample.name} · {view.viewer.name}: {described_maps(view.viewer, view.kind)}"]
    if view.viewer.classes is None:
        lines[0] += " · plain backbone, no run: one pass, nothing selected"
    lines += [f"{name}: {covering(found)}" for name, found in view.segments.items()]
    if view.shares:
        words = {"pass_one": "pass one", "similarity": "similarity", "pass_two": "pass two", "even": "an even map"}
        inside = ", ".join(f"{words[name]} {share:.0%}" for name, share in view.shares.items())
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
