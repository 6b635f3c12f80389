"""Outlines of the objects in the demo's pre-training scenes: the six kinds of the fine task and eight more.

An outline is a signed field as in `world`: negative inside, positive outside, in units of the object's radius. Every
outline is symmetric, so a horizontal flip never changes a label.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from toast_cli.data.demo.scene_generator import OBJECT_KINDS, SignedField, disc
from toast_cli.data.structured.sprites import heart


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(0.87 * np.abs(u) - 0.5 * v - 0.5, v - 0.75)


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(0.87 * np.abs(u) + 0.5 * np.abs(v), np.abs(v)) - 0.85


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    arms = np.minimum(np.abs(u), np.abs(v)) - 0.4
    return np.maximum(arms, np.maximum(np.abs(u), np.abs(v)) - 1.0)


def _mushroom(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cap = np.maximum(np.hypot(u / 1.0, (v - 0.15) / 1.0) - 1.0, v - 0.15)
    stem = np.maximum(np.abs(u) - 0.36, np.abs(v - 0.5) - 0.5)
    return np.minimum(cap, stem)


def _house(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    walls = np.maximum(np.abs(u) - 0.68, np.abs(v - 0.4) - 0.5)
    roof = np.maximum(0.71 * (np.abs(u) - v - 1.0), v - 0.0)
    return np.minimum(walls, roof)


def _hourglass(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - 0.75 * np.abs(v) - 0.25, np.abs(v) - 0.9)


def _flower(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the field of six round petals around a disc."""
    turns = np.pi / 3 * np.arange(6)
    petals = [disc(u, v, 0.62 * float(np.sin(turn)), -0.62 * float(np.cos(turn)), 0.36) for turn in turns]
    return np.minimum.reduce([*petals, disc(u, v, 0.0, 0.0, 0.55)])


PRETRAINING_KINDS: dict[str, SignedField] = {
    **OBJECT_KINDS,
    "triangle": _triangle,
    "heart": heart,
    "hexagon": _hexagon,
    "cross": _cross,
    "mushroom": _mushroom,
    "house": _house,
    "hourglass": _hourglass,
    "flower": _flower,
}


@cache
def compute_relative_area(kind: str) -> float:
    """Return the area inside an outline, relative to a disc of radius 1."""
    at = np.linspace(-1.3, 1.3, 261, dtype=np.float32)
    inside = PRETRAINING_KINDS[kind](*np.meshgrid(at, at)) < 0
    return float(inside.mean()) * 2.6**2 / np.pi
