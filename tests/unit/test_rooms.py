"""Who may import whom: the picture in docs/design.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

GROUND = {"errors", "options", "fingerprint", "labels", "places", "sizes", "divided", "pickles", "signals", "regular"}
DOORS = GROUND | {"registry", "backbone", "recipe"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "options": {"errors"},
    "fingerprint": set(),
    "places": set(),
    "sizes": set(),
    "labels": set(),
    "divided": set(),
    "pickles": set(),
    "signals": set(),
    "fused": set(),
    "regular": set(),
    "registry": {"errors", "backbone"},
    "backbone": GROUND,
    "recipe": GROUND | {"registry", "backbone"},
    "steering": GROUND | {"backbone"},
    "methods": GROUND | {"registry", "backbone", "steering"},
    "tasks": GROUND | {"backbone"},
    "data": DOORS,
    "model": DOORS | {"steering", "methods", "tasks"},
    "generation": DOORS | {"data", "model"},
    "storage": DOORS | {"steering", "model"},
    "judging": GROUND | {"data", "generation", "storage"},
    "attention": DOORS | {"steering", "data", "model", "storage"},
    "training": DOORS | {"steering", "methods", "tasks", "data", "model", "storage", "attention"},
    "bench": DOORS | {"storage", "training"},
    "export": DOORS | {"steering", "data", "model", "storage", "attention"},
    "api": DOORS | {"data", "model", "storage", "attention", "generation"},
    "cli": DOORS | {"storage", "attention", "training", "bench", "export", "generation", "judging", "data"},
    "toast_timm": {"errors", "options", "backbone", "pickles"},
    "toast_vit": {"errors", "options", "backbone", "signals", "fused", "toast_timm"},
    "toast_convnext": {"errors", "options", "backbone", "signals", "toast_timm"},
    "toast_llama": {"errors", "options", "backbone", "signals", "fused", "regular"},
    "toast_example": {"errors", "options", "backbone", "signals"},
}


def imported(file: Path) -> set[str]:
    """Rooms of toast_cli that a file imports anywhere in it, and plugins."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "toast_cli" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1])
            elif parts[0].startswith("toast_") and parts[0] != "toast_cli":
                found.add(parts[0])
    return found


def room(file: Path) -> str:
    folder = file.relative_to(ROOT).parts
    return folder[1].removesuffix(".py") if folder[0] == "toast_cli" else file.parent.name


FILES = sorted(
    file
    for folder in (
        "toast_cli",
        "plugins/toast_timm",
        "plugins/toast_vit",
        "plugins/toast_convnext",
        "plugins/toast_llama",
        "plugins/example/toast_example",
    )
    for file in (ROOT / folder).rglob("*.py")
    if file.name not in ("__init__.py", "__main__.py") or file.parent.name.startswith("toast_e")
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_the_rooms_it_may(file: Path) -> None:
    own = room(file)
    assert imported(file) - {own} <= MAY_IMPORT[own]


def test_every_room_is_in_the_picture() -> None:
    rooms = {room(file) for file in FILES}
    assert rooms == set(MAY_IMPORT)


def test_a_run_without_peft_imports_neither_it_nor_what_it_brings() -> None:
    """They take as long as torch itself to import."""
    program = (
        "import sys; from toast_cli.api import steer; import timm, torch; "
        "from toast_cli.training import session, tuning; from toast_cli.model import flops; "
        "print(*(name for name in ('peft', 'transformers') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
