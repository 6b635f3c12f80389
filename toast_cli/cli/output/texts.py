"""Reports on texts, and texts as tokens, on a terminal, in a pipe and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from toast_cli.cli.output.console import err, out, print_line, print_table
from toast_cli.cli.output.data_report import format_spread, print_sentences
from toast_cli.utils.names import escape_newlines

if TYPE_CHECKING:
    from toast_cli.data.text.token_preview import ShownText, ShownToken

BAR, SPECIAL = "\u2502", "\u27ea{}\u27eb"
"""What is between tokens, and around special ones."""

TEXT_FINDINGS = {"truncated": "truncated", "unlearnable": "no token to learn", "rejected": "rejected by the template"}
"""What the findings of a report on texts are called."""


def print_text_report(report: dict[str, Any], limit: int = 5) -> None:
    """Print the report of `toast data check` on texts, with `limit` texts of every kind."""
    table = Table(title=f"{escape(escape_newlines(report['source']))}: texts", title_justify="left")
    table.add_column("")
    for part in report["splits"]:
        table.add_column(part, justify="right")
    table.add_row("texts", *(f"{found['texts']:,}" for found in report["splits"].values()))
    splits = report["splits"].values()
    table.add_row("characters", *(format_spread(found["characters"]) for found in splits))
    if any("tokens" in found for found in splits):
        table.add_row("tokens", *(format_spread(found.get("tokens")) for found in splits))
        table.add_row("token limit", *(f"{found['token_limit']:,}" if "tokens" in found else "" for found in splits))
        for kind, words in TEXT_FINDINGS.items():
            table.add_row(words, *(f"{found[kind]['count']:,}" if "tokens" in found else "" for found in splits))
    print_table(table)
    for note in report["notes"]:
        print_line(note)
    print_sentences(report, "problems", "bold red")
    print_sentences(report, "warnings", "yellow")
    lists = [report["left_out"], *(found["pairs"] for found in report["duplicates"].values())]
    for why, count in report["left_out_by_reason"].items():
        named = [name for name, own in report["left_out"].items() if own == why][:limit]
        more = f" and {count - limit:,} more" if count > limit else ""
        print_line(f"  cannot be used: {', '.join(named)}{more} ({why})")
    for part, found in report["splits"].items():
        for kind in TEXT_FINDINGS:
            listed = found.get(kind, {}).get("texts", [])
            lists.append(listed)
            for text in listed[:limit]:
                detail = (
                    f" ({text['tokens']:,} tokens)"
                    if "tokens" in text
                    else f" ({text['why']})"
                    if "why" in text
                    else ""
                )
                print_line(f"  {TEXT_FINDINGS[kind]}: {part}: {text['name']}{detail}")
    for kind, word in (
        ("copies", "identical"),
        ("nearly_across_splits", "nearly identical"),
        ("nearly_within_a_split", "nearly identical"),
        ("questions_across_splits", "same question"),
    ):
        for pair in report["duplicates"][kind]["pairs"][:limit]:
            answers = f", {'same' if pair['same_answer'] else 'another'} answer" if "same_answer" in pair else ""
            print_line(f"  {word}{answers}: {pair['first']} and {pair['second']}")
    if any(len(found) > limit for found in lists):
        print_line("  Add --out FILE to write the full list.")
    if report["backbone"] is None:
        print_line("Add --backbone lm:MODEL to measure tokens: what is truncated, and what the chat template rejects.")
    if not report["problems"]:
        print_line("No problems found." if not report["warnings"] else "The data set has warnings, but no problems.")


def print_shown_texts(texts: Sequence[tuple[str, ShownText]]) -> None:
    """Print texts with their splits as tokens: a line for every run of tokens that are trained or not, in colour."""
    print_line(f"{BAR} separates tokens, {SPECIAL.format('...')} is a special token.", err)
    for split, text in texts:
        if text.error is not None:
            print_line(f"{split}: {text.name}: not trained. {text.error}")
            continue
        trained = sum(token.trained for token in text.tokens)
        cut = f", cut from {text.whole:,}" if text.whole > len(text.tokens) else ""
        print_line(f"{split}: {text.name}: {len(text.tokens):,} tokens{cut}, {trained:,} trained")
        for learned, run in groupby(text.tokens, lambda token: token.trained):
            out.print(
                Text.assemble(*_list_styled_tokens(learned, list(run))), soft_wrap=True
            )  # wrapping would drop spaces of tokens


def _list_styled_tokens(trained: bool, tokens: Sequence[ShownToken]) -> list[tuple[str, str]]:
    """Return the parts of a line with their styles."""
    style = "bold green" if trained else ""
    parts = [("  trained  " if trained else "  context  ", "bold" if trained else "dim")]
    for place, token in enumerate(tokens):
        parts += [(BAR, "dim")] if place else []
        text = escape_newlines(token.text) or "\u00b7"  # a part of a character
        parts.append((SPECIAL.format(text), "magenta") if token.special else (text, style))
    return parts


def describe_shown_text(text: ShownText) -> dict[str, Any]:
    """Return a text as plain values, with every token: its number, its text, and whether it is trained or special."""
    return {
        "name": text.name,
        "error": text.error,
        "whole": text.whole,
        "tokens": [asdict(each) for each in text.tokens],
    }
