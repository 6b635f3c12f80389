"""Names of files in a folder that pictures of several runs, images and texts share: none is written over by another."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from toast_cli.utils.hashing import hash_bytes, hash_tensors
from toast_cli.visualize.view import AttentionViewer

SOURCE_DIGEST_KEY = "made_of"
"""Where a record says by a digest what its files were made of."""


def compute_source_digest(viewers: Sequence[AttentionViewer], shown: Iterable[bytes]) -> str:
    """A digest of who looked and what they were shown: the same again may be written over."""
    parts = [repr((viewer.name, viewer.model.backbone_fingerprint)).encode() for viewer in viewers]
    parts += [hash_tensors(viewer.model.trained()).encode() for viewer in viewers]
    return hash_bytes(*parts, *shown).hex()[:16]


def find_free_name(folder: Path, name: str, own: str, records: str = "{}.json") -> str:
    """The name, or with the first number behind it by which no record in the folder is of anything but `own`.

    `records` is a pattern of the records' names, with the name in place of `{}`.
    """
    number, free = 1, name
    while any(_read_source_digest(file) != own for file in folder.glob(records.format(glob.escape(free)))):
        number += 1
        free = f"{name}-{number}"
    return free


def _read_source_digest(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(SOURCE_DIGEST_KEY)
    except (OSError, ValueError, AttributeError):  # nothing that we wrote
        return None
