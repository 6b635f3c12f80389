"""The names that plugins import, and the hints that name the library to install."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import toast_cli.plugin

ROOT = Path(__file__).parent.parent.parent


def test_every_name_is_imported_for_type_checkers_and_at_run_time() -> None:
    tree = ast.parse(Path(toast_cli.plugin.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {(node.module, alias.name) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    lazy = {(module, name) for module, names in toast_cli.plugin._NAMES.items() for name in names.split()}
    assert typed == lazy
    assert all(hasattr(toast_cli.plugin, name) for name in dir(toast_cli.plugin))


def test_what_a_card_needs_brings_no_torch() -> None:
    program = "import sys; from toast_cli.plugin import BackboneOptions, Card, Family; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"


def test_hints_to_install_a_library_name_it_as_the_extras_do() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "toast_cli").rglob("*.py")]
    hints = {
        each for text in sources for line in re.findall(r"pip install (\"[^'\n]*\")", text) for each in line.split()
    }
    assert len(hints) > 5 and all(hint in project for hint in hints), hints
    assert [text for text in sources if "toast-cli" in text] == [], "another project has this name on the package index"
