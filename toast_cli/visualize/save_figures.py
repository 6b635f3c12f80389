"""Attention figures on disk, each with its maps and a record; a figure never overwrites another one."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from toast_cli.attention.predicted_classes import format_class_shares
from toast_cli.data.base import Sample
from toast_cli.utils.files import write_json, write_tensors
from toast_cli.utils.hashing import hash_bytes
from toast_cli.utils.names import make_names_unique, number_names, to_file_name
from toast_cli.utils.tensor_fingerprints import hash_tensors
from toast_cli.utils.version import __version__
from toast_cli.visualize.figure_output import save_figure
from toast_cli.visualize.styles.base import FigureStyle
from toast_cli.visualize.styles.full import FULL
from toast_cli.visualize.styles.paper import PAPER
from toast_cli.visualize.view import AttentionViewer, ImageView, TopPrediction, compute_image_view

SOURCE_DIGEST_KEY = "made_of"
"""Key of the digest of models and images in a record."""
COMPARISON_PREFIX = "comparison"
"""Prefix of the file name of a figure of several viewers."""
MAX_NAME_LENGTH = 80
"""Largest number of bytes of a name in the file name of a comparison."""


def save_attention_figure(
    viewer: AttentionViewer, sample: Sample, folder: Path, name: str, kind: str = "png", style: FigureStyle = FULL
) -> dict[str, Any]:
    """Save the figure of one viewer and image, with the raw maps and a record; return the record."""
    view = compute_image_view(viewer, sample)
    digest = compute_source_digest([viewer], [style.name.encode(), sample.image.tobytes()])
    name = find_free_name(folder, to_file_name(name) + viewer.file_suffix, digest)
    path = folder / f"{name}.{kind}"
    save_figure(style.draw([sample], [[view]]), path)
    return save_maps(sample, [view], folder, name, path, digest)


def save_comparison_figure(
    viewers: Sequence[AttentionViewer],
    samples: Iterable[tuple[str, Sample]],
    folder: Path,
    kind: str = "png",
    style: FigureStyle = PAPER,
    mark: str = "",
) -> Any:
    """Save a figure of several viewers, with a row per image; return a record per image, with all of its views.

    `mark` is added to the name of the file.
    Without images, save nothing.
    """
    named = list(samples)
    if not named:
        return []
    views = [[compute_image_view(viewer, sample) for viewer in viewers] for _, sample in named]
    digest = compute_source_digest(viewers, [style.name.encode(), *(sample.image.tobytes() for _, sample in named)])
    stem = find_free_name(folder, get_comparison_name(viewers) + mark, digest, "*-{}.json")
    path = folder / f"{stem}.{kind}"
    save_figure(style.draw([sample for _, sample in named], views), path)
    return [
        save_maps(sample, row, folder, f"{to_file_name(name, MAX_NAME_LENGTH)}-{stem}", path, digest)
        for (name, sample), row in zip(named, views, strict=True)
    ]


def get_comparison_name(viewers: Sequence[AttentionViewer]) -> str:
    """Return the file name of several viewers, with their names and settings."""
    listed = "-".join([COMPARISON_PREFIX, *(viewer.name for viewer in viewers)])
    plain = "".join(character if character.isalnum() or character in "-_." else "-" for character in listed)
    return to_file_name(plain, MAX_NAME_LENGTH) + viewers[0].file_suffix


def save_maps(
    sample: Sample, views: Sequence[ImageView], folder: Path, name: str, figure: Path, digest: str
) -> dict[str, Any]:
    """Write the raw maps (safetensors) and the record (JSON); return the record, whose `made_of` is `digest`."""
    names = make_names_unique([view.viewer.name for view in views])
    tensors = {
        map if len(views) == 1 else f"{viewer_name}/{map}": tensor
        for viewer_name, view in zip(names, views, strict=True)
        for map, tensor in view.maps.items()
    }
    maps = folder / f"{name}.safetensors"
    write_tensors(maps, tensors)
    record = {
        **build_image_record(sample, views, names),
        SOURCE_DIGEST_KEY: digest,
        "figure": str(figure),
        "maps": str(maps),
    }
    write_json(folder / f"{name}.json", record)
    return record


def build_image_record(sample: Sample, views: Sequence[ImageView], names: Sequence[str]) -> dict[str, Any]:
    """Return the record of an image, without the paths of its files; `names` are those of the views."""
    return {
        "image": sample.name,
        "image_size": [sample.image.height, sample.image.width],
        "versions": get_library_versions(),
        "views": [describe_view(view, name) for view, name in zip(views, names, strict=True)],
    }


def describe_view(view: ImageView, name: str) -> dict[str, Any]:
    """Return the settings and the results of a view, except for its maps."""
    viewer = view.viewer
    model, recorder = viewer.model, viewer.recorder
    backbone, steering = model.backbone, model.adapted.steering
    preprocessing = backbone.require_preprocessing()
    return {
        **describe_model(viewer, name),
        "kind": view.kind,
        "layer": recorder.level,
        "head": viewer.head,
        "alpha": None if steering is None else steering.strength,
        "point": None if viewer.box is None else viewer.box.format(),
        "input_size": list(preprocessing.image_size),
        "images": viewer.images.model_dump(mode="json"),
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
        "window": vars(view.window),
        "shape": list(view.maps["pass_one"].shape),
        "prefix_tokens_left_out": backbone.prefix_tokens,
        "checks": None if view.checks is None else view.checks.to_dict(),
        "pass_one": convert_prediction(view.first),
        "pass_two": convert_prediction(view.last),
        "share_inside": view.shares,
        "segments": {name: format_class_shares(found) for name, found in view.segments.items()},
        "registers": None if view.registers is None else describe_registers(view.registers, view.maps),
    }


def describe_registers(registers: Tensor, maps: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the row and column of each register token, and their share of each attention map."""
    shares = {name: float(maps[name][registers].sum()) for name in ("pass_one", "pass_two") if name in maps}
    return {"cells": registers.nonzero().tolist(), "share": shares}


