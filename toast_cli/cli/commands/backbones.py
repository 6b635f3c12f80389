"""`toast backbones`: list the available backbones and the packages that provide them."""

from __future__ import annotations

from typing import Any

from toast_cli.cli import options


def print_backbones(as_json: options.JsonOption = False) -> None:
    """List the available backbones.

    A plugin that fails to load is reported; the others are still listed.
    """
    from toast_cli.cli.output.console import err, print_json, print_line, print_table

    known, families, failures = _collect_backbones()
    if as_json:
        print_json({"backbones": known, "families": families, "failures": failures})
        return

    from rich import box
    from rich.table import Table

    table = Table("name", "family", "parameters", "from", "package", box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for card in known:
        size = _format_millions(card["parameters"])
        table.add_row(card["name"], card["family"], size, card["source"], card["package"])
    for family in families:
        source = f"any model of this family in {family['library']}"
        table.add_row(f"{family['name']}:<...>", family["name"], "", source, family["package"])
    print_table(table)
    for failure in failures:
        print_line(f"{failure['name']}: {failure['reason']}", err)


def _collect_backbones() -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]]]:
    from toast_cli import registry
    from toast_cli.utils.errors import ToastError

    known: list[dict[str, Any]] = []
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
                    card = registry.load_backbone_card(name)
                    size = {"parameters": card.parameters, "source": card.source, "package": package}
                    known.append({"name": name, "family": card.family, **size})
            except ToastError as error:
                failures.append({"name": name, "reason": " ".join(part for part in (error.what, error.why) if part)})
    return known, families, failures


def _format_millions(parameters: int | None) -> str:
    """Format a parameter count, e.g. 85798656 as "85.8M". An unknown count (None) gives an empty string."""
    return "" if parameters is None else f"{parameters / 1e6:.1f}M"
