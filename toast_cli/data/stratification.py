"""Draws from images with several labels each: iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011).

The label with the fewest images left decides first, because later it would have no choice. Of its images, as many are
drawn as its share asks for; images drawn for rarer labels count. Images without any label are drawn last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def draw_per_label(
    labels: Sequence[tuple[int, ...]], order: Iterable[int], how_many: Callable[[int], int], leave: int
) -> list[int]:
    """Return the indices of images of which `how_many(images of the label)` have each label, where that is possible.

    No image is drawn that would leave fewer than `leave` images of one of its labels.

    Args:
        labels: The labels of every image.
        order: All indices in the order in which images are drawn.
        how_many: The number of images to draw, given the number of images of a label.
        leave: The number of images of every label that must not be drawn.
    """
    members: dict[int | None, list[int]] = defaultdict(list)
    for index in order:
        for label in labels[index] or (None,):
            members[label].append(index)
    total = {label: len(indices) for label, indices in members.items()}
    waiting = Counter(total)
    decided: set[int] = set()
    drawn: list[int] = []
    counts: Counter[int | None] = Counter()
    while waiting:
        label = min(waiting, key=lambda each: (each is None, waiting[each], each))
        del waiting[label]
        for index in members[label]:
            if index in decided:
                continue
            decided.add(index)
            own = labels[index] or (None,)
            for other in own:
                if other in waiting:
                    waiting[other] -= 1
            wanted = counts[label] < how_many(total[label])
            if wanted and all(total[each] - counts[each] > (leave if each is not None else 0) for each in own):
                drawn.append(index)
                counts.update(own)
    return drawn
