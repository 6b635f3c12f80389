"""The sources of the documentation: short lines, and links and anchors that lead somewhere."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md") if (ROOT / name).is_file())]
FENCED = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")


def read_prose(page: Path) -> str:
    """Return the page without its fenced code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


@cache
def list_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to the page's headings."""
    headings = re.findall(r"^#+ +(.+?) *#*$", read_prose(page), re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in texts}


def find_dead_links(page: Path) -> list[str]:
    """Return the relative links of the page that lead to no file or to no heading."""
    dead = []
    for target in LINK.findall(re.sub(r"`[^`\n]+`", "``", read_prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in list_anchors(file.resolve())):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    assert find_dead_links(page) == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_of_the_site_are_short(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    long = [number for number, line in lines if len(LINK.sub("", line)) > 120 and not line.lstrip().startswith("|")]
    assert long == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c\n[good](#a-b-c) [dead](#d) [dead](gone.md)\n```\n[code](no.md)\n```\n", encoding="utf-8"
    )
    assert find_dead_links(page) == ["#d", "gone.md"]
