"""`toast backbones`: list the available backbones, search everything that can be built, and check a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.backbones.base import Card

SHOWN = 30
"""Models that a search shows without --limit."""

PUBLISHED = {True: "yes", False: "no", None: ""}


def print_backbones(
    search: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Search everything that can be built: names, kinds of network, every model of timm."
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Say whether and how a backbone can be steered, without its weights or a network."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Models that --search shows. [default: {SHOWN}; all with --json]")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """List the available backbones, search everything that can be built, or check a model.

    A plugin that fails to load is reported; the others are still listed.
    """
    from toast_cli.utils.errors import UsageError

    if search is not None and check is not None:
        raise UsageError("--search and --check exclude each other.", code="cli.conflicting-options")
    if check is not None:
        _print_check(check, as_json)
    elif search is not None:
        _print_search(search, limit, as_json)
    else:
        _print_list(as_json)


def _print_list(as_json: bool) -> None:
    from toast_cli.cli.output.console import err, print_json, print_line

    cards, families, failures = _collect_backbones()
    known = [{**_describe_card(card), "name": name, "package": package} for name, card, package in cards]
    if as_json:
        print_json({"backbones": known, "families": families, "failures": failures})
        return
    rows = [{**card, "published": None} for card in known]
    for family in families:
        source = f"any model of this family in {family['library']}"
        rows.append({**family, "name": f"{family['name']}:<...>", "family": family["name"], "source": source})
    _print_table(rows, ["package"])
    for failure in failures:
        print_line(f"{failure['name']}: {failure['reason']}", err)


def _print_search(text: str, limit: int | None, as_json: bool) -> None:
    from toast_cli.backbones.search import search_cards
    from toast_cli.cli.output.console import err, print_json, print_line
    from toast_cli.utils.errors import UsageError, did_you_mean

    cards, families, failures = _collect_backbones()
    short, listed = [card for _, card, _ in cards], list(_list_catalogues(failures))
    found = [_describe_card(card) for card in search_cards(text, short, listed)]
    words = text.lower().split()
    prefixes = [
        {"name": f"{each['name']}:<...>", "family": each["name"], "source": f"any model of {each['library']}"}
        for each in families
        if words and all(word in f"{each['name']}: {each['library']}".lower() for word in words)
    ]
    if not found and not prefixes:
        names = [card.name for card in (*short, *listed)] + [card.name.partition(":")[2] for card in listed]
        raise UsageError(
            f"No backbone matches '{text}'.",
            what_to_do=f"{did_you_mean(text, names)} Models of the hub that are not listed can still be "
            "named with the prefix of their family.".strip(),
            code="backbone.nothing-found",
        )
    for failure in failures:
        print_line(f"{failure['name']}: {failure['reason']}", err)
    if as_json:
        print_json({"found": len(found), "backbones": found[:limit], "families": prefixes})
        return
    shown = found[: limit or SHOWN]
    _print_table([*prefixes, *shown], [])
    if len(found) > len(shown):
        print_line(f"{len(found) - len(shown)} more. Add a word to the search, or --limit {len(found)} to see all.")


def _print_check(name: str, as_json: bool) -> None:
    from toast_cli import registry
    from toast_cli.backbones.search import find_listed_card
    from toast_cli.backbones.steering_check import check_steering
    from toast_cli.cli.output.console import print_json, print_line

    card = registry.load_backbone_card(name)
    prefix, colon, model = name.partition(":")
    family = registry.load_entry(registry.FAMILIES, prefix) if colon else None
    listed = None if family is None else find_listed_card(model, _list_catalogues([], family.library))
    found = check_steering(card, name, listed, family_known=family is None or family.wrap is not None)
    if as_json:
        print_json(found.as_dict())
        return
    for line in found.format_lines():
        print_line(line)


def _list_catalogues(failures: list[dict[str, str]], library: str | None = None) -> Iterable[Card]:
    """Yield the cards of the families' catalogues, of one library or all; add those that fail to `failures`."""
    from toast_cli import registry
    from toast_cli.utils.errors import ToastError

    for name in registry.list_names(registry.FAMILIES):
        try:
            family = registry.load_entry(registry.FAMILIES, name)
        except ToastError:  # reported by _collect_backbones
            continue
        if family.catalogue is None or library not in (None, family.library):
            continue
        try:
            yield from family.catalogue()
        except Exception as error:  # a library may raise anything; the others are still searched
            failures.append({"name": name, "reason": f"{type(error).__name__}: {error}"})


def _describe_card(card: Card) -> dict[str, Any]:
    size = card.image_size
    return {
        "name": card.name,
        "family": card.family,
        "parameters": card.parameters,
        "image_size": list(size) if isinstance(size, tuple) else size,
        "licence": card.licence,
        "published": card.published,
        "source": card.source,
    }


def _collect_backbones() -> tuple[list[tuple[str, Card, str]], list[dict[str, Any]], list[dict[str, str]]]:
    """Return all short names with card and package, all prefixes of families, and all plugins that failed."""
    from toast_cli import registry
    from toast_cli.utils.errors import ToastError

    cards: list[tuple[str, Card, str]] = []
    families: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for group in (registry.BACKBONES, registry.FAMILIES):
        for name, claims in sorted(registry.list_entries(group).items()):
            package = claims[0].package
            try:
                if group == registry.FAMILIES:
                    family = registry.load_entry(group, name)
                    if family.card is not None:  # others have the prefix of their library
                        families.append({"name": name, "library": family.library, "package": package})
                else:
                    cards.append((name, registry.load_backbone_card(name), package))
            except ToastError as error:
                failures.append({"name": name, "reason": " ".join(part for part in (error.what, error.why) if part)})
    return cards, families, failures


def _print_table(rows: Sequence[Mapping[str, Any]], further: Sequence[str]) -> None:
    """Print a table of cards on stdout. Missing fields give empty cells; `further` are further columns, by field."""
    from rich import box
    from rich.table import Table

    from toast_cli.cli.output.console import print_table

    published = any(row.get("published") is not None for row in rows)
    columns = ["name", "family", "parameters", "image", *["weights"] * published, "licence", "from", *further]
    table = Table(*columns, box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for row in rows:
        cells = [row["name"], row["family"], _format_millions(row.get("parameters")), _format_size(row)]
        cells += [PUBLISHED[row.get("published")]] * published
        table.add_row(*cells, row.get("licence") or "", row["source"], *(row[field] for field in further))
    print_table(table)


def _format_millions(parameters: int | None) -> str:
    """Format a parameter count, e.g. 85798656 as "85.8M". An unknown count (None) gives an empty string."""
    return "" if parameters is None else f"{parameters / 1e6:.1f}M"


def _format_size(row: Mapping[str, Any]) -> str:
    size = row.get("image_size")
    return "" if size is None else str(size) if isinstance(size, int) else "×".join(map(str, size))
