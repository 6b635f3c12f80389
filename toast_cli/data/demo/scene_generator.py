"""Drawing of the demo scenes with NumPy and a random generator.

An object has a kind (its outline) and a marking (the pattern on it). Every kind can have every marking, so one does not
predict the other. Shapes are signed fields over the coordinates of the object: negative inside, positive outside, with
`u` to the right and `v` downwards in units of its radius. A soft step, one pixel wide, turns a field into coverage,
which gives smooth edges and an exact mask. A horizontal flip maps every shape to itself or to a shape of the same
class, so flipping an image never changes its label.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

SignedField = Callable[[np.ndarray, np.ndarray], np.ndarray]
Colour = tuple[float, float, float]
ValueRange = tuple[float, float]

TARGET_KIND = "beetle"
OUTLINE_HALF_WIDTH = 0.07
"""Half the width of the dark outline, in units of the radius of an object."""


def disc(u: np.ndarray, v: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    """Return the field of a disc around (x, y)."""
    return np.hypot(u - np.float32(x), v - np.float32(y)) - np.float32(radius)


def _beetle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the field of an oval body with a head and three pairs of legs."""
    body = np.hypot(u / 0.74, v / 0.9) * 0.8 - 0.8
    slanted = v - 0.25 * np.abs(u)
    legs = np.minimum.reduce([np.abs(slanted - at) for at in (-0.5, 0.0, 0.5)]) - 0.06
    legs = np.maximum(legs, np.abs(u) - 1.05)
    return np.minimum.reduce([body, legs, disc(u, v, 0.0, -0.9, 0.3)])


