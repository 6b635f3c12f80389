"""Grids: mosaics of one labelled photograph among distractors. The model has to find the cell that matters.

The mosaics are modelled on the grid pointing game of Böhle, Fritz and Schiele (*Convolutional Dynamic Alignment
Networks for Interpretable Classifications*, CVPR 2021), which evaluates explanations on such images. Here they are a
classification task. Unlike in the paper, only one cell has a label; the other cells show another data set.

A mosaic depends only on the grid seed, the split and the name of the labelled photograph. Every distractor belongs to
exactly one split, so the test split shows none of the training distractors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from toast_cli import registry
from toast_cli.data.base import DataSet, DataSource, Sample, get_image_folders, get_image_splits, set_white
from toast_cli.data.splits import compute_split_hash, format_class_names, hold_out
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from toast_cli.data.base import ImageSplit

MAX_CACHED_CELL_BYTES = 512_000_000
"""Maximum size of the cells that a split caches for the next epoch."""


class GridOptions(NamedOptions):
    """Options of a grid: labelled photographs, distractors and layout."""

    name: Literal["grid"] = Field("grid", description="the data set")
    path: str = Field(
        min_length=3,
        examples=["cub+images:backgrounds"],
        description="SOURCE+DISTRACTORS, two data sets in the syntax of --dataset: cub+images:PATH; SOURCE defines "
        "classes, splits and labels",
    )
    photographs: dict[str, Any] = Field(
        default_factory=dict,
        examples=[{"mask": "box"}],
        description="other fields of SOURCE, such as shots or val_fraction",
    )
    distractors: dict[str, Any] = Field(default_factory=dict, examples=[{}], description="other fields of DISTRACTORS")
    cells: Literal[2, 3] = Field(2, description="cells per side: 2 for a 2×2 grid, 3 for a 3×3 grid")
    cell_side: int = Field(
        112, ge=8, description="height and width of a cell in pixels; photographs are center-cropped to a square"
    )
    classes: int | None = Field(
        None, ge=2, examples=[20], description="use only the first N classes of SOURCE; default: all"
    )
    mosaics: int = Field(
        1, ge=1, description="training mosaics per photograph, with different positions and distractors"
    )
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the distractors reserved for validation")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of the distractors reserved for testing")
    grid_seed: int = Field(
        0, ge=0, examples=[1], description="seed of positions and distractors, independent of the seed of the run"
    )


@dataclass(frozen=True)
class Photo:
    """One image of a split."""

    split: ImageSplit
    index: int

    @property
    def label(self) -> int:
        """Class of the image; `open_grid` refuses other labels."""
        return cast("int", self.split.labels[self.index])

    @property
    def name(self) -> str:
        """Name of the image in its split."""
        return self.split.names[self.index]

    def get_location(self, source: str) -> str:
        """Return the location of the image, equal for two data sets that share the file.

        Args:
            source: The data set of the image, used if its split has no root folder.
        """
        return f"{getattr(self.split, 'root', source)}/{self.name}"


@dataclass(frozen=True)
class GridSplit:
    """Mosaics, composed on access. The mask of a sample is the cell of the labelled photograph.

    Args:
        photos: The labelled photographs.
        pool: The distractors of this split.
        part: The name of the split.
        options: The options of the grid.
        repeats: Number of mosaics per photograph.
        own: Index in `pool` of every photograph that is also a distractor. It is excluded from its own mosaics.
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
        """Class of every mosaic."""
        return [photo.label for photo in self.photos] * self.repeats

    @property
    def names(self) -> list[str]:
        """Name of every mosaic: that of its labelled photograph and, for further mosaics of it, a number."""
        return [self._format_name(index) for index in range(len(self))]

    @property
    def digest(self) -> str:
        """Hash of the distractors, which are not among the names."""
        return _hash_pool(self.pool)

    def stamp(self, index: int) -> int | None:
        """Return the stamp of the labelled photograph; None if its source has none."""
        photo = self.photos[index % len(self.photos)]
        stamp = getattr(photo.split, "stamp", None)
        return None if stamp is None else stamp(photo.index)

    @property
    def folders(self) -> frozenset[Path]:
        """Folders that contain the photographs and distractors."""
        splits = {id(photo.split): photo.split for photo in (*self.photos, *self.pool)}
        return frozenset(folder for split in splits.values() for folder in get_image_folders(split))

    def __len__(self) -> int:
        return len(self.photos) * self.repeats

    def get_layout(self, index: int) -> tuple[int, tuple[int, ...]]:
        """Return the cell of the labelled photograph (row-major, from 0) and the distractors of the other cells."""
        if not 0 <= index < len(self):
            raise IndexError(f"mosaic {index} is out of range: {self.part} has {len(self)} mosaics")
        turn, place = divmod(index, len(self.photos))
        numbers = _generate_numbers(f"{self.options.grid_seed}/{self.part}/{turn}/{self.photos[place].name}")
        cells = self.options.cells**2
        target = next(numbers) % cells
        drawn: dict[int, None] = {}  # an ordered set
        while len(drawn) < cells - 1:
            other = next(numbers) % len(self.pool)
            if other != self.own.get(place):
                drawn[other] = None
        return target, tuple(drawn)

    def with_white(self, white: int) -> GridSplit:
        """Return the same mosaics with another value of white in 16-bit photographs."""
        splits = {id(photo.split): photo.split for photo in (*self.photos, *self.pool)}
        changed = {key: set_white(split, white) for key, split in splits.items()}
        photos, pool = (
            tuple(replace(photo, split=changed[id(photo.split)]) for photo in photos)
            for photos in (self.photos, self.pool)
        )
        return replace(self, photos=photos, pool=pool, _kept={})

    def load(self, index: int) -> Sample:
        """Compose a mosaic.

        Raises:
            ToastError: If a photograph cannot be read.
        """
        import numpy as np
        from PIL import Image

        target, distractors = self.get_layout(index)
        photo = self.photos[index % len(self.photos)]
        cells = [self._load_cell(self.pool[other]) for other in distractors]
        cells.insert(target, self._load_cell(photo))
        size = self.options.cells
        rows = [np.concatenate(cells[start : start + size], axis=1) for start in range(0, size * size, size)]
        mask = np.zeros((size, size), dtype=bool)
        mask.flat[target] = True
        return Sample(
            image=Image.fromarray(np.concatenate(rows)),
            label=photo.label,
            name=self._format_name(index),
            mask=mask.repeat(self.options.cell_side, axis=0).repeat(self.options.cell_side, axis=1),
        )

    def _format_name(self, index: int) -> str:
        turn, place = divmod(index, len(self.photos))
        return self.photos[place].name + (f"#{turn}" if turn else "")

    def _load_cell(self, photo: Photo) -> np.ndarray:
        """Return a photograph as a cell, `[side, side, 3]` uint8."""
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
    """Open both data sets and assign the distractors to splits, without opening any image.

    Raises:
        UsageError: If `path` does not name two image data sets, or SOURCE has fewer than two classes.
        ToastError: If a data set cannot be opened, or there are too few distractors.
    """
    chosen, others = _parse_sources(options.path)
    labelled = _open_dataset(chosen, options.photographs, data_dir)
    unlabelled = _open_dataset(others, options.distractors, data_dir)
    distractors = get_image_splits(unlabelled, others).values()
    classes = labelled.classes[: options.classes]
    if labelled.target != "class":
        raise UsageError(
            f"{chosen} has several labels or numbers for an image, and a grid is labelled by one class.",
            what_to_do="Name a data set with one class per image before the '+'.",
            code="data.not-one-class",
        )
    if len(classes) < 2:
        raise UsageError(
            f"{chosen} has fewer than two classes.",
            what_to_do="Name a data set with labels before the '+'.",
            code="data.too-few-classes",
        )
    shown = {
        part: tuple(photo for i in range(len(split)) if (photo := Photo(split, i)).label < len(classes))
        for part, split in get_image_splits(labelled, chosen).items()
    }
    part_of = {photo.get_location(chosen): part for part, photos in shown.items() for photo in photos}
    pools = _assign_distractors(
        [Photo(split, i) for split in distractors for i in range(len(split))], part_of, others, options
    )
    splits, notes = {}, []
    for part, photos in shown.items():
        at = {photo.get_location(others): index for index, photo in enumerate(pools[part])}
        own = {i: at[place] for i, photo in enumerate(photos) if (place := photo.get_location(chosen)) in at}
        needed = options.cells**2 - 1 + bool(own)
        if len(pools[part]) < needed:
            raise ToastError(
                f"{others} provides {len(pools[part])} distractors for {part}, but a mosaic needs {needed}.",
                what_to_do="Add distractors, or raise dataset.val_fraction or dataset.test_fraction.",
                code="data.too-few-distractors",
            )
        splits[part] = GridSplit(photos, pools[part], part, options, options.mosaics if part == "train" else 1, own=own)
    used = ", ".join(f"{len(pools[part]):,} for {part} (split {_hash_pool(pools[part])})" for part in splits)
    notes.append(
        f"Grids of {options.cells}×{options.cells}: photographs of {chosen} among distractors of {others}, {used}, "
        f"seed {options.grid_seed}. Chance: 1 in {len(classes)}. A cell is {1 / options.cells**2:.0%} of the image."
    )
    shared = [name for name in classes if name in unlabelled.classes]
    if shared:
        notes.append(
            f"The distractors also contain {format_class_names(shared)}: a mosaic may show a class other than its own."
        )
    return DataSet(classes, splits, (*labelled.notes, *notes), labelled.warnings)


