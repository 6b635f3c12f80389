"""The report of `toast data check` on a data set of images, and the parts that it shares with that on texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from toast_cli.cli.output.console import out, print_line, print_table
from toast_cli.data.splits import CLASS_NOUNS
from toast_cli.utils.names import escape_newlines


def print_image_report(report: dict[str, Any]) -> None:
    """Print the report on a data set of images."""
    one, several = CLASS_NOUNS[report["target"]]
    count = f"{report['classes']} {one if report['classes'] == 1 else several}"
    table = Table(title=f"{escape_newlines(report['source'])}: {count}", title_justify="left")
    table.add_column("")
    for part in report["splits"]:
        table.add_column(part, justify="right")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "images": lambda found: f"{found['images']:,}",
        "cannot be read": lambda found: f"{len(found['unreadable']):,}",
    }
    if report["target"] == "number":
        names = dict.fromkeys(name for found in report["splits"].values() for name in found["numbers"])
        for name in names:
            rows[f"number: {escape_newlines(name)}"] = lambda found, name=name: format_spread(
                found["numbers"].get(name)
            )  # type: ignore[misc]
    else:
        rows[f"images per {one}"] = lambda found: format_spread(found["images_per_class"])
    rows |= {
        "width": lambda found: format_spread(found["width"]),
        "height": lambda found: format_spread(found["height"]),
    }
    for name, format_cell in rows.items():
        table.add_row(name, *map(format_cell, report["splits"].values()))
    print_table(table)
    for note in report["notes"]:
        print_line(note)
    print_sentences(report, "problems", "bold red")
    print_sentences(report, "warnings", "yellow")
    for line in _list_examples(report):
        print_line(line)
    if any(found["unreadable"] for found in report["splits"].values()):
        print_line("Replace or remove these files, or train without them: images.on_error=skip.")
    if not report["problems"]:
        print_line("No problems found." if not report["warnings"] else "The data set has warnings, but no problems.")


def print_missing(report: dict[str, Any], limit: int = 100) -> None:
    """Print the names of missing files, `limit` of them at most."""
    print_sentences(report, "problems", "bold red")
    for name in report["missing"][:limit]:
        print_line(f"  missing: {name}")
    if len(report["missing"]) > limit:
        print_line("  Add --out FILE to write the full list.")
    print_line(f"{report['what_to_do']} The images are checked once all files exist.")


def print_sentences(report: dict[str, Any], kind: str, style: str) -> None:
    """Print the `problems` or the `warnings` of a report."""
    for sentence in report[kind]:
        out.print(Text(f"{kind.removesuffix('s')}: ", style=style), end="")
        print_line(sentence)


def _list_examples(report: dict[str, Any], limit: int = 5) -> list[str]:
    """Return lines that name up to `limit` files for each kind of problem and warning."""
    lines = []
    for part, found in report["splits"].items():
        lines += [f"  cannot be read: {part}: {file['name']} ({file['why']})" for file in found["unreadable"][:limit]]
        lines += [f"  outside the image: {part}: {name}" for name in found["outside"][:limit]]
    words = {
        "across_splits": "identical",
        "changed_across_splits": "same picture",
        "within_a_split": "identical",
        "nearly_across_splits": "nearly identical",
    }
    for kind, word in words.items():
        for pair in report["duplicates"][kind]["pairs"][:limit]:
            mirrored = ", mirrored" if pair["mirrored"] else ""
            other = "" if pair["same_class"] else f" (different {CLASS_NOUNS[report['target']][1]})"
            lines.append(f"  {word}{mirrored}: {pair['first']} and {pair['second']}{other}")
    truncated = any(len(report["duplicates"][kind]["pairs"]) > limit for kind in words) or any(
        len(found[kind]) > limit for found in report["splits"].values() for kind in ("unreadable", "outside")
    )
    leaked = report["duplicates"]["across_splits"]["count"] + report["duplicates"]["changed_across_splits"]["count"]
    if leaked:
        lines.append("  Remove one image of each pair that is in two splits, preferably from train.")
    return [*lines, "  Add --out FILE to write the full list."] if truncated else lines


def format_spread(values: dict[str, float] | None) -> str:
    """Format minimum, median and maximum, or one number if they are equal."""
    if values is None:
        return ""
    least, middle, most = (f"{values[key]:,g}" for key in ("least", "median", "most"))
    return least if least == most else f"{least} … {middle} … {most}"
