"""The commands of the documentation: each is parsed by the command line, and its settings are in the reference."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from toast_cli.cli.app import app
from toast_cli.utils.errors import ToastError

ROOT = Path(__file__).parent.parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
LOGS = ("docs/reports/", "docs/explanation/decisions/")
"""Records of what was run at a time, with the options of that time."""
FENCED = re.compile(r"^( *)```[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:(?:torchrun|accelerate launch) .*-m toast_cli|toast)\s(?!on )")
"""The beginning of a command in a block: after a prompt, variables, or torchrun."""
STOPS = {"&&", "||", "|", ";", "&", ">", "2>"}
"""Words of the shell that end a command."""
SETTING = re.compile(r"[a-z]+(?:\.[a-z0-9_]+)+=")


def list_commands(text: str) -> list[str]:
    """Return the commands of a page: those of its blocks, with their continued lines."""
    found = []
    for _, block in FENCED.findall(text):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        found += [PROMPT.sub("toast ", line) for line in lines if PROMPT.match(line)]
    prose = FENCED.sub("", text)
    found += [line.strip() for line in prose.splitlines() if re.match(r"    toast \S", line)]
    return found


def list_mentions(text: str) -> list[str]:
    """Return the commands in the sentences of a page."""
    return [" ".join(code.split()) for code in re.findall(r"`(toast\s[^`]+)`", FENCED.sub("", text))]


INCOMPLETE = re.compile(r"Missing (?:parameter|argument)|requires an argument")
"""Mistakes that a sentence may make, as in `toast eval --dataset`."""


def split_words(command: str) -> list[str]:
    """Return the words of a command after `toast`, without what stands for more of them."""
    words = shlex.split(command, comments=True)[1:]
    stop = next((place for place, word in enumerate(words) if word in STOPS), len(words))
    return [word for word in words[:stop] if word not in ("...", "…", "[...]")]


@cache
def build_command_line() -> Any:
    """Return the command line of toast, which parses commands."""
    return typer.main.get_command(app)


def find_mistake(command: str) -> str | None:
    """Return what is wrong with a command, or None if the command line accepts its words."""
    usage_error: Any = typer.BadParameter.__mro__[1]  # typer does not export it
    try:
        words = split_words(command)
        chosen = build_command_line()
        context = chosen.context_class(chosen, info_name="toast")
        while hasattr(chosen, "resolve_command") and words and not words[0].startswith("-"):
            _, chosen, words = chosen.resolve_command(context, words)
            context = chosen.context_class(chosen, info_name="toast", parent=context)
        chosen.make_context("toast", list(words), parent=context.parent)
    except (usage_error, ToastError, ValueError) as error:
        return str(error) or error.message
    except typer.Exit:  # --help
        return None
    unknown = [word for word in words if SETTING.match(word) and not is_setting(word.partition("=")[0])]
    return f"unknown settings: {unknown}" if unknown else None


@cache
def read_fields() -> frozenset[str]:
    """Return the names of all fields of recipes and of data sources in the reference."""
    pages = (ROOT / "docs/reference" / name for name in ("settings.md", "data-sources.md"))
    return frozenset(re.findall(r"^\| `([a-z0-9_]+)` \|", "\n".join(page.read_text("utf-8") for page in pages), re.M))


def is_setting(name: str) -> bool:
    """Return whether a dotted name ends with a field of the reference."""
    return name.rpartition(".")[2] in read_fields() or name.endswith(".name")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_one_that_toast_accepts(page: Path) -> None:
    if page.relative_to(ROOT).as_posix().startswith(LOGS):
        pytest.skip("a log of what was run")
    text = page.read_text(encoding="utf-8")
    wrong = {command: mistake for command in list_commands(text) if (mistake := find_mistake(command)) is not None}
    for command in list_mentions(text):
        if (mistake := find_mistake(command)) is not None and not INCOMPLETE.search(mistake):
            wrong[command] = mistake
    if page.parent.name == "extend":  # plugins of these pages have settings of their own
        wrong = {command: mistake for command, mistake in wrong.items() if not mistake.startswith("unknown settings")}
    assert wrong == {}


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        ("toast tune --epochs 3 training.lr=0.1", None),
        ("toast tune --epoch-count 3", "--epoch-count"),
        ("toast eval --limit few", "integer"),
        ("toast tune training.rate=0.1", "training.rate=0.1"),
        ("toast data check folder:pets --json # a comment", None),
        ("toast compare", "runs"),
        ("toast tuen demo", "tuen"),
    ],
)
def test_mistakes_in_commands_are_found(command: str, mistake: str | None) -> None:
    found = find_mistake(command)
    assert found is None if mistake is None else mistake in (found or "")


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    block = "$ toast tune --dataset demo \\\n    --epochs 1\nout: toast\ntorchrun -m toast_cli tune\n"
    text = f"```\n{block}```\nSee `toast runs ls`, or `toast\nruns ls`.\n"
    assert list_commands(text) == ["toast tune --dataset demo --epochs 1", "toast tune"]
    assert list_mentions(text) == ["toast runs ls", "toast runs ls"]
