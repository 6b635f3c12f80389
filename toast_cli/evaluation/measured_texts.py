"""What an evaluation of texts measured: how many, which the run has learned, and what becomes of them as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toast_cli.data.base import TEXT_KINDS, BatchLoader, DataSet, get_split_kind
from toast_cli.data.identity import identify_split
from toast_cli.evaluation.open_run import ALL_SPLITS, RunRequest
from toast_cli.training.data.run_data import read_data_record


def describe_measured_texts(
    data: DataSet, split: str, parts: Sequence[str], loaders: Mapping[str, BatchLoader]
) -> dict[str, Any]:
    """Return the entry `measured` of the results of an evaluation of texts; empty for images.

    It has the number of `texts` of the `split` that were measured, of how many of all splits (`of`), and `notes` of the
    loaders, such as the number of truncated texts and of those that were left out.
    """
    if get_split_kind(data.splits[parts[0]]) not in TEXT_KINDS:
        return {}
    notes = [
        note if split == ALL_SPLITS else f"{part}: {note}" for part, each in loaders.items() for note in each.notes
    ]
    texts = sum(getattr(loaders[part], "conversations", None) or len(data.splits[part]) for part in parts)
    total = sum(map(len, data.splits.values()))
    return {"measured": {"texts": texts, "of": total, "notes": notes}}


def describe_learned_texts(request: RunRequest, data: DataSet, parts: Sequence[str]) -> list[str]:
    """Return a warning if texts of another data set are in the training or validation texts of the run.

    Documents have no names and are not compared.

    Raises:
        ToastError: the record of the run's data is damaged.
    """
    recorded = None if request.dataset is None else read_data_record(request.path)
    if recorded is None or any(get_split_kind(data.splits[part]) != "conversations" for part in parts):
        return []
    listed = [record for part in parts for record in identify_split(data.splits[part]).listed or ()]
    warnings = []
    for name, use in (("train", "trained"), ("val", "selected")):
        known = recorded.splits[name].listed if name in recorded.splits else None
        stamps = {stamp for _, _, stamp in known or ()}
        if count := sum(stamp in stamps for _, _, stamp in listed):
            warnings.append(
                f"{count:,} of {len(listed):,} texts are among those that the model was {use} on, so the results say "
                "little about new texts."
            )
    return warnings
