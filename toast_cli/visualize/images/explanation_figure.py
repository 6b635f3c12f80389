"""A figure of several explanations of one prediction, with their deletion and insertion scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from toast_cli.attention.explanations.base import ExplainedBatch, Explanation
from toast_cli.attention.explanations.registry import ExplainedImage, explain_batch
from toast_cli.data.base import Sample
from toast_cli.utils.errors import UsageError
from toast_cli.utils.files import write_json, write_tensors
from toast_cli.utils.names import shorten_name, to_file_name
from toast_cli.visualize.figure import MAX_HEADING_LENGTH, FigurePanel, FigureRow, draw_figure
from toast_cli.visualize.figure_output import save_figure
from toast_cli.visualize.figure_panels import get_label_name
from toast_cli.visualize.map_color_scales import ColorScale
from toast_cli.visualize.save_figures import (
    SOURCE_DIGEST_KEY,
    compute_source_digest,
    describe_view,
    find_free_name,
    get_library_versions,
)
from toast_cli.visualize.styles.captions import format_answer
from toast_cli.visualize.view import AttentionViewer, ImageView, compute_image_view

PASS_NAMES = {"pass_one": "without TOAST", "pass_two": "with TOAST"}
SCALE = ColorScale("share of the largest value of each map", "inferno", 0.0, 1.0)


def save_explanation_figure(
    viewer: AttentionViewer,
    explanations: Sequence[Explanation],
    samples: Iterable[tuple[str, Sample]],
    folder: Path,
    kind: str = "png",
) -> list[dict[str, Any]]:
    """Save a figure of explanations, with the maps and a record of their scores; return a record per image.

    Without images, save nothing.

    Raises:
        UsageError: the model has no classes, a library is missing, or the model does not fit an explanation.
        ToastError: an explanation does not reproduce the model.
    """
    objective = viewer.model.objective
    if viewer.classes is None or not objective.class_scores or objective.dense or objective.target == "number":
        raise UsageError(
            "--explain needs a tuned model that gives a class to each image.",
            what_to_do="Pass --run with a run that classifies images.",
            code="attention.unsupported-task",
        )
    named = list(samples)
    if not named:
        return []
    explained = [(sample, *explain_sample(viewer, explanations, sample)) for _, sample in named]
    digest = compute_source_digest([viewer], [b"explanations", *(sample.image.tobytes() for _, sample in named)])
    name = named[0][0] if len(named) == 1 else "images"
    stem = find_free_name(folder, f"{to_file_name(name)}-explanations{viewer.file_suffix}", digest)
    save_figure(draw_explanations(explanations, explained), folder / f"{stem}.{kind}")
    maps = folder / f"{stem}.safetensors"
    write_tensors(
        maps,
        {
            "/".join((*[own] * (len(named) > 1), *key)): map
            for (own, _), (_, _, image) in zip(named, explained, strict=True)
            for key, map in image.maps.items()
        },
    )
    records = [
        {
            "image": sample.name,
            "figure": str(folder / f"{stem}.{kind}"),
            "maps": str(maps),
            "views": [describe_view(view, viewer.name)],
            "scores": {"/".join(key): scores for key, scores in image.scores.items()},
            "random": image.random,
        }
        for sample, view, image in explained
    ]
    record = {SOURCE_DIGEST_KEY: digest, "versions": get_library_versions(), "images": records}
    write_json(folder / f"{stem}.json", record)
    return records


def explain_sample(
    viewer: AttentionViewer, explanations: Sequence[Explanation], sample: Sample
) -> tuple[ImageView, ExplainedImage]:
    """Return the view of an image, and the explanations of its predicted class or of the viewer's chosen one."""
    view = compute_image_view(viewer, sample)
    images = viewer.transform(sample.image)[0][None].to(next(viewer.model.parameters()).device)
    answer = view.last or view.first
    assert answer is not None and viewer.classes is not None
    outputs = torch.tensor([viewer.classes.index(answer.label)], device=images.device)
    (explained,) = explain_batch(explanations, ExplainedBatch(viewer.model, images, outputs, viewer.level, viewer.head))
    return view, explained


def draw_explanations(
    explanations: Sequence[Explanation], explained: Sequence[tuple[Sample, ImageView, ExplainedImage]]
) -> Figure:
    """Draw a row per image and pass, and a column per explanation, each with its scores."""
    rows = []
    for sample, view, image in explained:
        passes = [name for name in PASS_NAMES if (explanations[0].name, name) in image.maps]
        for name in passes:
            answer = view.first if name == "pass_one" and view.first is not None else view.last
            heading = [PASS_NAMES[name] if len(passes) > 1 else "", format_answer(answer)]
            if label := get_label_name(sample, view):
                heading.append(f"true: {shorten_name(label, MAX_HEADING_LENGTH)}")
            panels = [FigurePanel("\n".join(filter(None, heading)), view.window)]
            for explanation in explanations:
                key = (explanation.name, name)
                map = image.maps[key].clamp_min(0)
                panels.append(
                    FigurePanel(
                        f"{explanation.title}\n{format_scores(image.scores[key])}",
                        view.window,
                        (map / map.amax().clamp_min(1e-12)).numpy(),
                        SCALE,
                    )
                )
            rows.append(FigureRow(sample.image, tuple(panels), sample.mask))
    chance = {
        kind: sum(image.random[kind] for *_, image in explained) / len(explained) for kind in ("deletion", "insertion")
    }
    last = explained[0][1].last or explained[0][1].first
    what = f"“{last.label}”" if len(explained) == 1 and last is not None else "the last prediction"
    title = (
        f"{explained[0][1].viewer.name}: which patches {what} depends on. Deletion (lower is better): the mean "
        "probability of the class while the brightest patches are removed first. Insertion (higher is better): while "
        f"they are added first. Patches in random order: {format_scores(chance)}."
    )
    return draw_figure(rows, title)


def format_scores(scores: Mapping[str, float]) -> str:
    """Return scores as text: `deletion 0.21, insertion 0.63`."""
    return ", ".join(f"{kind} {value:.2f}" for kind, value in scores.items())
