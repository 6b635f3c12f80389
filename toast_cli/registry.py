"""The registry of plugins, through entry points. Listing names imports no plugin.

There is one group per kind of plugin. The modules that entry points name must be importable without torch; the
objects import heavy libraries when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args, get_origin

from toast_cli.utils.constants import OWN_PACKAGE, UNNAMED_BACKBONE
from toast_cli.utils.errors import ToastError, UsageError, add_article, describe_object, did_you_mean, require_type
from toast_cli.utils.hub import is_repository_id, resolve_place

BACKBONES = "toast.backbones"
FAMILIES = "toast.families"
METHODS = "toast.methods"
TASKS = "toast.tasks"
SOURCES = "toast.data"
EXPORTS = "toast.export"
METRICS = "toast.metrics"
CONVERSATION_FORMATS = "toast.conversations"

GROUP_TYPES = {
    BACKBONES: "Card",
    FAMILIES: "Family",
    METHODS: "Method",
    TASKS: "Task",
    SOURCES: "DataSource",
    EXPORTS: "ExportFormat",
    METRICS: "Metric",
    CONVERSATION_FORMATS: "ConversationFormat",
}
"""The class in `toast_cli.plugin` of what each group registers. Given by name, as this module imports none of them."""

_GROUP_LABELS = {
    BACKBONES: "backbone",
    FAMILIES: "backbone family",
    METHODS: "method",
    TASKS: "task",
    SOURCES: "data set",
    EXPORTS: "export format",
    METRICS: "metric",
    CONVERSATION_FORMATS: "format of conversations",
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
def _get_package_name(dist: Distribution) -> str:
    """Return the name of an installed package. Cached, as it is parsed from the package's metadata on every access."""
    return dist.name


@cache
def list_entries(group: str) -> Mapping[str, tuple[RegistryEntry, ...]]:
    """Return all registrations of a group by name. If a name has more than one, several packages claim it."""
    entries: dict[str, tuple[RegistryEntry, ...]] = {}
    for point in _select_entry_points(group):
        package = _get_package_name(point.dist) if point.dist else "unknown package"
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
        loaded = entry.point.load()
    except ToastError:
        raise
    except Exception as error:  # a plugin may raise anything; the message must name the plugin
        raise ToastError(
            f"The {word} '{name}' of package {entry.package} could not be loaded.",
            f"{entry.value}: {type(error).__name__}: {error}",
            "Reinstall or remove that package. 'toast doctor' lists all plugins and their errors.",
            code="plugin.cannot-load",
        ) from error
    _check_entry(group, entry, loaded)
    return loaded


def load_all(group: str) -> dict[str, Any]:
    """Return every registered object of a group by name.

    Raises:
        ToastError: Two packages claim a name, or a plugin fails to import.
    """
    return {name: load_entry(group, name) for name in list_names(group)}


def find_package(group: str, name: str) -> str:
    """Return the installed package that registers a name; empty if none does."""
    claims = list_entries(group).get(name)
    return claims[0].package if claims else ""


def find_backbone_package(name: str) -> str:
    """Return the installed package that registers a backbone, or the family of `FAMILY:MODEL`; empty if none does."""
    family, colon, _ = name.partition(":")
    return find_package(FAMILIES, family) if colon else find_package(BACKBONES, name)


def find_faulty_package(trace: TracebackType | None) -> str | None:
    """Return the package of another author whose code raised an error, or None if the error is toast's own.

    The innermost frame of either toast or a plugin decides. Frames of libraries that they call do not count.
    """
    authors = {"toast_cli": OWN_PACKAGE}
    for group in GROUP_TYPES:
        for claims in list_entries(group).values():
            authors |= {claim.value.partition(":")[0].partition(".")[0]: claim.package for claim in claims}
    found = OWN_PACKAGE
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        found, trace = authors.get(module, found), trace.tb_next
    return None if found == OWN_PACKAGE else found


