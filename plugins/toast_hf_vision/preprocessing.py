"""The preprocessing of transformers' image processors, in toast's terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from transformers import AutoImageProcessor

from toast_cli.plugin import Backbone, Preprocessing, ToastError
from toast_timm.crop import compute_crop_pct

PROCESSOR_FILE = "preprocessor_config.json"

PROCESSOR_FILES = (PROCESSOR_FILE, "processor_config.json")

GREY = (0.5, 0.5, 0.5)
"""Mean and standard deviation where neither folder nor kind of model has an image processor."""

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


def load_processor(place: str | None) -> dict[str, Any] | None:
    """Return the settings of the image processor of a folder or repository, or None if it has none.

    Raises:
        ToastError: The folder has an image processor that cannot be loaded.
    """
    if place:
        try:
            return _list_settings(AutoImageProcessor.from_pretrained(place, trust_remote_code=False))
        except Exception as error:  # the hub, a foreign folder or a damaged file may raise anything
            if any((Path(place) / name).is_file() for name in PROCESSOR_FILES):
                raise ToastError(
                    f"The image processor in {place} could not be loaded.",
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                    f"Download {PROCESSOR_FILE} again, or remove it and set images.mean and images.std.",
                    code="weights.cannot-load",
                ) from error
    return None


def describe_preprocessing(
    place: str, file: Path | None, weights: str | None, settings: dict[str, Any] | None, backbone: Backbone
) -> str | None:
    """Return where the preprocessing comes from, unless it is that of the model that the user named."""
    if weights == "none":
        return None
    if settings is None:
        lacking = f"{place} has no {PROCESSOR_FILE}"
        if file is not None:
            lacking = f"neither {file} nor {place} records how images are prepared"
        return backbone.require_preprocessing().format_assumption(lacking)
    if weights is not None and file is None:
        return f"Weights from {weights}. Images are prepared as its {PROCESSOR_FILE} says."
    return None


def _list_settings(processor: Any) -> dict[str, Any]:
    settings = json.loads(processor.to_json_string())
    assert isinstance(settings, dict)
    return settings
