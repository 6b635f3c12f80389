"""Options of the splits of texts: fractions of one file, or files of their own for validation and testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from toast_cli.utils.config import LOCAL_PATH, NamedOptions
from toast_cli.utils.errors import UsageError


class TextSplitOptions(NamedOptions):
    """Options of a source of texts.

    `TOKEN_FIELDS` are the options that decide how a text becomes tokens. Other texts are measured with those of the
    run.
    """

    TOKEN_FIELDS: ClassVar[tuple[str, ...]] = ()

    path: str
    val_path: str | None = Field(
        None,
        min_length=1,
        examples=["val.json"],
        json_schema_extra=LOCAL_PATH,
        description="validation texts, in the format of path; then val_fraction is not used",
    )
    test_path: str | None = Field(
        None,
        min_length=1,
        examples=["test.json"],
        json_schema_extra=LOCAL_PATH,
        description="test texts, in the format of path; then test_fraction is not used",
    )
    val_fraction: float
    test_fraction: float
    split_seed: int = Field(0, ge=0, examples=[1], description="seed of the splits, independent of the seed of the run")
    group_copies: bool = Field(
        False, description="keep copies of a text, which may differ in case and spaces, in one split"
    )

    @property
    def own_paths(self) -> dict[str, str]:
        """Return the paths of the splits that are not held out of `path`, by split."""
        given = {"val": self.val_path, "test": self.test_path}
        return {part: path for part, path in given.items() if path is not None}

    def get_fraction(self, part: str) -> float:
        """Return the share of the texts of `path` that is held out for `val` or `test`."""
        return 0.0 if part in self.own_paths else float(getattr(self, f"{part}_fraction"))

    @property
    def holds_out(self) -> bool:
        """Return whether a share of the texts of `path` is held out, by `split_seed`."""
        return any(self.get_fraction(part) > 0 for part in ("val", "test"))

    def describe_fractions(self, parts: Sequence[str] = ("val", "test")) -> str:
        """Return the end of a note that names the shares of the texts of `path` that are held out, and their options.

        It is empty if nothing is held out. `parts` are the splits that `path` has not of its own.
        """
        held = {part: fraction for part in parts if (fraction := self.get_fraction(part)) > 0}
        shares = [f"{100 * fraction:.3g}% for {part} (dataset.{part}_fraction)" for part, fraction in held.items()]
        return f"; held out: {join_names(shares)}" if shares else ""


def join_names(names: Sequence[str]) -> str:
    """Return names as a list in a sentence: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def hold_out_nothing(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `dataset` of a recipe of texts, with all texts of its path in one split."""
    return {**section, "val_fraction": 0.0, "test_fraction": 0.0}


def require_distinct_paths(
    options: TextSplitOptions, resolve: Callable[[str], object], mixed: Sequence[str] = ()
) -> None:
    """Check that texts are read from different places. `resolve` returns the place of a path, also of `mixed` ones.

    Raises:
        UsageError: two paths are the same place.
    """
    seen = {resolve(options.path): "path"}
    own = [(f"{part}_path", path) for part, path in options.own_paths.items()]
    for name, path in [*(("mix", path) for path in mixed), *own]:
        if (place := resolve(path)) in seen:
            raise UsageError(
                f"dataset.{seen[place]} and dataset.{name} are the same: {path}.",
                "A model would be measured on the texts that it was trained or selected on.",
                "Give another file, or leave it out"
                + ("." if name == "mix" else ": a share of the texts is held out then."),
                code="data.same-path",
            )
        seen[place] = name
