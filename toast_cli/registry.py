"""Names to objects through entry points: listing loads nothing, a duplicate or a broken plugin is named.

One group per kind of thing. Whatever an entry point names must be importable without torch; the heavy
part is imported by the object itself when it is used.
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
    """One registered name: where it is defined and which installed package brought it."""

    name: str
    value: str
    package: str
    point: EntryPoint


@cache
def _read_entry_points() -> Any:  # Python 3.10 has another type than later ones; both can `select`
    """What every installed package registers, read once: it means opening a file of each."""
    return entry_points()


def _select_entry_points(group: str) -> EntryPoints:
    points: EntryPoints = _read_entry_points().select(group=group)
    return points


@cache
def list_entries(group: str) -> Mapping[str, tuple[RegistryEntry, ...]]:
    """Every registration of a group by name; more than one for a name means that two packages claim it."""
    found: dict[str, tuple[RegistryEntry, ...]] = {}
    for point in _select_entry_points(group):
        package = point.dist.name if point.dist else "unknown package"
        entry = RegistryEntry(point.name, point.value, package, point)
        others = found.get(point.name, ())
        # A package seen twice on the path (an editable install beside a wheel) registers one thing, not two.
        if all((other.value, other.package) != (entry.value, package) for other in others):
            found[point.name] = (*others, entry)
    return found


def list_names(group: str) -> list[str]:
    """All registered names of a group, sorted."""
    return sorted(list_entries(group))


def load_entry(group: str, name: str) -> Any:
    """The object registered under `name`.

    Raises:
        UsageError: nobody registered the name; the nearest one is offered.
        ToastError: two packages claim it, or the plugin that owns it failed to import.
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
    except Exception as error:  # a plugin may fail in any way; the user must learn which one did
        raise ToastError(
            f"The {word} '{name}' of package {entry.package} could not be loaded.",
            f"{entry.value}: {type(error).__name__}: {error}",
            "Reinstall or remove that package; 'toast doctor' lists every plugin and why one fails.",
            code="plugin.cannot-load",
        ) from error


def load_backbone_card(name: str) -> Any:
    """The card of a short name (`vit_b16`) or of any model of a family's library (`vit:<timm name>`).

    Raises:
        UsageError: neither a short name nor a known family.
        ToastError: the plugin failed to import, or was written for another contract.
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
            f"A family takes any model of its library: {families}.",
            code="backbone.unknown-name",
        )
    if card.contract != CONTRACT_VERSION:
        raise ToastError(
            f"The backbone '{name}' was written for version {card.contract} of the backbone contract.",
            f"This toast speaks version {CONTRACT_VERSION}.",
            "Install matching versions of toast and of the plugin.",
            code="plugin.wrong-contract",
        )
    return card
