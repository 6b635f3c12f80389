"""The data of a run against that of the models it starts from: test images that they were trained on are a leak.

Samples are compared by the stamps of their content that a run folder records, whatever their names. Splits without
stamps are compared by their hashes: a test split that is a whole training split of an earlier run is found, single
images in both are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.data.identity import DataIdentity, SplitIdentity, describe_data_differences
from toast_cli.storage.pretuned import SHIPPED_ARTIFACT
from toast_cli.training.data.run_data import read_data_record

if TYPE_CHECKING:
    from toast_cli.training.continuation.start import Start

MAX_NAMED = 3
"""Number of samples that a warning names."""
EFFECTS = {
    "test": "LEAK: {what} in the training split of {model}{named}. This run starts from what was learned from them, so "
    "its numbers on test are too good. Test on data that no earlier run was trained on.",
    "val": "Warning: {what} in the training split of {model}{named}. Validation is too good, and favours the start.",
}


def describe_start_leaks(start: Start, current: DataIdentity) -> list[str]:
    """Return warnings of test and validation samples that an earlier model was trained on, newest model first.

    Also return a note on every earlier model whose training data is not recorded, or cannot be compared.
    """
    *older, newest = start.lineage
    models = [(newest, start.data), *((step, _read_step_data(step)) for step in reversed(older))]
    messages = []
    for step, recorded in models:
        model = str(step["from"])
        found = _compare_with_training(recorded, current)
        messages += [
            EFFECTS[part].format(what=_format_count(part, names), model=model, named=_format_names(names))
            for part, names in found.items()
            if names
        ]
        if None in found.values() and model != SHIPPED_ARTIFACT:
            why = "found no record of it" if recorded is None else "not every sample has a hash of its content"
            messages.append(
                f"Not compared with the data that {model} was trained on: {why}. No test image should be in it."
            )
    return messages


def _read_step_data(step: dict[str, Any]) -> DataIdentity | None:
    """Return the data of an older model of a lineage, if its run folder is still where it was."""
    path = Path(step["from"]).expanduser()
    return read_data_record(path) if path.is_dir() else None


def _compare_with_training(recorded: DataIdentity | None, current: DataIdentity) -> dict[str, Sequence[str] | None]:
    """Return, for val and test, the names of the samples that were in the recorded training split.

    None stands for a split that cannot be compared.
    """
    parts = [part for part in EFFECTS if part in current.splits]
    train = None if recorded is None else recorded.splits.get("train")
    if recorded is not None and recorded.splits and not describe_data_differences(recorded, current):
        return dict.fromkeys(parts, ())  # the same splits, which the run before kept apart
    if train is None:
        return dict.fromkeys(parts)
    return {part: _find_shared_samples(train, current.splits[part]) for part in parts}


def _find_shared_samples(train: SplitIdentity, split: SplitIdentity) -> Sequence[str] | None:
    stamps = {stamp for _, _, stamp in train.listed or ()} - {None}
    own = [(name, stamp) for name, _, stamp in split.listed or () if stamp is not None]
    if stamps and own:
        return [name for name, stamp in own if stamp in stamps]
    if split.hash is not None and split.hash == train.hash:
        return [name for name, _, _ in split.listed or ()] or ["all"]
    return None


def _format_count(part: str, names: Sequence[str]) -> str:
    if names == ["all"]:
        return f"the whole {part} split is"
    return f"1 sample of {part} is" if len(names) == 1 else f"{len(names):,} samples of {part} are"


def _format_names(names: Sequence[str]) -> str:
    if names == ["all"]:
        return ""
    return f" ({', '.join(names[:MAX_NAMED])}{', ...' if len(names) > MAX_NAMED else ''})"
