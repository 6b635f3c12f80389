"""Pages as a browser would find them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "toast_cli/visualize/templates/interactive_tables.js"


class Page(HTMLParser):
    """What a browser would find in a page: its tags, and the texts in place of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag == "script":
            assert attrs == []
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.tags.append("/script")


def page(path: Path) -> Page:
    """A page that fetches nothing and runs at most toast's own script, which sorts tables."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not {"link", "iframe", "object"} & set(found.tags)
    assert all(script.strip() == SCRIPT.read_text(encoding="utf-8").strip() for script in found.scripts)
    assert all((picture["src"] or "").startswith("data:image/png;base64,") for picture in found.pictures)
    assert all(picture.get("alt") for picture in found.pictures)
    assert not re.search(r"https?://", text) and 'name="viewport"' in text
    return found
