"""A script that needs no toast: a module with the functions that it imports from toast copied into it.

An export and the tool then prepare images by the same lines of code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import SCRIPT_FILE
from toast_cli.utils.files import write_text

if TYPE_CHECKING:
    from toast_cli.storage.load_model import LoadedModel

OWN_PREFIX = "toast_cli."
SCRIPT_MODULE = "toast_cli.export.infer"


def write_inference_script(loaded: LoadedModel, folder: Path) -> None:
    """Write the script that runs exports of image classifiers and of numbers; nothing for another task."""
    if loaded.model.objective.target in ("class", "labels", "number"):
        write_text(folder / SCRIPT_FILE, build_standalone_script(_find_source(SCRIPT_MODULE)))


def build_standalone_script(path: Path) -> str:
    """Return the text of a module with its imports from toast replaced by what they import."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    own = [node for node in tree.body if isinstance(node, ast.ImportFrom) and _is_own(node)]
    imports = {line for node in tree.body if node not in own for line in _format_imports(node)}
    copied: list[str] = []
    for node in own:
        module = _Module(_find_source(node.module or ""))
        found, needed = module.copy([alias.name for alias in node.names])
        copied += found
        imports |= needed
    lines = text.splitlines(keepends=True)
    body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    docstring, rest = body[0], body[1:]
    head = "".join(lines[: docstring.end_lineno])
    tail = "".join(lines[_first_line(rest[0]) - 1 :])
    # `from __future__` has to be the first import.
    ordered = sorted(imports, key=lambda line: ("__future__" not in line, line.startswith("from"), line))
    return "\n".join((head, *ordered, "\n", "\n\n\n".join(copied), "\n", tail))


class _Module:
    """The source of a module, from which definitions are copied with all that they use."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.lines = text.splitlines(keepends=True)
        tree = ast.parse(text)
        self.definitions: dict[str, tuple[int, int]] = {}
        self.nodes: dict[str, ast.stmt] = {}
        self.imports: dict[str, str] = {}
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            for line, name in _iterate_imported_names(node):
                self.imports[name] = line
            if (defined := _get_defined_name(node)) is not None:
                documented = isinstance(after, ast.Expr) and isinstance(node, ast.Assign | ast.AnnAssign)
                end = (after.end_lineno if documented and after is not None else node.end_lineno) or 0
                self.definitions[defined], self.nodes[defined] = (_first_line(node), end), node

    def copy(self, names: list[str]) -> tuple[list[str], set[str]]:
        """Return the source of these definitions and of those that they use, and the imports that all of them need."""
        wanted, waiting, imports = set[str](), list(names), set[str]()
        while waiting:
            name = waiting.pop()
            if name in self.imports:
                imports.add(self.imports[name])
            elif name in self.definitions and name not in wanted:
                wanted.add(name)
                waiting += [node.id for node in ast.walk(self.nodes[name]) if isinstance(node, ast.Name)]
        places = sorted(self.definitions[name] for name in wanted)
        return ["".join(self.lines[first - 1 : last]).rstrip() for first, last in places], imports


def _is_own(node: ast.ImportFrom) -> bool:
    return (node.module or "").startswith(OWN_PREFIX)


def _find_source(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


def _first_line(node: ast.stmt) -> int:
    """Return the first line of a statement, its decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return decorators[0].lineno if decorators else node.lineno


def _get_defined_name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
    )
    return target.id if isinstance(target, ast.Name) else None


def _format_imports(node: ast.stmt) -> list[str]:
    return [line for line, _ in _iterate_imported_names(node)]


def _iterate_imported_names(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield each name that a statement imports, as an import of its own, and the name."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        begin = f"from {node.module} import " if isinstance(node, ast.ImportFrom) else "import "
        for alias in node.names:
            renamed = f" as {alias.asname}" if alias.asname else ""
            yield f"{begin}{alias.name}{renamed}", alias.asname or alias.name.partition(".")[0]
