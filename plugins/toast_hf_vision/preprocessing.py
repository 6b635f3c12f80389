"""The preprocessing of transformers' image processors, in toast's terms."""

from __future__ import annotations

from typing import Any, Literal

from toast_cli.plugin import Preprocessing
from toast_timm.crop import compute_crop_pct

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The names of Pillow's resampling filters, by number."""

BYTE = 255


def _get_sides(size: Any) -> tuple[int, int] | None:
    """Return height and width of a size with both, or None."""
    if isinstance(size, int):
        return size, size
    try:
        height, width = size["height"], size["width"]
    except (KeyError, TypeError):
        return None
    return None if height is None or width is None else (height, width)


def _get_shortest(size: Any) -> int | None:
    try:
        return size["shortest_edge"]
    except (KeyError, TypeError):
        return None


def read_preprocessing(settings: dict[str, Any], fallback: tuple[int, int]) -> Preprocessing:
    """Return the preprocessing of an image processor, given its settings.

    A processor that multiplies pixels by another factor than 1/255, or by none, has other mean and std here: ours
    apply to pixels between 0 and 1.

    Args:
        settings: The settings of the processor, with its defaults.
        fallback: Height and width of a processor that does not resize to a fixed size.
    """
    size = settings.get("size") if settings.get("do_resize", True) else None
    sides, shortest = _get_sides(size), _get_shortest(size)
    crop = _get_sides(settings.get("crop_size")) if settings.get("do_center_crop") else None
    mode: Literal["center", "squash"] = "squash"
    crop_pct = 1.0
    if sides is None and shortest is not None and crop is None and settings.get("crop_pct") is not None:
        # ConvNeXt: below 384 pixels, the shorter side is resized to size / crop_pct, and the centre is cropped.
        sides = (shortest, shortest)
        if shortest < 384:
            mode, crop_pct = "center", settings["crop_pct"]
    elif shortest is not None:
        sides, mode = crop or (shortest, shortest), "center"
        crop_pct = compute_crop_pct(min(sides), shortest)
    elif sides is not None and crop is not None and crop[0] <= sides[0] and crop[1] <= sides[1]:
        crop_pct, sides = compute_crop_pct(crop[0], sides[0]), crop
    elif sides is None:
        sides = crop or fallback
    factor = BYTE * (settings.get("rescale_factor", 1 / BYTE) if settings.get("do_rescale", True) else 1)
    normalizes = settings.get("do_normalize", True)
    mean = settings.get("image_mean") if normalizes else (0.0, 0.0, 0.0)
    std = settings.get("image_std") if normalizes else (1.0, 1.0, 1.0)
    resample = settings.get("resample")
    return Preprocessing(
        sides,
        tuple(value / factor for value in mean or (0.0, 0.0, 0.0)),  # type: ignore[arg-type]
        tuple(value / factor for value in std or (1.0, 1.0, 1.0)),  # type: ignore[arg-type]
        "bicubic" if resample is None else INTERPOLATIONS[int(resample)],
        crop_pct,
        mode,
    )
