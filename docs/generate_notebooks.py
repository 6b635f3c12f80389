"""Generate the notebooks of tutorials from their pages: `python docs/generate_notebooks.py [--check]`.

A block of Python or Bash becomes a cell, and the text between becomes Markdown. A block of `text` is an output that the
page shows, and is left out: a cell shows its own. The notebooks are checked in; a test runs this with `--check` and
executes them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).parent / "tutorials"
NOTEBOOKS = ("photographs",)
"""Tutorials whose commands run without a download."""
OUTPUT_BLOCK = re.compile(r"^```text\n.*?^```\n\n?", re.MULTILINE | re.DOTALL)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
HEADER = f"---\njupyter:\n  kernelspec: {json.dumps(KERNEL)}\n---\n\n"
"""Without it, jupytext takes the most frequent language of the page for that of the notebook."""


def generate_notebook(page: str) -> str:
    """Return the notebook of a page, as JSON."""
    notebook = jupytext.reads(HEADER + OUTPUT_BLOCK.sub("", page), fmt="md")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return nbformat.writes(notebook, version=4) + "\n"


def main() -> int:
    """Write the notebooks, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a notebook is out of date")
    check = parser.parse_args().check
    stale = []
    for name in NOTEBOOKS:
        generated = generate_notebook((TUTORIALS / f"{name}.md").read_text(encoding="utf-8"))
        file = TUTORIALS / f"{name}.ipynb"
        if not file.is_file() or file.read_text(encoding="utf-8") != generated:
            stale.append(file.name)
            if not check:
                file.write_text(generated, encoding="utf-8")
    if check and stale:
        print(f"Out of date: {', '.join(stale)}. Run: python docs/generate_notebooks.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
