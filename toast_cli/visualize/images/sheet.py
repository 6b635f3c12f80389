"""Many images in few files: one contact sheet and one page, with the maps and the records of all images."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from toast_cli.data.base import Sample
from toast_cli.utils.files import write_json, write_tensors, write_text
from toast_cli.utils.formatting import render_template, to_data_uri
from toast_cli.utils.hashing import hash_bytes
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.figure import draw_panel, shrink_image
from toast_cli.visualize.figure_output import render_figure, save_figure
from toast_cli.visualize.figure_panels import get_label_names, is_right
from toast_cli.visualize.save_figures import (
    SOURCE_DIGEST_KEY,
    build_image_record,
    compute_source_digest,
    find_free_name,
)
from toast_cli.visualize.styles.base import measure_lines, wrap_text, write_lines
from toast_cli.visualize.styles.captions import describe_maps, format_answer, write_register_note, write_sentence
from toast_cli.visualize.styles.simple import RIGHT_COLOR, WRONG_COLOR, build_simple_row
from toast_cli.visualize.view import AttentionViewer, ImageView, compute_image_view

SHEET_NAME = "images"
"""Name of the files without their suffixes."""
MAX_SHEET_IMAGES = 48
"""Largest number of images on the contact sheet, the first ones."""
MAX_PAGE_IMAGES = 1000
"""Largest number of images on the page, so that browsers can open it."""
PANEL_SIDE, STRIP_DPI, STRIP_QUALITY = 1.3, 180, 85
"""Side of a panel in inches, its resolution, and the quality of a JPEG file."""
SHEET_DPI = 110
"""Resolution of the contact sheet."""
CAPTION_LENGTH = 34


@dataclass(frozen=True)
class SheetImage:
    """An image on a sheet: its panels side by side as a JPEG file, and its texts."""

    name: str
    strip: bytes
    answer: str
    truth: str
    right: bool | None
    sentence: str
    note: str


def save_image_sheet(
    viewer: AttentionViewer, samples: Iterable[tuple[str, Sample]], folder: Path, kind: str = "png"
) -> list[dict[str, Any]]:
    """Save a contact sheet and a page of images, all maps in one file, and all records in another.

    Images are read one at a time. Each has its own colour scale. Without images, nothing is saved.

    Returns:
        A record per image.
    """
    images: list[SheetImage] = []
    records: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    digests: list[bytes] = []
    for name, sample in samples:
        view = compute_image_view(viewer, sample)
        if len(images) < MAX_PAGE_IMAGES:
            images.append(build_sheet_image(sample, view))
        tensors |= {f"{name}/{map}": tensor for map, tensor in view.maps.items()}
        records.append(build_image_record(sample, [view], [viewer.name]))
        digests.append(hash_bytes(sample.image.tobytes()))
    if not records:
        return []
    digest = compute_source_digest([viewer], [b"sheet", *digests])
    stem = folder / find_free_name(folder, SHEET_NAME + viewer.file_suffix, digest)
    figure, page, maps = (stem.with_name(f"{stem.name}.{suffix}") for suffix in (kind, "html", "safetensors"))
    title = f"{viewer.name}: {describe_maps(viewer, records[0]['views'][0]['kind'])}"
    save_figure(draw_image_sheet(images, len(records), title), figure, SHEET_DPI)
    write_text(page, render_image_page(images, len(records), title, records))
    write_tensors(maps, tensors)
    paths = {"figure": str(figure), "page": str(page), "maps": str(maps)}
    records = [{**record, **paths, SOURCE_DIGEST_KEY: digest} for record in records]
    write_json(stem.with_name(f"{stem.name}.json"), {SOURCE_DIGEST_KEY: digest, "images": records})
    return records


def build_sheet_image(sample: Sample, view: ImageView) -> SheetImage:
    """Return an image for a sheet: the part that the model sees, with its map or maps."""
    row, _ = build_simple_row(sample, view)
    tall = PANEL_SIDE * min(max(row.image.height / row.image.width, 0.5), 1.5)
    figure = Figure(figsize=(PANEL_SIDE * len(row.panels), tall))
    small = shrink_image(row.image)
    for number, panel in enumerate(row.panels):
        axis = figure.add_axes((number / len(row.panels), 0, 1 / len(row.panels) * 0.985, 1))
        draw_panel(axis, row, panel, small)
    with Image.open(io.BytesIO(render_figure(figure, "png", STRIP_DPI))) as drawn:
        file = io.BytesIO()
        drawn.convert("RGB").save(file, "JPEG", quality=STRIP_QUALITY)
    names, answer = get_label_names(sample, view), view.last or view.first
    right = None if answer is None else is_right(answer, names, view)
    return SheetImage(
        sample.name,
        file.getvalue(),
        format_answer(answer),
        ", ".join(names or ()),
        right,
        write_sentence(sample, view),
        write_register_note(view),
    )


def draw_image_sheet(images: Sequence[SheetImage], count: int, title: str) -> Figure:
    """Draw the first images, each with its panels, its name and its answer; `count` is the number of all images."""
    shown = images[:MAX_SHEET_IMAGES]
    pictures = []
    for image in shown:
        with Image.open(io.BytesIO(image.strip)) as strip:
            pictures.append(strip.convert("RGB"))
    panels = round(max(picture.width for picture in pictures) / (PANEL_SIDE * STRIP_DPI))
    columns = 1 if len(shown) < 3 else 2 if len(shown) < 9 else 3
    rows = math.ceil(len(shown) / columns)
    width = columns * (PANEL_SIDE * panels + 0.15) + 0.15
    tall = max(picture.height for picture in pictures) / STRIP_DPI
    more = f" The first {len(shown)} of {count:,} images; the page has more." if count > len(shown) else ""
    looks = ("the picture", "where it looks") if panels == 2 else ("the picture", "without TOAST", "with TOAST")
    legend = f"From left to right: {', '.join(looks)}. Each image has its own colour scale; bright: looked at most."
    head, below = wrap_text(f"{title}.{more}", width - 0.3, 11), wrap_text(legend, width - 0.3, 9)
    top_space = 0.2 + measure_lines(len(head), 11) + measure_lines(len(below), 9)
    height = rows * (tall + 0.45) + top_space
    figure = Figure(figsize=(width, height))
    write_lines(figure, head, 0.15, height - 0.08, 11)
    write_lines(figure, below, 0.15, height - 0.1 - measure_lines(len(head), 11), 9, color="#444444")
    for number, (image, picture) in enumerate(zip(shown, pictures, strict=True)):
        left = 0.15 + (number % columns) * (PANEL_SIDE * panels + 0.15)
        top = height - top_space - (number // columns) * (tall + 0.45)
        own = picture.height / STRIP_DPI, picture.width / STRIP_DPI
        axis = figure.add_axes((left / width, (top - own[0]) / height, own[1] / width, own[0] / height))
        axis.imshow(picture, aspect="auto", interpolation="antialiased")
        axis.set_axis_off()
        mark, color = {None: ("", "#222222"), True: (" ✓", RIGHT_COLOR), False: (" ✗", WRONG_COLOR)}[image.right]
        text = f"{shorten_name(image.name, CAPTION_LENGTH)}: {image.answer}{mark}".rstrip(": ")
        figure.text(left / width, (top - own[0] - 0.05) / height, text, fontsize=9, va="top", color=color)
    return figure


def render_image_page(images: Sequence[SheetImage], count: int, title: str, records: Sequence[dict[str, Any]]) -> str:
    """Return a self-contained page of the images, with a sentence on each."""
    known = [image.right for image in images if image.right is not None]
    registers = [record["views"][0]["registers"] for record in records]
    held = [found["share"] for found in registers if found is not None and found["cells"]]
    facts = []
    if known:
        facts.append(f"The model is right on {sum(known):,} of {len(known):,} images whose true class is known.")
    if held:
        share = sum(each.get("pass_two", each["pass_one"]) for each in held) / len(held)
        facts.append(
            f"{len(held):,} of {count:,} images have register tokens (×), which hold {share:.0%} of the attention "
            "there on average. They are the network's own scratch space."
        )
    if count > len(images):
        facts.append(f"The first {len(images):,} of {count:,} images are shown.")
    return render_template(
        "visualize/templates/images.html",
        title=title,
        facts=facts,
        images=[
            {
                "name": image.name,
                "source": to_data_uri(image.strip, "jpeg"),
                "sentence": image.sentence,
                "truth": image.truth,
                "mark": {None: "", True: "right", False: "wrong"}[image.right],
                "note": image.note,
            }
            for image in images
        ],
    )
