"""Class maps of new images: for each a palette image whose pixel values are the classes, and an overlay."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset

from toast_cli.attention.predicted_classes import predict_pixel_classes
from toast_cli.data.base import Sample
from toast_cli.data.images.loader import ignore_interrupts
from toast_cli.evaluation.open_run import OpenedRun
from toast_cli.evaluation.prediction.answers import MapAnswers
from toast_cli.evaluation.prediction.samples import PredictedSample
from toast_cli.evaluation.prediction.sources import PredictionImages
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_atomically
from toast_cli.utils.names import number_names, to_file_name
from toast_cli.utils.table_files import FORMATS, Cell, Row

TABLE_NAME = "predictions.csv"
MAP_FOLDER, OVERLAY_FOLDER = "maps", "overlays"
MAX_JPEG_SIDE = 65_500
"""Longest side of a JPEG, in pixels."""


def check_map_folder(folder: Path, resume: bool) -> None:
    """Check that class maps can be written to a folder.

    Raises:
        UsageError: it is a file, has the name of a table, or has files and `resume` is false.
    """
    if folder.suffix.lower() in FORMATS or folder.is_file():
        raise UsageError(
            f"This model writes class maps, and {folder} is not a folder.",
            what_to_do=f"Name a folder with --out; its table is {TABLE_NAME}.",
            code="cli.invalid-value",
        )
    if folder.is_dir() and not resume and any(folder.iterdir()):
        raise UsageError(
            f"The folder {folder} has files already.",
            what_to_do="Add to it with --resume, or name another folder with --out.",
            code="disk.already-exists",
        )


def has_files(folder: Path, row: Row) -> bool:
    """Return whether the class map and the overlay of a row are in the folder."""
    return all((folder / str(file)).is_file() for file in row[1:3])


def assign_map_names(names: Sequence[str], taken: Mapping[str, Cell]) -> list[str]:
    """Return the path of the class map of every image below the folder, without suffix: the path of the image.

    Absolute paths begin with the deepest folder that they share. No two are equal, also if case is ignored, and none is
    that of an image that the table has already.

    Args:
        names: path of every image as it is shown.
        taken: the class map of every image of the table.
    """
    parents = [os.path.dirname(name) for name in names if PurePath(name).is_absolute()]  # noqa: PTH120
    root = Path(os.path.commonpath(parents)).parent if parents else Path()
    used = {PurePath(str(file)).with_suffix("").as_posix().partition("/")[2].casefold() for file in taken.values()}
    assigned = []
    for name in names:
        path = PurePath(name)
        if path.is_absolute():
            path = path.relative_to(root)
        folders = [to_file_name(part) for part in path.parent.parts if part not in ("..", path.anchor)]
        stem = "/".join([*folders, to_file_name(path.stem)])
        assigned.append(next(free for free in number_names(stem) if free.casefold() not in used))
        used.add(assigned[-1].casefold())
    return assigned


class DecodedImages(Dataset[Any]):
    """Images at their own size, or the error of one that cannot be read."""

    def __init__(self, images: PredictionImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | ToastError:
        try:
            return self.images.load(index)
        except ToastError as error:
            return error


def predict_maps(
    run: OpenedRun, answers: MapAnswers, images: PredictionImages, folder: Path, taken: Mapping[str, Cell], workers: int
) -> Iterator[dict[int, PredictedSample]]:
    """Write the class map and the overlay of every image, and yield its row. Processes take turns.

    Raises:
        ToastError: a file cannot be written.
    """
    from toast_cli.visualize.map_color_scales import compute_class_palette  # imports matplotlib; tables need no colours

    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    names = assign_map_names(images.names, taken)
    own = range(process, len(images), processes)
    loader: Any = DataLoader(
        DecodedImages(images.take(own)),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=ignore_interrupts,
        collate_fn=_return_unchanged,
        prefetch_factor=1 if workers else None,
    )
    palette, nothing = compute_class_palette(len(answers.classes)), [None] * len(answers.columns)
    write = partial(_write_files, run, answers, folder, palette)
    run.model.eval()
    for index, decoded in zip(own, loader, strict=True):
        found = decoded if isinstance(decoded, ToastError) else write(decoded.image, names[index])
        if isinstance(found, ToastError):
            row: Row = (images.names[index], *nothing, found.why or found.what)
        else:
            row = (images.names[index], *found, None)
        yield {index: PredictedSample(row)}
    for _ in range(len(own), -(-len(images) // processes)):
        yield {}


def _write_files(
    run: OpenedRun, answers: MapAnswers, folder: Path, palette: np.ndarray, image: Image, name: str
) -> list[Cell] | ToastError:
    """Write the files of an image and return its cells, or the reason why it cannot be segmented."""
    from toast_cli.visualize.map_color_scales import draw_overlay, make_palette_image

    try:
        with run.accelerator.autocast():
            classes = predict_pixel_classes(run.model, run.recipe.images, image).numpy()
    except ToastError as error:
        return error
    map_file, overlay_file = f"{MAP_FOLDER}/{name}.png", f"{OVERLAY_FOLDER}/{name}.jpg"
    coloured = make_palette_image(classes, palette)
    overlay = draw_overlay(image, coloured)
    overlay.thumbnail((MAX_JPEG_SIDE, MAX_JPEG_SIDE))
    with write_atomically(folder / map_file) as temporary:
        coloured.save(temporary, "png")
    with write_atomically(folder / overlay_file) as temporary:
        overlay.save(temporary, "jpeg", quality=90)
    return answers.format_cells(classes, map_file, overlay_file)


def _return_unchanged(sample: Any) -> Any:
    return sample
