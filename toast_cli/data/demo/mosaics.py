"""Grids: mosaics of one labelled photograph among distractors, a real-image task in which looking is the task.

After the grid pointing game of Böhle, Fritz and Schiele (*Convolutional Dynamic Alignment Networks for Interpretable
Classifications*, CVPR 2021), which measures explanations on such mosaics; here they are trained and tested on. Ours
differ in that one cell alone carries a label: the others show photographs of another data set.

A mosaic depends on the grid's seed, its split and the labelled photograph's name alone. Every distractor belongs to
one split, so none that was seen in training returns in a test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli import registry
from toast_cli.data.base import DataSet, DataSource, Sample, get_image_folders, get_image_splits
from toast_cli.data.splits import compute_split_hash, format_class_names, hold_out
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from toast_cli.data.base import ImageSplit

MAX_CACHED_CELL_BYTES = 512_000_000
"""Cells are kept for the next epoch, up to this size per split."""


class GridOptions(NamedOptions):
    """Which photographs, among which distractors, in which grid."""

    name: Literal["grid"] = Field("grid", description="the data set")
    path: str = Field(
        min_length=3,
        description="SOURCE+DISTRACTORS, each a data set as --dataset takes it: cub+images:PATH; classes, splits and "
        "labels are those of SOURCE",
    )
    photographs: dict[str, Any] = Field(
        default_factory=dict, description="further fields of SOURCE, such as shots or val_fraction"
    )
    distractors: dict[str, Any] = Field(default_factory=dict, description="further fields of DISTRACTORS")
    cells: Literal[2, 3] = Field(2, description="cells along each side: 2 is a 2×2 grid, 3 a 3×3 one")
    cell_side: int = Field(
        112, ge=8, description="height and width of a cell in pixels; photographs are cut square in their middle"
    )
    classes: int | None = Field(None, ge=2, description="use the first so many classes of SOURCE; left out: all")
    mosaics: int = Field(
        1, ge=1, description="training mosaics of each photograph, at other places among other distractors"
    )
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the distractors that validation alone uses")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of the distractors that the test alone uses")
    grid_seed: int = Field(0, ge=0, description="seed of places and distractors, apart from the run's own seed")


@dataclass(frozen=True)
class Photo:
    """One image of a split."""

    split: ImageSplit
    index: int

    @property
    def name(self) -> str:
        """What the split calls it."""
        return self.split.names[self.index]

    def place(self, source: str) -> str:
        """Where it is read from: the same of two data sets that share it. `source` is the choice that it is of."""
        return f"{getattr(self.split, 'root', source)}/{self.name}"


@dataclass(frozen=True)
class GridSplit:
    """Mosaics, each put together when it is asked for. A sample's mask is the cell that holds the labelled photograph.

    `photos` are the labelled ones, `pool` the distractors of this split; `part` is the split's name. `own` says which
    of the pool a photograph is itself, where it is one: in its own mosaic it is seen once.
    """

    photos: tuple[Photo, ...]
    pool: tuple[Photo, ...]
    part: str
    options: GridOptions
    repeats: int = 1
    has_masks: bool = True
    marks: str = "the cell of the labelled photograph"
    own: Mapping[int, int] = field(default_factory=dict)
    _kept: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labels(self) -> list[int]:
        """Class of every labelled photograph."""
        return [photo.split.labels[photo.index] for photo in self.photos] * self.repeats

    @property
    def names(self) -> list[str]:
        """The labelled photograph's name; after it, which of several mosaics."""
        return [self._name(index) for index in range(len(self))]

    @property
    def folders(self) -> frozenset[Path]:
        """The folders that photographs and distractors are read from."""
        splits = {id(photo.split): photo.split for photo in (*self.photos, *self.pool)}
        return frozenset(folder for split in splits.values() for folder in get_image_folders(split))

    def __len__(self) -> int:
        return len(self.photos) * self.repeats

    def layout(self, index: int) -> tuple[int, tuple[int, ...]]:
        """The cell of the labelled photograph, row by row from 0, and the distractors of the other cells in order."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.part} has {len(self)} mosaics, there is no mosaic {index}")
        turn, place = divmod(index, len(self.photos))
        numbers = _generate_numbers(f"{self.options.grid_seed}/{self.part}/{turn}/{self.photos[place].name}")
        cells = self.options.cells**2
        target = next(numbers) % cells
        drawn: dict[int, None] = {}  # a set in the order of drawing
        while len(drawn) < cells - 1:
            other = next(numbers) % len(self.pool)
            if other != self.own.get(place):
                drawn[other] = None
        return target, tuple(drawn)

    def load(self, index: int) -> Sample:
        """Put one mosaic together.

        Raises:
            ToastError: one of its photographs cannot be read.
        """
        import numpy as np
        from PIL import Image

        target, distractors = self.layout(index)
        photo = self.photos[index % len(self.photos)]
        cells = [self._cell(self.pool[other]) for other in distractors]
        cells.insert(target, self._cell(photo))
        size = self.options.cells
        rows = [np.concatenate(cells[start : start + size], axis=1) for start in range(0, size * size, size)]
        mask = np.zeros((size, size), dtype=bool)
        mask.flat[target] = True
        return Sample(
            image=Image.fromarray(np.concatenate(rows)),
            label=photo.split.labels[photo.index],
            name=self._name(index),
            mask=mask.repeat(self.options.cell_side, axis=0).repeat(self.options.cell_side, axis=1),
        )

    def _name(self, index: int) -> str:
        turn, place = divmod(index, len(self.photos))
        return self.photos[place].name + (f"#{turn}" if turn else "")

    def _cell(self, photo: Photo) -> np.ndarray:
        """A photograph as a cell: `[side, side, 3]` uint8."""
        import numpy as np
        from PIL import Image, ImageOps

        key = id(photo.split), photo.index
        cell = self._kept.get(key)
        if cell is None:
            side = (self.options.cell_side,) * 2
            cell = np.asarray(ImageOps.fit(photo.split.load(photo.index).image, side, Image.Resampling.BICUBIC))
            if len(self._kept) * cell.nbytes < MAX_CACHED_CELL_BYTES:
                self._kept[key] = cell
        return cell


def open_grid(options: GridOptions, data_dir: Path | None) -> DataSet:
    """Open both data sets and divide the distractors among the splits; no image is opened.

    Raises:
        UsageError: `path` does not name two data sets of images.
        ToastError: either cannot be opened, or the distractors are too few.
    """
    chosen, others = _parse_sources(options.path)
    labelled = _open_dataset(chosen, options.photographs, data_dir)
    unlabelled = _open_dataset(others, options.distractors, data_dir)
    distractors = get_image_splits(unlabelled, others).values()
    classes = labelled.classes[: options.classes]
    if len(classes) < 2:
        raise UsageError(
            f"{chosen} has no classes to tell apart.",
            what_to_do="Name labelled images before the '+'.",
            code="data.too-few-classes",
        )
    shown = {
        part: tuple(Photo(split, i) for i, label in enumerate(split.labels) if label < len(classes))
        for part, split in get_image_splits(labelled, chosen).items()
    }
    part_of = {photo.place(chosen): part for part, photos in shown.items() for photo in photos}
    pools = _assign_distractors(
        [Photo(split, i) for split in distractors for i in range(len(split))], part_of, others, options
    )
    splits, notes = {}, []
    for part, photos in shown.items():
        at = {photo.place(others): index for index, photo in enumerate(pools[part])}
        own = {i: at[place] for i, photo in enumerate(photos) if (place := photo.place(chosen)) in at}
        needed = options.cells**2 - 1 + bool(own)
        if len(pools[part]) < needed:
            raise ToastError(
                f"{others} leaves {len(pools[part])} distractors for {part}, and a mosaic needs {needed}.",
                what_to_do="Give more, or raise dataset.val_fraction or dataset.test_fraction.",
                code="data.too-few-distractors",
            )
        splits[part] = GridSplit(photos, pools[part], part, options, options.mosaics if part == "train" else 1, own=own)
    used = ", ".join(f"{len(pools[part]):,} for {part} (split {_hash_pool(pools[part])})" for part in splits)
    notes.append(
        f"Grids of {options.cells}×{options.cells}: photographs of {chosen} among distractors of {others}, {used}, "
        f"seed {options.grid_seed}. Chance is one in {len(classes)}; a cell is {1 / options.cells**2:.0%} of the image."
    )
    shared = [name for name in classes if name in unlabelled.classes]
    if shared:
        notes.append(
            f"The distractors hold {format_class_names(shared)} too: a mosaic may show a class beside the one "
            "asked for."
        )
    return DataSet(classes, splits, (*labelled.notes, *notes))


SOURCE = DataSource(
    GridOptions,
    open_grid,
    "nothing of its own: mosaics of two other data sets, grid:SOURCE+DISTRACTORS (cub+images:PATH)",
)


def _parse_sources(path: str) -> tuple[str, str]:
    """The two data sets; a '+' within a folder's name does not part them."""
    places = [place for place, character in enumerate(path) if character == "+"]
    for place in places:
        first, second = path[:place], path[place + 1 :]
        if all(name.partition(":")[0] in registry.list_names(registry.SOURCES) for name in (first, second)):
            return first, second
    raise UsageError(
        f"'grid:{path}' does not name two data sets.",
        "Expected is grid:SOURCE+DISTRACTORS.",
        "For example grid:cub+images:PATH; known are " + ", ".join(registry.list_names(registry.SOURCES)) + ".",
        code="data.invalid-grid",
    )


