"""The registry of plugins, through entry points. Listing names imports no plugin.

There is one group per kind of plugin. The modules that entry points name must be importable without torch; the
objects import heavy libraries when they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

BACKBONES = "toast.backbones"
FAMILIES = "toast.families"
METHODS = "toast.methods"
TASKS = "toast.tasks"
SOURCES = "toast.data"
EXPORTS = "toast.export"

_GROUP_LABELS = {
    BACKBONES: "backbone",
    FAMILIES: "backbone family",
    METHODS: "method",
    TASKS: "task",
    SOURCES: "data set",
    EXPORTS: "export format",
}


@dataclass(frozen=True)
class RegistryEntry:
    """One registered name, where it is defined, and the installed package that registers it."""

    name: str
    value: str
    package: str
    point: EntryPoint


@cache
def _read_entry_points() -> Any:  # Python 3.11 has another type than later versions; both have `select`
    """Return the entry points of all installed packages. Cached, as a file of each package is read."""
    return entry_points()


def _select_entry_points(group: str) -> EntryPoints:
    points: EntryPoints = _read_entry_points().select(group=group)
    return points


@cache
def list_entries(group: str) -> Mapping[str, tuple[RegistryEntry, ...]]:
    """Return all registrations of a group by name. If a name has more than one, several packages claim it."""
    entries: dict[str, tuple[RegistryEntry, ...]] = {}
    for point in _select_entry_points(group):
        package = point.dist.name if point.dist else "unknown package"
        entry = RegistryEntry(point.name, point.value, package, point)
        others = entries.get(point.name, ())
        # A package that is on the path twice (an editable install and a wheel) registers a name once.
        if all((other.value, other.package) != (entry.value, package) for other in others):
            entries[point.name] = (*others, entry)
    return entries


def list_names(group: str) -> list[str]:
    """Return all registered names of a group, sorted."""
    return sorted(list_entries(group))


def load_entry(group: str, name: str) -> Any:
    """Return the object registered under `name`.

    Raises:
        UsageError: The name is not registered. The message offers the nearest one.
        ToastError: Two packages claim the name, or the plugin fails to import.
    """
    word = _GROUP_LABELS[group]
    claims = list_entries(group).get(name)
    if not claims:
        raise UsageError(
            f"There is no {word} '{name}'.",
            what_to_do=did_you_mean(name, list_names(group)),
            code="plugin.unknown-name",
        )
    if len(claims) > 1:
        packages = " and ".join(f"{claim.package} ({claim.value})" for claim in claims)
        raise ToastError(
            f"The {word} '{name}' is registered twice.",
            f"Both {packages} claim the name.",
            "Uninstall one of the two packages.",
            code="plugin.registered-twice",
        )
    (entry,) = claims
    try:
        return entry.point.load()
    except ToastError:
        raise
    except Exception as error:  # a plugin may raise anything; the message must name the plugin
        raise ToastError(
            f"The {word} '{name}' of package {entry.package} could not be loaded.",
            f"{entry.value}: {type(error).__name__}: {error}",
            "Reinstall or remove that package. 'toast doctor' lists all plugins and their errors.",
            code="plugin.cannot-load",
        ) from error


def load_backbone_card(name: str) -> Any:
    """Return the card of a backbone: a short name (`vit_b16`), or any model of a family's library (`vit:<timm name>`).

    Raises:
        UsageError: The name is neither a short name nor of a known family.
        ToastError: The plugin fails to import, or was written for another version of the contract.
    """
    from toast_cli.backbones.base import CONTRACT_VERSION

    family, colon, model = name.partition(":")
    if colon:
        card = load_entry(FAMILIES, family).card(model)
    elif name in list_names(BACKBONES):
        card = load_entry(BACKBONES, name)
    else:
        families = ", ".join(f"{family}:<model>" for family in list_names(FAMILIES))
        raise UsageError(
            f"There is no backbone '{name}'.",
            what_to_do=f"{did_you_mean(name, list_names(BACKBONES))} "
            f"A family supports any model of its library: {families}.",
            code="backbone.unknown-name",
        )
    if card.contract != CONTRACT_VERSION:
        raise ToastError(
            f"The backbone '{name}' was written for version {card.contract} of the backbone contract.",
            f"This version of toast needs version {CONTRACT_VERSION}.",
            "Install matching versions of toast and of the plugin.",
            code="plugin.wrong-contract",
        )
    return card
