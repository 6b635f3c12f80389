"""What the page saves: the picture, the arrays, and the commands that compute the same arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from toast_cli.serve.page.image_explorer import LookSettings, PageImage, RunLook
from toast_cli.serve.page.look_captions import list_captioned_maps
from toast_cli.serve.page.page_options import PageOptions
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import make_write_error, write_atomically, write_text
from toast_cli.utils.names import number_names, quote_argument, shorten_name, to_file_name
from toast_cli.visualize.heat_overlay import CaptionedMap, draw_captioned_maps

PICTURE, ARRAYS, PHOTO, COMMANDS, AGAIN = "picture.png", "maps.npz", "photo.png", "command.txt", "again"
LONGEST_FOLDER_NAME = 60


def save_look(
    options: PageOptions,
    image: PageImage,
    looks: Mapping[str, RunLook],
    settings: LookSettings,
    opacity: float,
) -> tuple[Path, list[str]]:
    """Write picture, arrays and commands to a new folder; return it and the commands.

    The arrays are those of `toast visualize-attention`: named as its maps are or, for several runs, `RUN/MAP`. The
    photograph is saved too if it is no test picture, because a browser does not tell where it came from.

    Raises:
        ToastError: The folder of the run is gone, or the files cannot be written.
    """
    root = options.save_folder
    if options.out is None and options.first_is_folder and not options.runs[0].is_dir():
        raise ToastError(
            f"The run {options.runs[0]} is gone, so nothing can be saved in it.",
            "Its folder was moved or deleted after the page was opened.",
            "Start the page again with the new place of the run, or with --out.",
            code="app.missing-run",
        )
    name = f"test-{image.index}" if image.index is not None else to_file_name(Path(image.sample.name).stem)
    folder = create_free_folder(root, name[:LONGEST_FOLDER_NAME])
    paths = dict(zip(options.names, options.runs, strict=True))
    commands = [
        format_command(
            options, paths[name], image, folder, folder / AGAIN / (name if len(looks) > 1 else ""), look, settings
        )
        for name, look in looks.items()
    ]
    rows = [_head_row(name if len(looks) > 1 else "", image, look, settings) for name, look in looks.items()]
    arrays = {
        map if len(looks) == 1 else f"{run}/{map}": tensor.numpy()
        for run, look in looks.items()
        for map, tensor in look.view.maps.items()
    }
    try:
        with write_atomically(folder / PICTURE) as place:
            draw_captioned_maps(image.sample.image, rows, opacity).save(place, "PNG")
        with write_atomically(folder / ARRAYS) as place, place.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        if image.index is None:
            with write_atomically(folder / PHOTO) as place:
                image.sample.image.save(place, "PNG")
    except OSError as error:
        raise make_write_error(folder, error) from error
    write_text(folder / COMMANDS, "\n".join(commands) + "\n")
    return folder, commands


def format_command(
    options: PageOptions, run: Path, image: PageImage, folder: Path, out: Path, look: RunLook, settings: LookSettings
) -> str:
    """Return the command that writes the same arrays of one run to `out`; `folder` has the photograph."""
    what = [str((folder / PHOTO).absolute())] if image.index is None else ["--test-image", str(image.index)]
    parts = ["toast", "visualize-attention", *what, "--run", str(run.absolute()), "--layer", str(look.level)]
    if look.view.kind == "attention":
        parts += ["--head", str(settings.head)]
    if "pass_two" in look.view.maps:
        parts += ["--alpha", f"{settings.strength:g}"]
        if settings.box is not None:
            parts += ["--point" if settings.box.is_point else "--box", settings.box.format()]
    for option, value in (
        ("--weights", options.weights),
        ("--data-dir", options.data_dir),
        ("--device", options.device),
    ):
        parts += [option, value] if value is not None else []
    return " ".join(map(quote_argument, [*parts, "--out", str(out.absolute())]))


def create_free_folder(root: Path, name: str) -> Path:
    """Create a folder of this name, with the first free number.

    Raises:
        ToastError: It cannot be created.
    """
    for numbered in number_names(name or "image"):
        folder = root / numbered
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise make_write_error(folder, error) from error
        return folder
    raise AssertionError("there is always a free number")


def _head_row(name: str, image: PageImage, look: RunLook, settings: LookSettings) -> list[CaptionedMap]:
    maps = list_captioned_maps(image, look, settings)
    return [CaptionedMap("\n".join(filter(None, [shorten_name(name, 40), "the photograph"]))), *maps]