def _open_dataset(choice: str, fields: dict[str, Any], data_dir: Path | None) -> DataSet:
    from toast_cli.recipe.parse import build_dataset_options

    options = build_dataset_options(choice, fields)
    return registry.load_entry(registry.SOURCES, options.name).open(options, data_dir)


def _assign_distractors(
    photos: Sequence[Photo], part_of: Mapping[str, str], source: str, options: GridOptions
) -> dict[str, tuple[Photo, ...]]:
    """Distractors by split, each in one of them: one that is a labelled photograph too, in that one's (`part_of`)."""
    given = [part_of.get(photo.place(source)) for photo in photos]
    free = [i for i, part in enumerate(given) if part is None]
    names = [photos[i].name for i in free]
    rest, test = hold_out(names, [0] * len(names), options.test_fraction, options.grid_seed)
    train, val = hold_out([names[i] for i in rest], [0] * len(rest), options.val_fraction, options.grid_seed + 1)
    for part, places in (("train", [rest[i] for i in train]), ("val", [rest[i] for i in val]), ("test", test)):
        for i in places:
            given[free[i]] = part
    return {
        part: tuple(photo for photo, where in zip(photos, given, strict=True) if where == part)
        for part in ("train", "val", "test")
    }


def _hash_pool(pool: Sequence[Photo]) -> str:
    return compute_split_hash([photo.name for photo in pool], [0] * len(pool))


def _generate_numbers(key: str) -> Iterator[int]:
    """Random numbers of 64 bits, the same for a key with every version of every library."""
    digest = sha256(key.encode(errors="surrogateescape")).digest()
    while True:
        yield from (int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
        digest = sha256(digest).digest()