def _ball(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return disc(u, v, 0.0, 0.0, 0.95)


def _crate(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.82


def _kite(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.abs(u) + np.abs(v) - 1.15) * 0.71


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the field of a star with five round arms."""
    return np.hypot(u, v) - (0.86 + 0.22 * np.cos(5.0 * np.arctan2(u, -v)))


def _fish(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the field of a horizontal oval with a fin at each end."""
    body = np.hypot(u / 0.9, v / 0.7) * 0.78 - 0.78
    fins = np.maximum(np.abs(v) - (np.abs(u) - 0.62) * 1.1, np.abs(u) - 1.15)
    return np.minimum(body, fins)


OBJECT_KINDS: dict[str, SignedField] = {
    TARGET_KIND: _beetle,
    "ball": _ball,
    "crate": _crate,
    "kite": _kite,
    "star": _star,
    "fish": _fish,
}


def _spots(radius: float, *places: tuple[float, float]) -> SignedField:
    return lambda u, v: np.minimum.reduce([disc(u, v, x, y, radius) for x, y in places])


def _bars(half_width: float, *places: float) -> SignedField:
    return lambda u, v: np.minimum.reduce([np.abs(v - y) for y in places]) - half_width


def _lines(half_width: float, *places: float) -> SignedField:
    return lambda u, v: np.minimum.reduce([np.abs(u - x) for x in places]) - half_width


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(disc(u, v, 0.0, 0.0, 0.45)) - 0.12


def _plus(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(u), np.abs(v)) - 0.13


def _saltire(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(u + v), np.abs(u - v)) * 0.71 - 0.13


@dataclass(frozen=True)
class Marking:
    """A pattern and its family. Every family has two patterns."""

    family: str
    shape: SignedField


# The first five come from five families, so tasks with few classes do not contain two markings of a family.
MARKINGS: dict[str, Marking] = {
    "two-spotted": Marking("spotted", _spots(0.24, (0.0, -0.42), (0.0, 0.42))),
    "one-barred": Marking("barred", _bars(0.16, 0.0)),
    "one-lined": Marking("lined", _lines(0.16, 0.0)),
    "ringed": Marking("round", _ring),
    "plus": Marking("crossed", _plus),
    "four-spotted": Marking("spotted", _spots(0.19, (-0.33, -0.36), (0.33, -0.36), (-0.33, 0.36), (0.33, 0.36))),
    "two-barred": Marking("barred", _bars(0.12, -0.36, 0.36)),
    "two-lined": Marking("lined", _lines(0.11, -0.3, 0.3)),
    "eyed": Marking("round", _spots(0.4, (0.0, 0.0))),
    "saltire": Marking("crossed", _saltire),
}
MARKING_FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(marking.family for marking in MARKINGS.values()))


@dataclass(frozen=True)
class ColourRange:
    """Ranges of saturation and value (brightness) of a colour, from 0 to 1."""

    saturation: ValueRange
    value: ValueRange


MUTED_COLOURS = ColourRange((0.1, 0.4), (0.45, 0.7))
BRIGHT_COLOURS = ColourRange((0.6, 1.0), (0.75, 1.0))
ALL_COLOURS = ColourRange((0.1, 1.0), (0.45, 1.0))


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: centre (x, y) and radius in pixels, angle in radians, colours from 0 to 1."""

    kind: str
    marking: str
    centre: tuple[float, float]
    radius: float
    angle: float
    body: Colour
    ink: Colour


def sample_object(
    rng: np.random.Generator, kind: str, marking: str, centre: tuple[float, float], radius: float, paint: ColourRange
) -> SceneObject:
    """Return an object with random colours and a random tilt of at most 0.5 rad, so that bars stay horizontal."""
    hue, saturation, value = rng.uniform(), rng.uniform(*paint.saturation), rng.uniform(*paint.value)
    body = colorsys.hsv_to_rgb(hue, saturation, value)
    # Ink is a much darker version of the body colour: a marking differs in brightness, not in hue.
    ink = colorsys.hsv_to_rgb(hue, saturation, value * rng.uniform(0.1, 0.35))
    return SceneObject(kind, marking, centre, radius, rng.uniform(-0.5, 0.5), body, ink)


@cache
def _build_upsampling_weights(cells: int, side: int) -> np.ndarray:
    """Return the weights `[side, cells]` of linear interpolation from `cells` values to `side` pixels."""
    at = np.linspace(0, cells - 1, side, dtype=np.float32)[:, None]
    return np.clip(1 - np.abs(at - np.arange(cells, dtype=np.float32)), 0, 1)


def draw_background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a background `[H, W, 3]` float32: a tint, coloured clouds of two sizes, and noise."""
    image = 0.03 * rng.standard_normal((3, side, side), np.float32)
    image += rng.uniform(0.3, 0.6, (3, 1, 1)).astype(np.float32)
    for cells, strength in ((5, 0.07), (17, 0.05)):
        weights = _build_upsampling_weights(cells, side)
        image += strength * (weights @ rng.standard_normal((3, cells, cells), np.float32) @ weights.T)
    return image.transpose(1, 2, 0)


def paint_object(image: np.ndarray, thing: SceneObject, kinds: Mapping[str, SignedField] = OBJECT_KINDS) -> np.ndarray:
    """Paint an object onto `image` `[H, W, 3]` in place and return its mask `[H, W]` bool."""
    side, (x, y), reach = image.shape[0], thing.centre, 1.3 * thing.radius
    top, bottom = max(0, int(y - reach)), min(side, int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(side, int(x + reach) + 2)
    down = (np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)) / np.float32(thing.radius)
    across = (np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)) / np.float32(thing.radius)
    sine, cosine = np.float32(np.sin(thing.angle)), np.float32(np.cos(thing.angle))
    u, v = cosine * across + sine * down, cosine * down - sine * across

    outline = kinds[thing.kind](u, v)
    cover = np.clip(0.5 - outline * thing.radius, 0, 1)
    # The marking keeps a distance from the outline and so does not change the silhouette. The outline is also dark,
    # which makes the kind of an object as visible as its marking.
    marking = np.maximum(MARKINGS[thing.marking].shape(u, v), np.hypot(u, v) - 0.72)
    inked = np.minimum(marking, np.abs(outline) - OUTLINE_HALF_WIDTH)
    ink = np.clip(0.5 - inked * thing.radius, 0, 1)[..., None]
    colour = np.asarray(thing.body, np.float32) * (1 - ink) + np.asarray(thing.ink, np.float32) * ink
    window = image[top:bottom, left:right]
    window += cover[..., None] * (colour - window)
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = cover > 0.5
    return mask


