"""Names of files in a folder that pictures of several runs, images and texts share: none is written over by another."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from toast_cli.utils.hashing import digest_of, digest_of_tensors
from toast_cli.visualize.view import Viewer

KEY = "made_of"
"""Where a record says by a digest what its files were made of."""


def made_of(viewers: Sequence[Viewer], shown: Iterable[bytes]) -> str:
    """A digest of who looked and what they were shown: the same again may be written over."""
    parts = [repr((viewer.name, viewer.model.backbone_fingerprint)).encode() for viewer in viewers]
    parts += [digest_of_tensors(viewer.model.trained()).encode() for viewer in viewers]
    return digest_of(*parts, *shown).hex()[:16]


def free_name(folder: Path, name: str, own: str, records: str = "{}.json") -> str:
    """The name, or with the first number behind it by which no record in the folder is of anything but `own`.

    `records` is a pattern of the records' names, with the name in place of `{}`.
    """
    number, free = 1, name
    while any(_made_of(file) != own for file in folder.glob(records.format(glob.escape(free)))):
        number += 1
        free = f"{name}-{number}"
    return free


def _made_of(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(KEY)
    except (OSError, ValueError, AttributeError):  # nothing that we wrote
        return None
