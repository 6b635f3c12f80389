"""The parts of the page that are HTML: progress, messages, test pictures, and the pictures with their maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.utils.errors import ToastError
from toast_cli.utils.formatting import to_data_uri

if TYPE_CHECKING:
    from PIL.Image import Image

    from toast_cli.data.base import Sample
    from toast_cli.serve.page.image_explorer import LookSettings, PageImage, RunLook
    from toast_cli.visualize.heat_overlay import CaptionedMap

ASSETS = Path(__file__).parent / "assets"
PHOTO_SIDE, THUMBNAIL_SIDE = 900, 168
"""Largest side of the photograph and of a test picture on the page, in pixels."""
EMPTY_CANVAS = (
    '<div class="canvas empty">Drop a photograph above, or pick a test picture, to see where the model looks.</div>'
)

POINTING_HINT = (
    '<p class="hint"><span class="badge">Experiment</span> Click on something in a picture, or drag a box around it: '
    "TOAST looks for that instead.</p>"
)


def read_asset(name: str) -> str:
    """Return a script or a style sheet of the page."""
    return (ASSETS / name).read_text(encoding="utf-8")


def format_progress(stage: str, done: float) -> str:
    """Return a progress bar; empty when all is done."""
    if done >= 1:
        return ""
    return (
        f'<div class="progress" role="status"><p>{escape(stage)} …</p>'
        f'<div class="track"><div class="fill" style="width:{100 * done:.0f}%"></div></div></div>'
    )


def format_error(error: ToastError) -> str:
    """Return a message about an error: what is wrong, why, and what to do."""
    more = "".join(f"<br>{escape(part)}" for part in (*error.reasons, error.what_to_do) if part)
    return f'<div class="note wrong" role="alert"><b>{escape(error.what)}</b>{more}</div>'


def format_note(text: str, code: str = "") -> str:
    """Return a message that something worked, with a command perhaps."""
    shown = f"<br><code>{escape(code)}</code>" if code else ""
    return f'<div class="note fine" role="status">{escape(text)}{shown}</div>'


def encode_photo(image: Image, side: int) -> str:
    """Return an image as a data URI of a JPEG that is not larger than `side` pixels."""
    from PIL import Image as Pillow

    small = image.convert("RGB")
    small.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return to_data_uri(stream.getvalue(), "jpeg")


def encode_heat(map: CaptionedMap) -> str:
    """Return the picture of a map as a data URI."""
    from toast_cli.visualize.heat_overlay import draw_heat

    assert map.map is not None
    stream = io.BytesIO()
    draw_heat(map.map, map.high, map.colours).save(stream, "PNG", compress_level=1)
    return to_data_uri(stream.getvalue())


def format_choices(samples: Sequence[tuple[int, Sample]]) -> str:
    """Return a strip of buttons with test pictures."""
    buttons = "".join(
        f'<button type="button" data-index="{index}" aria-pressed="false" title="Test picture {index}">'
        f'<img alt="Test picture {index}" src="{encode_photo(sample.image, THUMBNAIL_SIDE)}"></button>'
        for index, sample in samples
    )
    return f'<div class="choices">{buttons}</div>'


def format_canvas(image: PageImage, looks: Sequence[RunLook], settings: LookSettings) -> str:
    """Return the photograph under every map of every run, with what each pass answers."""
    photo = encode_photo(image.sample.image, PHOTO_SIDE)
    cards = "".join(_format_card(image, look, settings, len(looks) > 1) for look in looks)
    hint = POINTING_HINT if any("pass_two" in look.view.maps for look in looks) else ""
    return f'{hint}<div class="canvas" style="--photo:url({photo})">{cards}</div>'


def _format_card(image: PageImage, look: RunLook, settings: LookSettings, named: bool) -> str:
    from toast_cli.serve.page.look_captions import describe_page_look, list_captioned_maps

    heading = f"<h2>{escape(look.view.viewer.name)}</h2>" if named else ""
    if "pass_two" not in look.view.maps:
        settings = replace(settings, box=None)  # it has no second pass that pointing could steer
    maps = list_captioned_maps(image, look, settings)
    columns = min(len(maps), 2) if named else len(maps)
    panels = "".join(_format_panel(image, each, settings) for each in maps)
    summary = "".join(f'<p class="summary">{escape(line)}</p>' for line in describe_page_look(image, look, settings))
    beside, below = (f"<div>{summary}</div>", "") if columns < len(maps) else ("", summary)
    grid = f'<div class="panels{" one" * (columns == 1)}" style="--columns:{columns}">{panels}{beside}</div>'
    return f'<section class="card">{heading}{grid}{below}</section>'


def _format_panel(image: PageImage, each: CaptionedMap, settings: LookSettings) -> str:
    width, height = image.sample.image.size
    assert each.window is not None
    title, *rest = each.caption.split("\n")
    box = {
        "left": each.window.left / width,
        "top": each.window.top / height,
        "width": each.window.width / width,
        "height": each.window.height / height,
    }
    place = ";".join(f"{name}:{100 * share:.3f}%" for name, share in box.items())
    whole = box["left"] <= 0.001 and box["top"] <= 0.001 and box["width"] >= 0.998 and box["height"] >= 0.998
    picked = ""
    if settings.box is not None:
        chosen = settings.box
        marks = {"left": chosen.left / width, "top": chosen.top / height}
        if not chosen.is_point:
            marks |= {"width": chosen.width / width, "height": chosen.height / height}
        style = ";".join(f"{name}:{100 * share:.3f}%" for name, share in marks.items())
        picked = f'<div class="picked{" point" if chosen.is_point else ""}" style="{style}"></div>'
    lines = "".join(f"<small>{escape(line)}</small>" for line in rest[1:])
    answer = f'<span class="answer {_get_mark(rest[0])}">{escape(rest[0])}</span>' if rest and rest[0] else ""
    return (
        f'<figure class="panel"><div class="stage" style="aspect-ratio:{width}/{height}">'
        f'<img class="heat" style="{place}" alt="{escape(title)}" decoding="sync" draggable="false" '
        f'src="{encode_heat(each)}"><div class="frame{" whole" if whole else ""}" style="{place}"></div>{picked}</div>'
        f"<figcaption><strong>{escape(title)}</strong>{answer}{lines}</figcaption></figure>"
    )


def _get_mark(answer: str) -> str:
    return {"✓": "right", "✗": "wrong"}.get(answer[-1:], "")
