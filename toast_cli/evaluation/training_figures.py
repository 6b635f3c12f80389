"""The pictures of a run in progress: its curves, its first batch, its worst mistakes and its attention maps."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toast_cli.data.base import get_split_kind
from toast_cli.evaluation.mistakes import describe_mistake, find_worst_mistakes
from toast_cli.storage.run_folder import read_metrics
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.training.session import Session
from toast_cli.training.tracking.figures import RunFigures
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import remove_file
from toast_cli.visualize.answer_figures import Mistake, draw_mistakes
from toast_cli.visualize.data_preview import draw_batch
from toast_cli.visualize.figure import draw_figure
from toast_cli.visualize.figure_output import render_figure, save_figure
from toast_cli.visualize.figure_panels import build_passes_row
from toast_cli.visualize.training_curves import draw_training_curves
from toast_cli.visualize.view import AttentionViewer, compute_image_view

CURVES_FIGURE = "curves.png"
MAX_BATCH_IMAGES = 36
"""Largest number of images of the first batch that are drawn."""
MAX_MISTAKES = 12
"""Largest number of mistakes that are drawn."""
ATTENTION_IMAGES = 4
"""Number of images whose attention is drawn. They are spread evenly over the split."""


class TrainingFigures(RunFigures):
    """The pictures of a run, drawn with `visualize`. Names are those under which trackers list them."""

    def draw_first_batch(self, session: Session, batch: Mapping[str, Any]) -> dict[str, Image.Image]:
        """Return the first batch as the model gets it, before mixup; nothing if it has no images."""
        backbone = session.model.backbone
        if backbone.preprocessing is None or "image" not in batch:
            return {}
        few = {name: tensor[:MAX_BATCH_IMAGES].cpu() for name, tensor in batch.items()}
        return {"first_batch": _to_image(draw_batch(few, session.data, session.recipe, backbone))}

    def draw_results(self, session: Session, split: str, answers: SplitAnswers | None) -> dict[str, Image.Image]:
        """Return the worst mistakes of the selected model, and its attention on a few images of a split.

        A stream has neither, because its images cannot be read again one by one. A sharded model has no attention maps,
        because all of its processes would have to compute them.
        """
        samples, preprocessing = session.data.splits.get(split), session.model.backbone.preprocessing
        if samples is None or preprocessing is None or get_split_kind(samples) == "stream":
            return {}
        pictures = {}
        if answers is not None and (mistakes := list(_load_mistakes(answers))):
            pictures["worst_mistakes"] = _to_image(draw_mistakes(mistakes, f"Worst mistakes, {split} split"))
        if session.model.backbone.has_attention and not session.recipe.training.shard:
            pictures["attention"] = _draw_attention(session, split)
        return pictures

    def write_curves(self, folder: Path) -> None:
        """Draw the metrics of a run over its epochs. Before the first epoch has ended, there is no picture."""
        figure = draw_training_curves(list(read_metrics(folder / "metrics.jsonl")), folder.resolve().name)
        if figure is None:
            remove_file(folder / CURVES_FIGURE)
        else:
            save_figure(figure, folder / CURVES_FIGURE)


def _load_mistakes(answers: SplitAnswers) -> Iterator[Mistake]:
    """Yield the worst mistakes with their images, without those that cannot be read now."""
    for row in find_worst_mistakes(answers, MAX_MISTAKES):
        try:
            image = answers.samples.load(int(answers.columns["index"][row])).image
        except ToastError:
            continue
        yield Mistake(image, *describe_mistake(answers, row))


def _draw_attention(session: Session, split: str) -> Image.Image:
    """Draw both passes over a few images of a split."""
    model, recipe, samples = session.model, session.recipe, session.data.splits[split]
    was_training = model.training
    viewer = AttentionViewer(recipe.method.name, model.eval(), recipe.images, session.data.classes, recipe=recipe)
    indices = dict.fromkeys(np.linspace(0, len(samples) - 1, ATTENTION_IMAGES).astype(int).tolist())
    loaded = [samples.load(index) for index in indices]
    try:
        rows = [build_passes_row(sample, compute_image_view(viewer, sample)) for sample in loaded]
    finally:
        model.train(was_training)
    return _to_image(draw_figure(rows, f"Attention of both passes, {split} split"))


def _to_image(figure: Any) -> Image.Image:
    return Image.open(io.BytesIO(render_figure(figure, "png"))).convert("RGB")