def describe_model(viewer: AttentionViewer, name: str) -> dict[str, Any]:
    """Return the run, method, data, backbone and weights of a viewer; paths are shortened to their last part."""
    model, recipe = viewer.model, viewer.recipe
    described: dict[str, Any] = {"name": name, "run": None, "run_fingerprint": None}
    if not viewer.plain:
        described |= {"run": viewer.name, "run_fingerprint": hash_tensors(model.get_trained_parameters())}
    if recipe is not None:
        weights = recipe.backbone.weights
        source = recipe.plugins.backbone.source
        if not viewer.plain:
            data = strip_folders(recipe.dataset.name)
            described |= {"method": recipe.method.name, "dataset": data, "seed": recipe.seed}
        described |= {
            "backbone": strip_folders(recipe.backbone.name),
            "weights": f"{source} (no file was named)" if weights is None else strip_folders(weights),
        }
    return described | {
        "network": type(model.backbone.module).__name__,
        "backbone_fingerprint": model.backbone_fingerprint,
    }


def strip_folders(name: str) -> str:
    """Return `KIND:PATH` or a path, with the path shortened to its last part."""
    kinds = re.match(r"([\w-]+:)*", name)
    assert kinds is not None  # it matches nothing too
    return kinds[0] + name[kinds.end() :].rstrip("/").rsplit("/", 1)[-1]


def get_library_versions() -> dict[str, str]:
    """Return the versions of toast and of the libraries that affect maps."""
    return {"toast": __version__, **{name: version(name) for name in ("torch", "torchvision", "timm", "transformers")}}


def convert_prediction(prediction: TopPrediction | None) -> dict[str, Any] | None:
    """Return a prediction for a JSON record."""
    if prediction is None:
        return None
    if prediction.value is not None:
        return {"prediction": prediction.label, "value": prediction.value}
    return {"prediction": prediction.label, "confidence": prediction.probability}


def compute_source_digest(viewers: Sequence[AttentionViewer], images: Iterable[bytes]) -> str:
    """Return a digest of the models and images of a figure; a figure may overwrite one with the same digest."""
    parts = [repr((viewer.name, viewer.model.backbone_fingerprint)).encode() for viewer in viewers]
    parts += [hash_tensors(viewer.model.get_trained_parameters()).encode() for viewer in viewers]
    return hash_bytes(*parts, *images).hex()[:16]


def find_free_name(folder: Path, name: str, own: str, records: str = "{}.json") -> str:
    """Return the name, with a number if a record of that name in the folder has another digest than `own`.

    `records` is the pattern of the records' file names, where `{}` stands for the name.
    """

    def is_free(name: str) -> bool:
        return all(_read_source_digest(file) == own for file in folder.glob(records.format(glob.escape(name))))

    return next(filter(is_free, number_names(name)))


def _read_source_digest(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(SOURCE_DIGEST_KEY)
    except (OSError, ValueError, AttributeError):  # not a record of toast
        return None
