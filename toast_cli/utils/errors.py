"""Errors shown to users, and hints for mistyped names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

RUNTIME_FAILURE = 1
USAGE_ERROR = 2
INTERRUPTED = 130
UNNAMED = "toast.unnamed"
"""Code of errors that a plugin raises without a code of their own."""


class ToastError(Exception):
    """An error that a user can act on: what is wrong, why, and what to do about it.

    Args:
        what: One sentence that states what is wrong.
        why: The reason or the place; may be empty. Give several lines as a sequence: a line break inside a text is part
            of a name and is escaped.
        what_to_do: The next step for the user; may be empty.
        exit_code: 1 for a failure at run time, 2 for wrong usage or an invalid recipe.
        code: Stable name of this kind of error, AREA.WHAT, such as `data.missing-folder`. Texts may change, codes do
            not. Codes are shown with TOAST_DEBUG and by `--json`.

    `process` is the rank of the process that raised it, or None if all processes did.
    """

    process: int | None = None

    def __init__(
        self,
        what: str,
        why: str | Sequence[str] = "",
        what_to_do: str = "",
        *,
        code: str = UNNAMED,
        exit_code: int = RUNTIME_FAILURE,
    ) -> None:
        self.code = code
        self.what = what
        self.reasons = (why,) if isinstance(why, str) else tuple(why)
        self.why = "\n".join(self.reasons)
        self.what_to_do = what_to_do
        self.exit_code = exit_code
        super().__init__("\n".join(part for part in (what, self.why, what_to_do) if part))


class UsageError(ToastError):
    """A wrong option, argument or recipe, with exit code 2."""

    def __init__(self, what: str, why: str | Sequence[str] = "", what_to_do: str = "", *, code: str = UNNAMED) -> None:
        super().__init__(what, why, what_to_do, code=code, exit_code=USAGE_ERROR)


def require_type(given: Any, expected: type, what: str, package: str) -> None:
    """Check the type of what a plugin's function returned.

    Raises:
        ToastError: It has another type. The message names the plugin and the function.
    """
    if not isinstance(given, expected):
        raise ToastError(
            f"Plugin {package}: {what} returned {describe_object(given)}, expected {add_article(expected.__name__)}.",
            what_to_do="The plugin must be corrected; see docs/how-to/extend.",
            code="plugin.wrong-type",
        )


def describe_object(given: Any) -> str:
    """Return the class of an object with its article, or the class itself if the object is one."""
    return f"the class {given.__name__}" if isinstance(given, type) else add_article(type(given).__name__)


def add_article(name: str) -> str:
    """Return a noun with its article."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


MAX_LISTED_NAMES = 12
"""Maximum number of known names that a hint always lists."""
MAX_LISTED_WITHOUT_MATCH = 40
"""Maximum number of known names that a hint lists if no name is similar."""


def did_you_mean(name: str, known: Iterable[str], described: Mapping[str, str] | None = None) -> str:
    """Return a hint for a mistyped name: the nearest known name, if any, and all known names if there are few.

    If no name is similar, it is compared with the descriptions: `learning_rate` finds `lr`, the peak learning rate.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6) or _match_description(name, described or {})
    hint = f"Did you mean '{near[0]}'? " if near else ""
    if not known:
        return hint + "None are registered."
    if len(known) <= MAX_LISTED_NAMES or (not near and len(known) <= MAX_LISTED_WITHOUT_MATCH):
        return hint + "Known: " + ", ".join(known) + "."
    return hint.strip()


def _match_description(name: str, described: Mapping[str, str]) -> list[str]:
    """Return the known name whose description contains words similar to `name`, if any."""
    query = name.lower().replace("_", " ")
    count = len(query.split())

    def similarity(description: str) -> float:
        words = description.lower().replace(",", " ").split()
        runs = [" ".join(words[i : i + count]) for i in range(max(len(words) - count + 1, 1))]
        # Prefer descriptions that begin with the words.
        return max((SequenceMatcher(None, query, run).ratio() - i / 100 for i, run in enumerate(runs)), default=0)

    best = max(described, key=lambda known: similarity(described[known]), default=None)
    return [best] if best is not None and similarity(described[best]) >= 0.75 else []
