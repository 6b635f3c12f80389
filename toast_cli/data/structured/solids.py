"""Solids on a plane, as in CLEVR: cubes, balls and cylinders of two sizes, eight colors and two materials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SOLID_COLORS = (
    (87, 87, 87), (173, 35, 35), (42, 75, 215), (29, 105, 20), (129, 74, 25), (129, 38, 192), (41, 208, 208),
    (255, 238, 51),
)  # fmt: skip
SOLID_SIZES = (0.35, 0.7)
"""Half the height of a solid, in units of the plane."""
DISTANCE_BIN_EDGES = (6.0, 7.5, 9.0, 10.5, 12.0, 13.5, 15.0)
"""Edges of the distance bins. Distances are measured in the plane, from the camera to the center of a solid."""
CAMERA_HEIGHT, HORIZON, FOCAL_LENGTH = 4.0, 0.12, 1.15
"""Height of the camera above the plane; horizon and focal length relative to the side of the image."""
MIN_SEPARATION = 1.25
"""Minimum distance between two solids, in units of the sum of their half heights."""
LIGHT_DIRECTION = np.array([-0.5, -0.75, -0.45])
MAX_PLACEMENT_TRIES = 2000


@dataclass(frozen=True)
class Solid:
    """A solid: its kind, position on the plane, half height, rotation (radians), color and material."""

    kind: str
    x: float
    depth: float
    size: float
    turn: float
    color: tuple[int, int, int]
    shiny: bool

    @property
    def distance(self) -> float:
        """Distance to the camera in the plane."""
        return float(np.hypot(self.x, self.depth))


def draw_solids_scene(rng: np.random.Generator, side: int, count: int | None, nearest: int | None) -> np.ndarray:
    """Draw a scene of solids.

    Args:
        rng: The random generator.
        side: Height and width of the image in pixels.
        count: Number of solids; None for a random number from three to ten.
        nearest: Distance bin of the nearest solid; None for any distance.

    Returns:
        The image `[side, side, 3]` uint8.
    """
    number = int(rng.integers(3, 11)) if count is None else count
    bin_index = int(rng.integers(len(DISTANCE_BIN_EDGES) - 1)) if nearest is None else nearest
    solids = place_solids(rng, number, bin_index, fixed=nearest is not None)
    return draw_solids(rng, solids, side)


def place_solids(rng: np.random.Generator, count: int, bin_index: int, fixed: bool) -> list[Solid]:
    """Place solids on the plane without overlap. With `fixed`, the first is the nearest and is in bin `bin_index`."""
    while True:
        solids: list[Solid] = []
        for _ in range(MAX_PLACEMENT_TRIES):
            if len(solids) == count:
                return solids
            low, high = DISTANCE_BIN_EDGES[0], DISTANCE_BIN_EDGES[-1] + 3
            if fixed:
                low, high = (
                    (DISTANCE_BIN_EDGES[bin_index], DISTANCE_BIN_EDGES[bin_index + 1])
                    if not solids
                    else (solids[0].distance, high)
                )
            distance, side = (
                float(rng.uniform(low, high)),
                float(rng.uniform(-0.36 / FOCAL_LENGTH, 0.36 / FOCAL_LENGTH)),
            )
            depth = distance / float(np.hypot(1, side))
            solid = Solid(
                ("cube", "ball", "cylinder")[int(rng.integers(3))],
                side * depth,
                depth,
                SOLID_SIZES[int(rng.integers(2))],
                float(rng.uniform(0, np.pi / 2)),
                SOLID_COLORS[int(rng.integers(len(SOLID_COLORS)))],
                bool(rng.integers(2)),
            )
            if all(are_apart(solid, other) for other in solids):
                solids.append(solid)


def are_apart(one: Solid, two: Solid) -> bool:
    """Return whether two solids keep the minimum distance and the nearer one leaves most of the other visible."""
    near, far = sorted((one, two), key=lambda solid: solid.depth)
    if np.hypot(one.x - two.x, one.depth - two.depth) <= MIN_SEPARATION * (one.size + two.size):
        return False
    across = abs(near.x / near.depth - far.x / far.depth)
    return bool(across > 1.15 * near.size / near.depth + 0.2 * far.size / far.depth)


def draw_solids(rng: np.random.Generator, solids: list[Solid], side: int) -> np.ndarray:
    """Draw solids at twice the size, farthest first, and downsample to `[side, side, 3]` uint8."""
    large = 2 * side
    ground = np.linspace(150, 190, large)[:, None] + rng.normal(0, 2, (large, large))
    image = Image.fromarray(np.repeat(np.clip(ground, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    pen = ImageDraw.Draw(image)
    for solid in sorted(solids, key=lambda solid: -solid.depth):
        _draw_shadow(pen, solid, large)
        {"cube": _draw_cube, "ball": _draw_ball, "cylinder": _draw_cylinder}[solid.kind](pen, solid, large)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def project_point(x: float, height: float, depth: float, side: int) -> tuple[float, float]:
    """Project a point of the scene into the image and return (right, down) in pixels."""
    return side * (0.5 + FOCAL_LENGTH * x / depth), side * (HORIZON + FOCAL_LENGTH * (CAMERA_HEIGHT - height) / depth)


def shade_color(color: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    """Scale the brightness of a color: lighter if `amount` is above 1, else darker."""
    red, green, blue = (int(min(255, max(0, part * amount))) for part in color)
    return red, green, blue


def _draw_shadow(pen: ImageDraw.ImageDraw, solid: Solid, side: int) -> None:
    x, y = project_point(solid.x + 0.25 * solid.size, 0, solid.depth, side)
    radius = side * FOCAL_LENGTH * 1.25 * solid.size / solid.depth
    pen.ellipse((x - radius, y - 0.4 * radius, x + radius, y + 0.4 * radius), fill=(110, 110, 110))


def _draw_ball(pen: ImageDraw.ImageDraw, solid: Solid, side: int) -> None:
    x, y = project_point(solid.x, solid.size, solid.depth, side)
    radius = side * FOCAL_LENGTH * solid.size / solid.depth
    for step in range(8):
        share = step / 8
        r, dx, dy = radius * (1 - share), -0.35 * radius * share, -0.4 * radius * share
        pen.ellipse(
            (x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=shade_color(solid.color, 0.55 + 0.75 * share)
        )
    if solid.shiny:
        r, dx, dy = 0.16 * radius, -0.38 * radius, -0.45 * radius
        pen.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=(245, 245, 245))


def _draw_cube(pen: ImageDraw.ImageDraw, solid: Solid, side: int) -> None:
    half, height = 0.9 * solid.size, 1.8 * solid.size
    turns = [solid.turn + np.pi / 2 * corner + np.pi / 4 for corner in range(4)]
    ground = [(solid.x + 1.41 * half * np.cos(turn), solid.depth + 1.41 * half * np.sin(turn)) for turn in turns]
    faces = []
    for corner in range(4):
        (x1, z1), (x2, z2) = ground[corner], ground[(corner + 1) % 4]
        normal = solid.turn + np.pi / 2 * corner + np.pi / 2
        amount = 0.75 + 0.3 * max(0.0, float(np.cos(normal) * LIGHT_DIRECTION[0] + np.sin(normal) * LIGHT_DIRECTION[2]))
        corners = [(x1, 0.0, z1), (x2, 0.0, z2), (x2, height, z2), (x1, height, z1)]
        faces.append(((z1 + z2) / 2, corners, amount))
    for _, corners, amount in sorted(faces, key=lambda face: -face[0]):
        pen.polygon([project_point(x, h, z, side) for x, h, z in corners], fill=shade_color(solid.color, amount))
    top = [project_point(x, height, z, side) for x, z in ground]
    pen.polygon(top, fill=shade_color(solid.color, 1.35 if solid.shiny else 1.2))


def _draw_cylinder(pen: ImageDraw.ImageDraw, solid: Solid, side: int) -> None:
    height, radius = 1.8 * solid.size, side * FOCAL_LENGTH * 0.9 * solid.size / solid.depth
    x, bottom = project_point(solid.x, 0, solid.depth, side)
    _, top = project_point(solid.x, height, solid.depth, side)
    flat = 0.4 * radius
    strips = 10
    for strip in range(strips):
        left, right = (-1 + 2 * edge / strips for edge in (strip, strip + 1))
        middle = (left + right) / 2
        amount = 0.65 + 0.5 * float(np.exp(-((middle + 0.4) ** 2) / 0.25)) * (1.2 if solid.shiny else 0.9)
        sag = flat * float(np.sqrt(max(0.0, 1 - middle**2)))
        pen.rectangle((x + left * radius, top, x + right * radius, bottom + sag), fill=shade_color(solid.color, amount))
    pen.ellipse((x - radius, top - flat, x + radius, top + flat), fill=shade_color(solid.color, 1.25))
