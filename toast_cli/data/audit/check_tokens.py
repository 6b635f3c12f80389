"""The audit of texts as tokens of a model: lengths against its limits, and texts that it cannot learn as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from toast_cli.data.audit.check import MAX_LISTED
from toast_cli.data.base import BatchOptions, LoaderOptions
from toast_cli.data.loaders import build_loader
from toast_cli.data.text.token_limits import TokenFindings
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone


@dataclass
class TokenReport:
    """The findings of every split, as JSON values, and sentences on what prevents training and what to judge."""

    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_tokens(splits: Mapping[str, Any], backbone: Backbone) -> TokenReport:
    """Return what tuning the backbone would make of the texts, with the names of those that are not learned whole.

    A problem is a text that the chat template rejects, or a split that cannot be used. The rest is as tuning reports.
    """
    report = TokenReport()
    try:
        backbone.require_tokenizer()
    except ToastError as error:
        report.problems.append(" ".join(filter(None, (*_list_reasons(error), error.what_to_do))))
        return report
    for part, split in splits.items():
        try:
            loader: Any = build_loader(split, backbone, BatchOptions(1, augment=part == "train"), LoaderOptions())
        except ToastError as error:
            why = " ".join(_list_reasons(error))
            if not any(problem.endswith(f": {why}") for problem in report.problems):  # a template is damaged for all
                report.problems.append(f"{part}: {why}")
            continue
        rejected = []
        if loader.findings is not None:
            report.splits[part] = _summarize_findings(loader.findings)
            rejected = loader.findings.describe_rejected(len(split))
        report.problems += [f"{part}: {note}" for note in rejected]
        report.warnings += [f"{part}: {note}" for note in loader.notes if note not in rejected]
    report.warnings += _suggest_limit(report, backbone.text_limits.window)
    return report


def summarize_lengths(lengths: Sequence[int]) -> dict[str, float]:
    """Return the least, the median and the most of some lengths."""
    return {"least": min(lengths), "median": median(lengths), "most": max(lengths)}


def _list_reasons(error: ToastError) -> list[str]:
    return [part for part in (error.what, *error.reasons) if part]


def _summarize_findings(findings: TokenFindings) -> dict[str, Any]:
    return {
        "tokens": summarize_lengths(findings.lengths),
        "token_limit": findings.limit,
        "truncated": _list_texts([{"name": name, "tokens": count} for name, count in findings.truncated.items()]),
        "rejected": _list_texts([{"name": name, "why": why} for name, why in findings.rejected.items()]),
        "unlearnable": _list_texts([{"name": name} for name in dict.fromkeys(findings.unlearnable)]),
    }


def _list_texts(texts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"count": len(texts), "texts": texts[:MAX_LISTED]}


def _suggest_limit(report: TokenReport, window: int | None) -> list[str]:
    """Return the `dataset.max_tokens` that truncates no text, if texts are truncated and the model reads that many."""
    longest = max((found["tokens"]["most"] for found in report.splits.values()), default=0)
    truncated = sum(found["truncated"]["count"] for found in report.splits.values())
    if not truncated or (window is not None and longest > window):
        return []
    return [
        f"the longest text has {longest:,} tokens: dataset.max_tokens={longest} truncates none, and needs more memory"
    ]
