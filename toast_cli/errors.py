"""The one kind of error a user ever sees, and the words for "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

RUNTIME_FAILURE = 1
USAGE_ERROR = 2
INTERRUPTED = 130


class ToastError(Exception):
    """Something a user can act on: what went wrong, where or why, and what to do about it.

    Args:
        what: One sentence that names the thing that failed.
        why: Where it happened or what was found instead; may be empty.
        what_to_do: The next step for the user; may be empty.
        exit_code: 1 for a failure while working, 2 for wrong usage or a wrong recipe.

    `process` is the number of the process that alone met it, of several that work together; None: all of them did.
    """

    process: int | None = None

    def __init__(self, what: str, why: str = "", what_to_do: str = "", *, exit_code: int = RUNTIME_FAILURE) -> None:
        self.what = what
        self.why = why
        self.what_to_do = what_to_do
        self.exit_code = exit_code
        super().__init__("\n".join(part for part in (what, why, what_to_do) if part))


class UsageError(ToastError):
    """A wrong option, argument or recipe: exit code 2."""

    def __init__(self, what: str, why: str = "", what_to_do: str = "") -> None:
        super().__init__(what, why, what_to_do, exit_code=USAGE_ERROR)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known one when there is one, and the list when it is short."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    if not known:
        return hint + "None are registered."
    if len(known) <= 12:
        return hint + "Known: " + ", ".join(known) + "."
    return hint.strip()
