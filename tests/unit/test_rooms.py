"""Layout of the packages: who may import whom, how large a folder may be, and that imports form no cycle.

A room is a first-level folder or module of `toast_cli`; all plugins together are one more.
DESCRIBED in docs/explanation/design.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "utils": set(),
    "backbones": {"utils"},
    "registry": {"backbones", "utils"},
    "recipe": {"registry", "backbones", "utils"},
    "steering": {"backbones", "utils"},
    "methods": {"registry", "steering", "backbones", "utils"},
    "tasks": {"backbones", "utils"},
    "data": {"recipe", "registry", "backbones", "utils"},
    "model": {"data", "methods", "tasks", "steering", "recipe", "backbones", "utils"},
    "storage": {"model", "steering", "recipe", "backbones", "utils"},
    "attention": {"model", "data", "tasks", "steering", "recipe", "backbones", "utils"},
    "visualize": {"attention", "model", "data", "recipe", "backbones", "utils"},
    "training": {
        *("attention", "storage", "model", "data", "tasks", "steering", "recipe", "backbones", "utils"),
    },
    "export": {"attention", "storage", "model", "data", "steering", "recipe", "registry", "backbones", "utils"},
    "evaluation": {
        *("visualize", "training", "attention", "storage", "model", "data", "tasks", "steering", "recipe", "utils"),
        "registry",
    },
    "bench": {"visualize", "training", "storage", "model", "recipe", "registry", "utils"},
    "api": {
        *("evaluation", "training", "attention", "storage", "model", "data", "steering", "recipe", "registry"),
        *("backbones", "utils"),
    },
    "serve": {
        *("api", "evaluation", "training", "visualize", "attention", "storage", "model", "data", "recipe", "utils"),
    },
    "cli": {
        "serve",
        *("bench", "evaluation", "training", "export", "visualize", "attention", "storage", "model", "data", "recipe"),
        *("tasks", "registry", "backbones", "utils"),
    },
    "__init__": {"api", "export", "training", "utils"},
    "__main__": {"cli"},
    "plugin": {"registry", "backbones", "data", "export", "methods", "steering", "storage", "tasks", "utils"},
    "plugins": {"plugin"},
}
DRAWS = {"visualize", "bench/tables"}
"""The only folders, with those in them, that import matplotlib."""
ONE_FILE_PER_REGISTRATION = {"cli/commands", "data/datasets", "export/formats"}
"""Folders that may hold more than `MOST_MODULES`."""
MOST_ROOMS = 24
MOST_MODULES = 18
MOST_SMALL_FILES = 25
SMALL = 50
"""Lines below which a file is small."""


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[2:] if parts[:2] == ("plugins", "example") else parts[1:] if parts[0] == "plugins" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(file): file
    for folder in ("toast_cli", "plugins")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "tests" not in file.relative_to(ROOT).parts
}


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_imported(module: str) -> set[str]:
    """Return the modules of this repository that a module imports."""
    found = set()
    for name in imports(FILES[module]):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        found |= {name} - {"", module}
    return found


IMPORTS = {module: modules_imported(module) for module in FILES}


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    return "plugins" if package != "toast_cli" else rest.partition(".")[0] or "__init__"


def cycles() -> list[list[str]]:
    """Return the strongly connected components of the import graph that hold more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for imported in IMPORTS[module]:
            if imported not in index:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], index[imported])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in IMPORTS:
        if module not in index:
            visit(module)
    return found


def violations() -> Iterator[str]:
    """Yield one line per broken rule."""
    rooms = {room_of(module) for module in FILES}
    if rooms != set(MAY_IMPORT):
        yield f"rooms that MAY_IMPORT lacks or no longer needs: {sorted(rooms ^ set(MAY_IMPORT))}"
    if len(rooms) > MOST_ROOMS:
        yield f"{len(rooms)} rooms, at most {MOST_ROOMS}"
    for module, imported in IMPORTS.items():
        room = room_of(module)
        for other in sorted(imported):
            if room_of(other) not in {room, *MAY_IMPORT.get(room, ())}:
                yield f"{module} imports {other}"
    yield from (f"cycle: {' <-> '.join(cycle)}" for cycle in cycles())
    folders = Counter(file.parent.relative_to(ROOT / "toast_cli").as_posix() for file in package_files())
    for folder, count in folders.items():
        if count > MOST_MODULES and folder not in ONE_FILE_PER_REGISTRATION:
            yield f"{folder} holds {count} modules, at most {MOST_MODULES}"
    small = [file for file in package_files() if len(file.read_text(encoding="utf-8").splitlines()) < SMALL]
    if len(small) > MOST_SMALL_FILES:
        yield f"{len(small)} files below {SMALL} lines, at most {MOST_SMALL_FILES}"
    for file in package_files():
        place = file.parent.relative_to(ROOT / "toast_cli").as_posix()
        may_draw = any(f"{place}/".startswith(f"{folder}/") for folder in DRAWS)
        if not may_draw and any(name.partition(".")[0] == "matplotlib" for name in imports(file)):
            yield f"{file.relative_to(ROOT)} imports matplotlib"


def package_files() -> list[Path]:
    """Return the modules of `toast_cli` that hold code of their own."""
    inside = [file for module, file in FILES.items() if room_of(module) != "plugins"]
    return [file for file in inside if file.name not in ("__init__.py", "__main__.py")]


def test_the_layout_keeps_its_rules() -> None:
    assert list(violations()) == []


@pytest.mark.e2e
def test_a_run_without_peft_imports_neither_it_nor_what_it_brings() -> None:
    """They take as long as torch itself to import."""
    program = (
        "import sys; from toast_cli.api import steer; import timm, torch; "
        "from toast_cli.training import session, tune; from toast_cli.model.model import count_flops; "
        "print(*(name for name in ('peft', 'transformers') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
