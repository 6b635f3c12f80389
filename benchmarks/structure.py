"""Figures of the code's structure: rooms, imports between them, cycles, small files, and the way of a recipe.

    python benchmarks/structure.py            # static figures
    python benchmarks/structure.py --walk     # also follow the recipe of a small 'toast tune' through the calls

The walk counts the functions of toast that are called with the recipe, or with the partial recipe it is built from, as
an argument: how many files they lie in, and how often a call returns to a file that the recipe had left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.unit import test_rooms as rooms  # noqa: E402


def print_static() -> None:
    pairs = {
        (rooms.room_of(module), rooms.room_of(imported))
        for module, found in rooms.IMPORTS.items()
        for imported in found
        if rooms.room_of(module) != rooms.room_of(imported)
    }
    lines = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in rooms.FILES.items()}
    small = [file for file in rooms.package_files() if len(file.read_text(encoding="utf-8").splitlines()) < rooms.SMALL]
    print(f"rooms: {len({rooms.room_of(module) for module in rooms.FILES})}")
    print(f"imports between rooms: {len(pairs)}")
    print(f"imports that the rules forbid: {sum(' imports ' in each for each in rooms.violations())}")
    print(f"import cycles: {len(rooms.cycles())}")
    print(f"files: {len(lines)}, lines: {sum(lines.values()):,}, files below {rooms.SMALL} lines: {len(small)}")


def print_walk() -> None:
    from toast_cli.cli.app import app
    from toast_cli.recipe.schema import Recipe
    from toast_cli.recipe.unvalidated_recipe import PartialRecipe

    calls: list[str] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(str(ROOT / "toast_cli")) or "<" in frame.f_code.co_name:
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(isinstance(frame.f_locals.get(name), Recipe | PartialRecipe) for name in names):
            calls.append(Path(file).relative_to(ROOT).as_posix())

    small = ["dataset.train_images=20", "dataset.val_images=10", "dataset.test_images=10", "training.epochs=1"]
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(record)
        try:
            app(["tune", "--output-dir", f"{folder}/run", "training.warmup_epochs=0", *small])
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            sys.setprofile(None)
    stays = [file for index, file in enumerate(calls) if index == 0 or calls[index - 1] != file]
    print(f"calls with the recipe: {len(calls)}, files: {len(set(calls))}, returns to a file: "
          f"{len(stays) - len(set(stays))}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walk", action="store_true", help="also follow the recipe of a small run")
    print_static()
    if parser.parse_args().walk:
        print_walk()
