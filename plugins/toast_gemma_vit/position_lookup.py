"""The position embeddings of Gemma 4's towers, read by index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models.gemma4_vit import Gemma4PatchEmbed
from torch import Tensor


@contextmanager
def look_up_positions(embed: Gemma4PatchEmbed) -> Iterator[None]:
    """Inside the block, read the rows of the position table by index.

    timm multiplies the table by one-hot rows of its 10,240 entries, which gives the same numbers: a sum of one entry
    and zeros. For images of 768 by 768 pixels these rows take half a gigabyte per image.
    """
    patched: Any = embed

    def look_up(coordinates: Tensor, _: Tensor | None) -> Tensor:
        x, y = coordinates.unbind(-1)
        table = embed.position_embedding_table
        return table[0][x] + table[1][y]

    patched._position_embeddings = look_up
    try:
        yield
    finally:
        del patched._position_embeddings