def _check_entry(group: str, entry: RegistryEntry, loaded: Any) -> None:
    """Check that a registered object has the class of its group, and its options the name that it is registered under.

    Raises:
        ToastError: It does not. The message names the plugin.
    """
    where, expected = f"Plugin {entry.package}: {group} {entry.name} ({entry.value})", GROUP_TYPES[group]
    if all(each.__name__ != expected for each in type(loaded).__mro__):
        raise ToastError(
            f"{where} is {describe_object(loaded)}, expected {add_article(expected)}.",
            what_to_do="The plugin must be corrected; see docs/how-to/extend.",
            code="plugin.wrong-type",
        )
    names: tuple[str, ...] = (loaded.name,) if group in (BACKBONES, FAMILIES) else ()
    if group in (METHODS, TASKS, SOURCES):
        field = loaded.options.model_fields["name"].annotation
        names = get_args(field) if get_origin(field) is Literal else ()
    if names and entry.name not in names:
        raise ToastError(
            f"{where} is registered under another name than its own, '{names[0]}'.",
            what_to_do=f"The plugin must use one name in both places, its entry point and {expected}.",
            code="plugin.wrong-name",
        )


def list_prefixes() -> list[str]:
    """Return the families whose models are named `FAMILY:MODEL`, sorted."""
    return [name for name in list_names(FAMILIES) if load_entry(FAMILIES, name).card is not None]


def wrap_model(model: Any, library: str | None = None) -> Any:
    """Return a model of a library as a `Backbone`, with the first family that supports it; None if none does.

    Args:
        model: A module that timm, transformers or another library has built.
        library: Consider only families of this library. Default: all.

    Raises:
        ToastError: The model is of a family, but cannot be steered.
    """
    families = [load_entry(FAMILIES, name) for name in list_names(FAMILIES)]
    for family in sorted(families, key=lambda family: family.generic):
        if family.wrap is None or (library is not None and family.library != library):
            continue
        backbone = family.wrap(model)
        if backbone is not None:
            prefix = family.name if family.card is not None else family.library
            backbone.origin = backbone.origin or {"name": f"{prefix}:{UNNAMED_BACKBONE}"}
            return backbone
    return None


def expand_folder_name(name: str) -> str:
    """Return `FAMILY:FOLDER` for the path of a folder that holds a model of a family; any other name as it is.

    Raises:
        UsageError: No family knows the model in the folder.
    """
    folder = Path(name).expanduser()
    if name in list_entries(BACKBONES) or not folder.is_dir() or not (folder / "config.json").is_file():
        return name
    for family in (load_entry(FAMILIES, each) for each in list_names(FAMILIES)):
        if family.recognize is not None and family.recognize(folder):
            return f"{family.name}:{folder if name.startswith('~') else name}"
    raise UsageError(
        f"The kind of the model in {name} is not known.",
        "The 'architectures' in its config.json are neither those of a language model nor of a vision model.",
        f"Name the family: {', '.join(f'{family}:{name}' for family in list_prefixes())}.",
        code="backbone.unknown-folder",
    )


def load_backbone_card(name: str) -> Any:
    """Return the card of a backbone: a short name (`vit_b16`), or any model of a family's library (`vit:<timm name>`).

    The path of a folder with a model is one too.

    Raises:
        UsageError: The name is neither a short name nor of a known family.
        ToastError: The plugin fails to import, or was written for another version of the contract.
    """
    from toast_cli.backbones.base import CONTRACT_VERSION, Card

    name = expand_folder_name(name)
    family, colon, model = name.partition(":")
    if colon:
        build_card = load_entry(FAMILIES, family).card
        if build_card is None:
            library = load_entry(FAMILIES, family).library
            raise UsageError(
                f"There is no prefix '{family}:'.",
                f"Models of the family '{family}' are named by their library.",
                f"Use {library}:{model}.",
                code="backbone.no-prefix",
            )
        card = build_card(model)
        require_type(card, Card, f"'card' of the family '{family}'", find_package(FAMILIES, family))
    elif name in list_names(BACKBONES):
        card = load_entry(BACKBONES, name)
    else:
        families = ", ".join(f"{family}:<model>" for family in list_prefixes())
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
    return replace(card, build=partial(_build_with_downloaded_weights, card.build))


def _build_with_downloaded_weights(build: Callable[[Any], Any], options: Any) -> Any:
    """Build a backbone whose weights may be a repository of the hub, which is downloaded."""
    weights = getattr(options, "weights", None)
    if isinstance(weights, str) and is_repository_id(weights):
        options = options.model_copy(update={"weights": str(resolve_place(weights))})
    return build(options)
