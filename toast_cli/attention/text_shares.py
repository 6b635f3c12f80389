"""Shares of attention on the parts of a text: the system turn, each turn, the answer so far, special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toast_cli.attention.table import UNIFORM_MAP, format_number
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.formatting import format_csv
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean

ANSWER_SO_FAR = "answer so far"
"""The part of the tokens of the answer that is being written."""
GAINED = "gained"
"""Name of the change between the passes: the share in pass two minus that in pass one."""
MAPS = (UNIFORM_MAP, "pass_one", "pass_two", GAINED)
_ANSWER = re.compile(r"answer \d+")
_ORDER = ("system", "user", "answer", "tool")
_LAST = (ANSWER_SO_FAR, "text", "special tokens", "format")


def compute_part_shares(weights: Tensor, parts: Sequence[str], labels: Sequence[int]) -> dict[str, float]:
    """Return the share of attention on each part of a text, averaged over the tokens that predict a learned token.

    Shares add up to 1. Tokens of the answer that is being written are the part `answer so far`, whatever their number.
    Parts that no answer comes after are left out.

    Args:
        weights: the attention of each token `[N, N]`, a row per attending token. Rows of padding are ignored.
        parts: the part of each token.
        labels: the label of each token; `IGNORE_INDEX` if it is not learned.
    """
    names = [*dict.fromkeys(parts), ANSWER_SO_FAR]
    columns = {name: column for column, name in enumerate(names)}
    sums, count, visible = torch.zeros(len(names), dtype=torch.float64), 0, {ANSWER_SO_FAR}
    for begin, end in find_learned_runs(labels):
        membership = torch.zeros(len(parts), len(names), dtype=torch.float64)
        for place, part in enumerate(parts):
            name = ANSWER_SO_FAR if begin <= place < end and _ANSWER.fullmatch(part) else part
            membership[place, columns[name]] = 1
            visible |= {name} if place < end - 1 else set()
        rows = weights[begin - 1 : end - 1, : len(parts)].double().cpu()
        sums += (rows @ membership).sum(0)
        count += len(rows)
    return {name: float(sums[column]) / count for name, column in columns.items() if name in visible} if count else {}


def find_learned_runs(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of every run of learned tokens. Nothing predicts the first token of a text."""
    begin = None
    for place in range(1, len(labels) + 1):
        learned = place < len(labels) and labels[place] != IGNORE_INDEX
        if learned and begin is None:
            begin = place
        elif not learned and begin is not None:
            yield begin, place
            begin = None


def make_uniform_weights(tokens: int) -> Tensor:
    """Return causal weights `[N, N]` that spread the attention of each token evenly over it and those before it."""
    weights = torch.ones(tokens, tokens, dtype=torch.float64).tril()
    return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class TextShares:
    """The shares of attention on the parts of one text, by map; `shift` is the share that moved between the passes."""

    name: str
    shares: Mapping[str, Mapping[str, float]]
    shift: float | None


class TextAttentionTable:
    """A table of the shares of attention on the parts of each text."""

    def __init__(self) -> None:
        self.texts: list[TextShares] = []

    def add(self, name: str, first: Tensor, last: Tensor | None, parts: Sequence[str], labels: Sequence[int]) -> None:
        """Add a text with the weights of both passes `[N, N]`, the part and the label of each of its tokens."""
        shares = {
            UNIFORM_MAP: compute_part_shares(make_uniform_weights(len(parts)), parts, labels),
            "pass_one": compute_part_shares(first, parts, labels),
        }
        shift = None
        if last is not None:
            shares["pass_two"] = compute_part_shares(last, parts, labels)
            shares[GAINED] = {part: share - shares["pass_one"][part] for part, share in shares["pass_two"].items()}
            rows = [row for begin, end in find_learned_runs(labels) for row in range(begin - 1, end - 1)]
            shift = float((last[rows] - first[rows]).abs().sum(-1).mean() / 2)
        self.texts.append(TextShares(name, shares, shift))

    def list_parts(self) -> list[str]:
        """Return the parts of all texts: turns in order, then the answer so far, special tokens and the format."""
        found = {part for text in self.texts for part in text.shares["pass_one"]}
        return sorted(found, key=_get_order)

    def get_values(self, map: str, part: str) -> list[float]:
        """Return the share of a part in each text; NaN for a text without it."""
        return [text.shares.get(map, {}).get(part, float("nan")) for text in self.texts]

    def result(self) -> dict[str, dict[str, MeanEstimate]]:
        """Return, by map and part, the mean over the texts that have the part, with its 95% bootstrap interval."""
        means: dict[str, dict[str, MeanEstimate]] = {}
        for map in MAPS:
            for part in self.list_parts():
                mean = bootstrap_mean(self.get_values(map, part))
                if mean is not None:
                    means.setdefault(map, {})[part] = mean
        return means

    def estimate_shift(self) -> MeanEstimate | None:
        """Return the mean share of attention that moved between the passes; None with a single pass."""
        return bootstrap_mean([text.shift for text in self.texts if text.shift is not None])

    def format_per_text(self) -> str:
        """Return a CSV with a line per text: its name, and the share of each part in each map."""
        columns = [(map, part) for map in MAPS for part in self.list_parts() if map in self.texts[0].shares]
        rows: list[list[Any]] = [["text", *(f"{map}/{part}" for map, part in columns)]]
        for text in self.texts:
            values = [text.shares[map].get(part, float("nan")) for map, part in columns]
            rows.append([text.name, *(format_number(value) for value in values)])
        return format_csv(rows)


def _get_order(part: str) -> tuple[int, int, int]:
    """Return the key by which parts are sorted."""
    if part in _LAST:
        return len(_ORDER), 0, _LAST.index(part)
    role, _, number = part.partition(" ")
    return (0, 0, 0) if role == "system" else (1, int(number or 0), _ORDER.index(role))
