"""Names: one public class or function a name, and a glossary whose modules exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_no_public_class_or_function_is_defined_in_two_modules() -> None:
    homes = defaultdict(list)
    for file in (file for folder in ("toast_cli", "plugins") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(file.relative_to(ROOT).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_the_modules_of_the_glossary_exist() -> None:
    modules = set(re.findall(r"`(toast_cli[\w.]+)`", (ROOT / "docs/reference/glossary.md").read_text(encoding="utf-8")))
    assert len(modules) > 25
    assert [name for name in modules if find_spec(name) is None] == []
