"""Class names given to the Python API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.utils.errors import UsageError


def to_class_names(classes: Any) -> tuple[str, ...]:
    """Return the class names, given the names or their number.

    Raises:
        UsageError: `classes` is neither a positive number nor a list of strings, or a name occurs twice.
    """
    invalid = UsageError(
        f"Expected a number of classes or a list of names, got classes={classes!r}.",
        what_to_do="Pass classes=10, or the class names in order.",
        code="task.invalid-classes",
    )
    if isinstance(classes, int) and not isinstance(classes, bool):
        names = tuple(map(str, range(classes)))
    elif isinstance(classes, Sequence) and not isinstance(classes, str):
        names = tuple(classes)
    else:
        raise invalid
    if not names or not all(isinstance(name, str) for name in names):
        raise invalid
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"The class name '{duplicate}' occurs twice.",
            what_to_do="Use unique class names.",
            code="data.duplicate-class",
        )
    return names