def sample_positions(rng: np.random.Generator, side: int, count: int, across: int) -> list[tuple[float, float]]:
    """Return `count` centres, each near the centre of its own cell of an `across` × `across` grid."""
    pitch = side / across
    shifts = rng.uniform(-0.09, 0.09, (count, 2))
    return [
        ((cell % across + 0.5 + dx) * pitch, (cell // across + 0.5 + dy) * pitch)
        for cell, (dx, dy) in zip(rng.permutation(across**2)[:count].tolist(), shifts.tolist(), strict=True)
    ]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert colours from [0, 1] to uint8."""
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def draw_fine_scene(
    rng: np.random.Generator, side: int, marking: str, pool: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a small, dull beetle with `marking` among three bright objects with markings from `pool`.

    Returns:
        The image `[H, W, 3]` uint8 and the mask `[H, W]` bool of the beetle.
    """
    image, painted = draw_fine_objects(rng, side, marking, pool)
    return image, painted[-1][1]


def draw_fine_objects(
    rng: np.random.Generator, side: int, marking: str, pool: Sequence[str]
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Draw a fine scene.

    Returns:
        The image `[H, W, 3]` uint8, and kind and mask of every object in painting order, with the beetle last.
    """
    image, painted = draw_background(rng, side), []
    beetle_at, *places = sample_positions(rng, side, 4, across=2)
    others = [kind for kind in OBJECT_KINDS if kind != TARGET_KIND]
    for place in places:
        kind, other_marking = others[int(rng.integers(len(others)))], pool[int(rng.integers(len(pool)))]
        thing = sample_object(rng, kind, other_marking, place, side * rng.uniform(0.19, 0.24), BRIGHT_COLOURS)
        painted.append((kind, paint_object(image, thing)))
    # The beetle is painted last, so that no other object covers it and its mask is exact.
    beetle = sample_object(rng, TARGET_KIND, marking, beetle_at, side * rng.uniform(0.17, 0.21), MUTED_COLOURS)
    painted.append((TARGET_KIND, paint_object(image, beetle)))
    return to_uint8(image), painted


def draw_crowded_scene(rng: np.random.Generator, side: int, kind: str, family: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw one to three large objects of one kind and family and up to three small ones of any kind and marking.

    To predict kind and marking of the large objects, a backbone must keep the features of an object at its position.

    Returns:
        The image `[H, W, 3]` uint8 and the mask `[H, W]` bool of the large objects.
    """
    image, mask = draw_background(rng, side), np.zeros((side, side), bool)
    members = [name for name, marking in MARKINGS.items() if marking.family == family]
    kinds, pool = list(OBJECT_KINDS), list(MARKINGS)
    large, small = 1 + int(rng.integers(3)), int(rng.integers(4))
    places = sample_positions(rng, side, large + small, across=3)
    for place in places[large:]:
        other, worn = kinds[int(rng.integers(len(kinds)))], pool[int(rng.integers(len(pool)))]
        paint_object(image, sample_object(rng, other, worn, place, side * rng.uniform(0.1, 0.135), ALL_COLOURS))
    for place in places[:large]:
        worn = members[int(rng.integers(len(members)))]
        mask |= paint_object(image, sample_object(rng, kind, worn, place, side * rng.uniform(0.155, 0.22), ALL_COLOURS))
    return to_uint8(image), mask


def draw_coarse_scene(rng: np.random.Generator, side: int, kind: str, family: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw one to seven objects of one kind in any colour, with markings of one family.

    Returns:
        The image `[H, W, 3]` uint8 and the mask `[H, W]` bool of all objects.
    """
    image, mask = draw_background(rng, side), np.zeros((side, side), bool)
    members = [name for name, marking in MARKINGS.items() if marking.family == family]
    for place in sample_positions(rng, side, int(rng.integers(1, 8)), across=3):
        worn = members[int(rng.integers(len(members)))]
        mask |= paint_object(image, sample_object(rng, kind, worn, place, side * rng.uniform(0.14, 0.22), ALL_COLOURS))
    return to_uint8(image), mask
