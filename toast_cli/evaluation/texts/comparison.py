"""Comparison of several language models on the same texts: the loss of each text, paired between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from toast_cli.data.text.loader import TokenizedText
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest
from toast_cli.evaluation.compare_runs import name_run_in_errors, select_finished_runs
from toast_cli.evaluation.texts.runs import TextLosses, TextRun, is_language_run, measure_text_losses, open_text_run
from toast_cli.storage.run_folder import is_unfinished
from toast_cli.training.reporter import Reporter
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import make_names_unique
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean, compute_paired_p_value, estimate_proportion


@dataclass(frozen=True)
class ComparedTextRun:
    """The measurements of a run: its size and cost, and the loss of each text."""

    run: TextRun
    sizes: dict[str, Any]
    measured: TextLosses

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.run.viewer.name


@dataclass(frozen=True)
class TextDifference:
    """The difference of two runs: the mean of `other` minus `one` in the loss of a text, paired over texts.

    Attributes:
        loss: with an interval that holds for all pairs of runs together.
        better: the share of texts on which `other` has the lower loss.
        p: of a paired t-test, not corrected for several pairs.
    """

    one: ComparedTextRun
    other: ComparedTextRun
    loss: MeanEstimate
    better: MeanEstimate
    p: float


@dataclass(frozen=True)
class TextComparison:
    """A comparison of language models on the texts of one split."""

    runs: tuple[ComparedTextRun, ...]
    names: tuple[str, ...]
    split: str
    dataset: str

    def compute_differences(self) -> list[TextDifference]:
        """Return the differences of all pairs of runs, in order."""
        pairs = list(combinations(self.runs, 2))
        differences = []
        for one, other in pairs:
            change = other.measured.losses - one.measured.losses
            loss, better = bootstrap_mean(change, intervals=len(pairs)), estimate_proportion((change < 0).astype(float))
            assert loss is not None and better is not None  # there is at least one text
            p = compute_paired_p_value(other.measured.losses.tolist(), one.measured.losses.tolist())
            differences.append(TextDifference(one, other, loss, better, p))
        return differences

    def find_most_disputed(self, count: int) -> list[int]:
        """Return the indices of the texts whose losses differ most between the runs, in decreasing order."""
        losses = np.stack([run.measured.losses for run in self.runs])
        order = np.argsort(-(losses.max(0) - losses.min(0)), kind="stable")
        return [int(index) for index in order[:count]]


def are_language_runs(requests: Sequence[AttentionEvalRequest]) -> bool:
    """Return whether all runs of a comparison are language models, and not models of images.

    Raises:
        UsageError: some are, or there is no run at a path.
        ToastError: the configuration of a run is damaged.
    """
    kinds = {request.path: is_language_run(request.path) for request in requests if not is_unfinished(request.path)}
    if len({*kinds.values()}) > 1:
        one, other = (next(path for path, is_text in kinds.items() if is_text == kind) for kind in (True, False))
        raise UsageError(
            f"{one} is a language model, and {other} is a model of images: they cannot be compared.",
            what_to_do="Name runs of one kind.",
            code="data.different-kinds",
        )
    return True in kinds.values()


def build_text_comparison(requests: Sequence[AttentionEvalRequest], reporter: Reporter) -> TextComparison:
    """Measure several language models on the same texts. All runs are opened and checked before one is measured.

    Runs that have not finished are skipped and reported.

    Raises:
        UsageError: there are fewer than two finished runs.
        ToastError: a run cannot be opened, the split does not exist, or the runs have other texts or tokens to predict.
    """
    requests = select_finished_runs(requests, reporter)
    names = make_names_unique(request.path.resolve().name for request in requests)
    runs: list[TextRun] = []
    for request, name in zip(requests, names, strict=True):
        with name_run_in_errors(request.path):
            runs.append(open_text_run(request, reporter, name, runs[0].session.recipe.seed if runs else None))
    first = runs[0]
    for other in runs[1:]:
        check_same_texts(first, other)
    measured = []
    for run in runs:
        with name_run_in_errors(run.request.path):
            losses = measure_text_losses(run, reporter, run.viewer.name)
            measured.append(ComparedTextRun(run, run.session.measure_model_sizes(), losses))
    return TextComparison(tuple(measured), tuple(first.list_names()), first.split, first.session.recipe.dataset.name)


def check_same_texts(first: TextRun, other: TextRun) -> None:
    """Check that two runs predict the same tokens of the same texts.

    Losses per token of other tokens cannot be compared: another tokenizer or chat template divides a text otherwise.

    Raises:
        ToastError: a text or its tokens differ.
    """
    if first.texts != other.texts:
        raise make_text_mismatch_error(
            first, other, f"It has {other.texts:,} texts, and {first.request.path} has {first.texts:,}."
        )
    ours, theirs = first.list_names(), other.list_names()
    texts = (
        [text for loader in run.loaders.values() for text in map(loader.texts.__getitem__, range(loader.samples))]
        for run in (first, other)
    )
    for name, other_name, text, other_text in zip(ours, theirs, *texts, strict=True):
        if list_target_tokens(text) != list_target_tokens(other_text):
            why = f"The first difference: {other_name} has other tokens to predict than {name} of {first.request.path}."
            raise make_text_mismatch_error(first, other, why)


def list_target_tokens(text: TokenizedText) -> list[int]:
    """Return the tokens of a text that are predicted. Nothing predicts the first."""
    return [label for label in text.labels[1:] if label != IGNORE_INDEX]


def make_text_mismatch_error(first: TextRun, other: TextRun, why: str) -> ToastError:
    """Return the error about runs whose losses cannot be compared."""
    return ToastError(
        f"{other.request.path} and {first.request.path} do not predict the same tokens.",
        why,
        "Select one data set for all runs with --dataset; runs with different tokenizers, chat templates or token "
        "limits cannot be compared.",
        code="text.different-tokens",
    )
