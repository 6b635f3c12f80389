"""The sources of the documentation: short lines, and links and anchors that lead somewhere."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md") if (ROOT / name).is_file())]
FENCED = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
EXPLAINED = sorted((ROOT / "docs" / "explanation").glob("*.md"))
NAME_IN_CODE = re.compile(r"`(toast_\w+(?:\.\w+)+)`")
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


def find_unknown_names(page: Path) -> list[str]:
    """Return the names of modules, classes and functions in the page that cannot be imported."""
    unknown = []
    for name in NAME_IN_CODE.findall(read_prose(page)):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            unknown.append(name)
    return unknown


@pytest.mark.parametrize("page", EXPLAINED, ids=lambda page: page.name)
def test_named_code_of_explanations_exists(page: Path) -> None:
    assert find_unknown_names(page) == []


def test_each_equation_of_the_method_names_its_code() -> None:
    text = (ROOT / "docs" / "explanation" / "method.md").read_text(encoding="utf-8")
    sections = [part for part in re.split(r"^##+ ", text, flags=re.MULTILINE) if "```" in part]
    assert len(sections) >= 6
    assert [part.splitlines()[0] for part in sections if not NAME_IN_CODE.search(part)] == []


def test_the_picture_of_the_method_is_what_its_script_draws() -> None:
    assets = ROOT / "docs" / "assets"
    draw = runpy.run_path(str(assets / "draw_method.py"))["draw_method"]
    assert (assets / "method.svg").read_text(encoding="utf-8") == draw()


def test_unknown_names_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`toast_cli.utils.errors.ToastError` `toast_cli.utils.gone` `toast_cli.utils.errors.Gone`\n")
    assert find_unknown_names(page) == ["toast_cli.utils.gone", "toast_cli.utils.errors.Gone"]
