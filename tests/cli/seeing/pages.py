"""Pages as a browser would find them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """What a browser would find in a page: its tags, and the texts in place of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path) -> Page:
    """A page that fetches nothing and runs nothing."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all((picture["src"] or "").startswith("data:image/png;base64,") for picture in found.pictures)
    assert all(picture.get("alt") for picture in found.pictures)
    assert not re.search(r"https?://", text) and 'name="viewport"' in text
    return found
