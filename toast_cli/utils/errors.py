"""The one kind of error a user ever sees, and the words for "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches

RUNTIME_FAILURE = 1
USAGE_ERROR = 2
INTERRUPTED = 130
UNNAMED = "toast.unnamed"
"""Code of an error that has none of its own: one that a plugin raised without a code."""


class ToastError(Exception):
    """Something a user can act on: what went wrong, where or why, and what to do about it.

    Args:
        what: One sentence that names the thing that failed.
        why: Where it happened or what was found instead; may be empty. Several lines are given one by one: a line break
            within a text is that of a name, and is shown as such.
        what_to_do: The next step for the user; may be empty.
        exit_code: 1 for a failure while working, 2 for wrong usage or a wrong recipe.
        code: Stable name of this kind of error, AREA.WHAT, such as `data.missing-folder`. Texts may change, codes do
            not; they are shown with TOAST_DEBUG and by `--json`.

    `process` is the number of the process that alone met it, of several that work together; None: all of them did.
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
    """A wrong option, argument or recipe: exit code 2."""

    def __init__(self, what: str, why: str | Sequence[str] = "", what_to_do: str = "", *, code: str = UNNAMED) -> None:
        super().__init__(what, why, what_to_do, code=code, exit_code=USAGE_ERROR)


MAX_LISTED_NAMES = 12
"""Known names that a hint lists whether or not one is near."""
MAX_LISTED_WITHOUT_MATCH = 40
"""Known names that a hint lists where none is near."""


def did_you_mean(name: str, known: Iterable[str], described: Mapping[str, str] | None = None) -> str:
    """A hint for a mistyped name: the nearest known one when there is one, and the list when it is short.

    Where no name is near, one may be whose description has the words: `learning_rate` is `lr`, the peak learning rate.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5) or _match_description(name, described or {})
    hint = f"Did you mean '{near[0]}'? " if near else ""
    if not known:
        return hint + "None are registered."
    if len(known) <= MAX_LISTED_NAMES or (not near and len(known) <= MAX_LISTED_WITHOUT_MATCH):
        return hint + "Known: " + ", ".join(known) + "."
    return hint.strip()


def _match_description(name: str, described: Mapping[str, str]) -> list[str]:
    """The known name whose description's beginning has the words of `name`, or nearly; nothing where none has."""
    wanted = name.lower().replace("_", " ")
    count = len(wanted.split())

    def likeness(description: str) -> float:
        words = description.lower().replace(",", " ").split()
        runs = [" ".join(words[i : i + count]) for i in range(max(len(words) - count + 1, 1))]
        # Of descriptions that have the words, the one that begins with them is meant.
        return max((SequenceMatcher(None, wanted, run).ratio() - i / 100 for i, run in enumerate(runs)), default=0)

    best = max(described, key=lambda known: likeness(described[known]), default=None)
    return [best] if best is not None and likeness(described[best]) >= 0.75 else []
