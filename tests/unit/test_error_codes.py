"""Every error that toast raises has a stable code of a known area."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
AREAS = {
    *(
        "adapter",
        "app",
        "artifact",
        "attention",
        "backbone",
        "bench",
        "cache",
        "checkpoint",
        "cli",
        "data",
        "device",
        "disk",
    ),
    *(
        "export",
        "hub",
        "image",
        "judge",
        "method",
        "plugin",
        "recipe",
        "resume",
        "run",
        "task",
        "text",
        "toast",
        "training",
    ),
    *("serve", "visualize", "weights"),
}
SUBCLASSES = {"ChatTemplateError", "ToastError", "UsageError"}


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call that makes an error, with its place."""
    for file in (file for folder in ("toast_cli", "plugins") for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SUBCLASSES:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def test_every_error_has_a_code() -> None:
    calls = list(raised())
    assert len(calls) > 300
    assert [place for place, call in calls if all(keyword.arg != "code" for keyword in call.keywords)] == []


def test_codes_are_an_area_and_what_is_wrong() -> None:
    codes = {
        (place, keyword.value.value)
        for place, call in raised()
        for keyword in call.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    odd = [each for each in codes if not re.fullmatch(r"[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", str(each[1]))]
    assert odd == []
    assert {str(code).partition(".")[0] for _, code in codes} <= AREAS
