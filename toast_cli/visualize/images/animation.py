"""A moving picture (GIF): the map of the second pass as the strength of the feedback grows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from toast_cli.attention.strength_sweep import StrengthFrame, sweep_strength
from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow
from toast_cli.utils.files import write_atomically, write_json, write_tensors
from toast_cli.utils.names import to_file_name
from toast_cli.visualize.figure import FigurePanel, FigureRow, draw_panel, shrink_image
from toast_cli.visualize.figure_output import render_figure
from toast_cli.visualize.figure_panels import build_shared_scale
from toast_cli.visualize.map_color_scales import ColorScale
from toast_cli.visualize.save_figures import (
    SOURCE_DIGEST_KEY,
    build_image_record,
    compute_source_digest,
    find_free_name,
)
from toast_cli.visualize.styles.captions import format_answer
from toast_cli.visualize.styles.simple import crop_to_window
from toast_cli.visualize.view import AttentionViewer, compute_image_view, get_top_prediction

FRAMES = 21
"""Number of strengths from zero to the largest."""
FRAME_TIME, LAST_FRAME_TIME = 130, 1500
"""How long a frame is shown, in milliseconds, and how long the first and the last."""
FRAME_WIDTH, FRAME_DPI = 4.2, 100
HEADER_HEIGHT, FOOTER_HEIGHT = 0.55, 0.45
"""Space above and below the picture, in inches."""


def save_animation(viewer: AttentionViewer, sample: Sample, path: Path, largest: float = 1.0) -> list[StrengthFrame]:
    """Write a GIF that sweeps the strength of the feedback from zero to `largest`, and return its frames.

    A frame shows the map over the picture, the strength, and the predicted class. All frames share one first pass and
    one colour scale.

    Raises:
        UsageError: the model has no feedback path.
        ToastError: the file cannot be written.
    """
    images = viewer.transform(sample.image)[0][None].to(next(viewer.model.parameters()).device)
    strengths = [largest * step / (FRAMES - 1) for step in range(FRAMES)]
    frames = list(sweep_strength(viewer.recorder, images, strengths))
    pictures = render_frames(viewer, sample, frames)
    times = [FRAME_TIME] * len(pictures)
    times[0] = times[-1] = LAST_FRAME_TIME
    # One palette for all frames: a palette of its own for each would flicker.
    strip = Image.new("RGB", (3 * pictures[0].width, pictures[0].height))
    for place, number in enumerate((0, len(pictures) // 2, -1)):
        strip.paste(pictures[number], (place * pictures[0].width, 0))
    palette = strip.quantize(256, Image.Quantize.MAXCOVERAGE)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with write_atomically(path) as temporary:
        indexed[0].save(
            temporary, format="GIF", save_all=True, append_images=indexed[1:], duration=times, loop=0, optimize=True
        )
    return frames


def save_animation_record(
    viewer: AttentionViewer, sample: Sample, folder: Path, name: str, largest: float = 1.0
) -> dict[str, Any]:
    """Save an animation with the maps of its frames and a record; return the record."""
    digest = compute_source_digest([viewer], [b"animation", sample.image.tobytes()])
    stem = find_free_name(folder, f"{to_file_name(name)}-strength{viewer.file_suffix}", digest)
    path, maps = folder / f"{stem}.gif", folder / f"{stem}.safetensors"
    view = compute_image_view(viewer, sample)
    frames = save_animation(viewer, sample, path, largest)
    write_tensors(maps, {f"strength_{frame.strength:.3f}": frame.map[0].float().cpu() for frame in frames})
    record = {
        **build_image_record(sample, [view], [viewer.name]),
        SOURCE_DIGEST_KEY: digest,
        "animation": str(path),
        "maps": str(maps),
        "strengths": [frame.strength for frame in frames],
    }
    write_json(folder / f"{stem}.json", record)
    return record


def render_frames(viewer: AttentionViewer, sample: Sample, frames: Sequence[StrengthFrame]) -> list[Image.Image]:
    """Return the frames as pictures of one size."""
    image, mask = crop_to_window(sample, viewer.transform.compute_window(sample.image))
    maps = [(frame.map[0] * frame.map[0].numel()).float().cpu().numpy() for frame in frames]
    scale = build_shared_scale("attention", maps)
    row = FigureRow(shrink_image(image), (), mask if image.size == shrink_image(image).size else None)
    pictures = []
    for frame, map in zip(frames, maps, strict=True):
        figure = _draw_frame(viewer, row, frame, map, scale, frames[-1].strength)
        with Image.open(io.BytesIO(render_figure(figure, "png", FRAME_DPI))) as picture:
            pictures.append(picture.convert("RGB"))
    return pictures


def _draw_frame(
    viewer: AttentionViewer, row: FigureRow, frame: StrengthFrame, map: np.ndarray, scale: ColorScale, largest: float
) -> Figure:
    tall = FRAME_WIDTH * min(max(row.image.height / row.image.width, 0.3), 1.6)
    height = HEADER_HEIGHT + tall + FOOTER_HEIGHT
    figure = Figure(figsize=(FRAME_WIDTH, round(height * FRAME_DPI) / FRAME_DPI))
    axis = figure.add_axes((0, FOOTER_HEIGHT / height, 1, tall / height))
    panel = FigurePanel("", CropWindow(0, 0, row.image.width, row.image.height), map, scale)
    draw_panel(axis, replace(row, panels=(panel,)), panel, row.image)
    figure.text(0.02, 1 - 0.08 / height, f"Strength of TOAST: {frame.strength:.2f}", fontsize=12, va="top")
    bar = figure.add_axes((0.02, 1 - 0.46 / height, 0.96, 0.1 / height))
    bar.barh([0], [largest], color="#dddddd")
    bar.barh([0], [frame.strength], color="#b5367a")
    bar.set_xlim(0, largest or 1)
    bar.set_axis_off()
    if viewer.classes is not None and viewer.model.objective.class_scores and not viewer.model.objective.dense:
        with torch.no_grad():
            answer = get_top_prediction(frame.logits, viewer)
        figure.text(0.02, 0.1 / height, format_answer(answer), fontsize=14, va="bottom", fontweight="bold")
    return figure