SOURCE = DataSource(
    GridOptions,
    open_grid,
    "two other data sets to compose mosaics from: grid:SOURCE+DISTRACTORS (cub+images:PATH)",
    layout=("a data set of labelled photographs, then a data set of distractors:\ngrid:cub+images:backgrounds"),
)


def _parse_sources(path: str) -> tuple[str, str]:
    """Split `path` into two data sets at the first '+' that is not part of a folder name."""
    places = [place for place, character in enumerate(path) if character == "+"]
    for place in places:
        first, second = path[:place], path[place + 1 :]
        if all(name.partition(":")[0] in registry.list_names(registry.SOURCES) for name in (first, second)):
            return first, second
    raise UsageError(
        f"'grid:{path}' does not name two data sets.",
        "Expected grid:SOURCE+DISTRACTORS.",
        "Example: grid:cub+images:PATH. Known: " + ", ".join(registry.list_names(registry.SOURCES)) + ".",
        code="data.invalid-grid",
    )


def _open_dataset(choice: str, fields: dict[str, Any], data_dir: Path | None) -> DataSet:
    from toast_cli.recipe.parse import build_dataset_options

    options = build_dataset_options(choice, fields)
    return registry.load_entry(registry.SOURCES, options.name).open(options, data_dir)


def _assign_distractors(
    photos: Sequence[Photo], part_of: Mapping[str, str], source: str, options: GridOptions
) -> dict[str, tuple[Photo, ...]]:
    """Assign every distractor to a split. One that is also a labelled photograph keeps its split (`part_of`)."""
    assigned = [part_of.get(photo.get_location(source)) for photo in photos]
    free = [i for i, part in enumerate(assigned) if part is None]
    names = [photos[i].name for i in free]
    rest, test = hold_out(names, [0] * len(names), options.test_fraction, options.grid_seed)
    train, val = hold_out([names[i] for i in rest], [0] * len(rest), options.val_fraction, options.grid_seed + 1)
    for part, places in (("train", [rest[i] for i in train]), ("val", [rest[i] for i in val]), ("test", test)):
        for i in places:
            assigned[free[i]] = part
    return {
        part: tuple(photo for photo, where in zip(photos, assigned, strict=True) if where == part)
        for part in ("train", "val", "test")
    }


def _hash_pool(pool: Sequence[Photo]) -> str:
    return compute_split_hash([photo.name for photo in pool], [0] * len(pool))


def _generate_numbers(key: str) -> Iterator[int]:
    """Yield random 64-bit integers that depend only on `key`, not on library versions."""
    digest = sha256(key.encode(errors="surrogateescape")).digest()
    while True:
        yield from (int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
        digest = sha256(digest).digest()
