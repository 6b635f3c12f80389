"""A white sprite on black, as in dSprites: a square, an ellipse or a heart."""

from __future__ import annotations

import numpy as np

SPRITE_SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POSITION_COUNT, ORIENTATION_COUNT, BIN_COUNT = 32, 40, 16
"""Number of positions and orientations in dSprites, and number of classes that VTAB bins them into."""
SPRITE_RADIUS = 0.17
"""Half the width of the largest sprite, relative to the side of the image."""


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a signed field: negative inside, in units of the radius of the sprite."""
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a signed field: negative inside, in units of the radius of the sprite."""
    return (np.hypot(u / 0.55, v) - 1) * 0.55


def heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a signed field: negative inside, in units of the radius of the sprite."""
    lobes = np.hypot(np.abs(u) - 0.43, v + 0.3) - 0.52
    point = np.maximum(0.71 * (np.abs(u) + v) - 0.62, -0.1 - v)
    return np.minimum(lobes, point)


SPRITE_SHAPES = (square, ellipse, heart)


def draw_sprite_scene(
    rng: np.random.Generator, side: int, column: int | None, turn: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a sprite with random shape, size and vertical position.

    Args:
        rng: The random generator.
        side: Height and width of the image in pixels.
        column: Bin (of 16) of the horizontal position; None for any position.
        turn: Bin (of 16) of the orientation; None for any orientation.

    Returns:
        The image `[side, side, 3]` uint8 and the sprite's mask `[side, side]` bool.
    """
    x = _sample_value(rng, POSITION_COUNT, column)
    y = int(rng.integers(POSITION_COUNT))
    orientation = _sample_value(rng, ORIENTATION_COUNT, turn)
    shape, scale = (
        SPRITE_SHAPES[int(rng.integers(len(SPRITE_SHAPES)))],
        SPRITE_SCALES[int(rng.integers(len(SPRITE_SCALES)))],
    )
    radius = SPRITE_RADIUS * side * scale
    margin = 1.1 * SPRITE_RADIUS * side
    center_x, center_y = (margin + at / (POSITION_COUNT - 1) * (side - 2 * margin) for at in (x, y))
    angle = 2 * np.pi * orientation / ORIENTATION_COUNT
    at = np.arange(side) + 0.5
    dx, dy = (at[None, :] - center_x) / radius, (at[:, None] - center_y) / radius
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    cover = np.clip(0.5 - shape(u, v) * radius, 0, 1)
    pixels = np.repeat((255 * cover).astype(np.uint8)[..., None], 3, axis=2)
    return pixels, cover > 0.5


def _sample_value(rng: np.random.Generator, values: int, bin_index: int | None) -> int:
    """Draw one of `range(values)` from a bin (of 16); from all values if `bin_index` is None."""
    members = [value for value in range(values) if bin_index is None or value * BIN_COUNT // values == bin_index]
    return members[int(rng.integers(len(members)))]
