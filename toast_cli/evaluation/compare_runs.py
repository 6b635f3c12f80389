"""Comparison of several runs on the same images: predictions, attention, and confidence intervals of differences."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.table import UNIFORM_MAP, AttentionMetricsTable
from toast_cli.data.base import ImageSplit
from toast_cli.data.subset import SplitSubset
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest, AttentionRun, open_attention_run
from toast_cli.evaluation.same_data import EvaluationImages, check_same_images
from toast_cli.storage.run_folder import is_unfinished
from toast_cli.tasks.base import Objective, SampleMeasure
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import make_names_unique
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean, estimate_paired_difference
from toast_cli.visualize.view import AttentionViewer

MAX_NAMED = 3
"""Number of unreadable images that a message names."""
SEED_SUFFIX = re.compile(r"-?seed\d+(-\d+)?$")
"""End of the default name of a run, which runs of other seeds do not share."""


@dataclass(frozen=True)
class ComparedRun:
    """The measurements of one run.

    Attributes:
        probabilities: of the last pass, `[images, classes]`; the numbers of a model that predicts numbers.
        correct: the measure of each answer: 1 for a correct class, else 0, or that of the task, `[images]`.
        inside: the share of the last pass's map inside the object, `[images]`; NaN if the crop lost the object. None
            without masks.
        even: the mean share of a uniform map inside the object; None without masks.
        checks: the validation of the maps over all images; None if they were not validated.
        readable: the indices of the images that could be read.
    """

    viewer: AttentionViewer
    request: AttentionEvalRequest
    sizes: dict[str, Any]
    kind: str
    probabilities: Tensor
    correct: np.ndarray
    inside: np.ndarray | None
    even: float | None
    checks: AttentionChecks | None = None
    readable: tuple[int, ...] = ()


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one recipe that differ in their seeds only."""

    name: str
    runs: tuple[ComparedRun, ...]

    def compute_mean(self, what: str) -> tuple[float, float] | None:
        """Return mean and standard deviation over the runs of the mean of `correct` or `inside`; None without it."""
        values = [getattr(run, what) for run in self.runs]
        if any(value is None for value in values):
            return None
        means = [float(np.nanmean(value)) for value in values]
        return statistics.fmean(means), statistics.stdev(means)


@dataclass(frozen=True)
class RunComparison:
    """A comparison of runs on one split. `measure` is what `correct` of the runs is."""

    runs: tuple[ComparedRun, ...]
    split: ImageSplit
    dataset: str
    classes: tuple[str, ...]
    measure: SampleMeasure = Objective.measure

    def iterate_pairs(self) -> list[tuple[ComparedRun, ComparedRun]]:
        """Return all pairs of runs, in order."""
        return list(combinations(self.runs, 2))

    def group_by_seed(self) -> list[SeedGroup]:
        """Return the groups of at least two runs whose recipes differ in the seed only."""
        groups: dict[str, list[ComparedRun]] = {}
        for run in self.runs:
            assert run.viewer.recipe is not None
            recipe = run.viewer.recipe.model_dump(mode="json", exclude={"seed", "device", "precision"})
            groups.setdefault(json.dumps(recipe, sort_keys=True), []).append(run)
        several = [runs for runs in groups.values() if len({get_seed(run) for run in runs}) > 1]
        names = make_names_unique(SEED_SUFFIX.sub("", runs[0].viewer.name) or runs[0].viewer.name for runs in several)
        return [SeedGroup(name, tuple(runs)) for name, runs in zip(names, several, strict=True)]

    def estimate_difference(self, one: ComparedRun, other: ComparedRun, what: str) -> MeanEstimate | None:
        """Return the mean of `other` minus `one` in `correct` or `inside`, paired over images.

        The 95% intervals hold for all pairs together. Return None if either run has no such values, or if the maps of
        one run are attention and those of the other are feature energy.
        """
        if what == "inside" and one.kind != other.kind:
            return None
        first, second, pairs = getattr(one, what), getattr(other, what), len(self.iterate_pairs())
        if first is None or second is None:
            return None
        if what == "correct" and self.measure.name == "correct":
            return estimate_paired_difference(first, second, pairs)
        return bootstrap_mean(second - first, intervals=pairs)

    def find_most_disputed(self, count: int) -> list[int]:
        """Return the indices of the images on which the runs disagree most, in decreasing order.

        The measure is the total variation distance of the probabilities, averaged over all pairs of runs. Images for
        which all runs predict the same class come last. For numbers, the measure is the absolute difference.
        """
        pairs = [(one.probabilities, other.probabilities) for one, other in self.iterate_pairs()]
        apart = torch.stack([(one - other).abs().sum(1) / 2 for one, other in pairs]).mean(0)
        if self.measure.percent:
            predicted = torch.stack([run.probabilities.argmax(1) for run in self.runs])
            apart = apart + (predicted != predicted[0]).any(0).float()
        return apart.argsort(descending=True, stable=True)[:count].tolist()


def select_common_images(split: ImageSplit, runs: Sequence[ComparedRun], reporter: Reporter) -> ImageSplit:
    """Return the images that every run could read, and report those that none could.

    Raises:
        ToastError: a run could not read an image that another one could.
    """
    readable = runs[0].readable
    if any(run.readable != readable for run in runs):
        raise ToastError(
            "The runs could not read the same images.",
            what_to_do="Run 'toast data check', and repair or remove the images that cannot be read.",
            code="image.unreadable",
        )
    if len(readable) == len(split):
        return split
    left_out = [split.names[index] for index in sorted(set(range(len(split))) - set(readable))]
    more = ", ..." if len(left_out) > MAX_NAMED else ""
    named = ", ".join(left_out[:MAX_NAMED]) + more
    reporter.report_message(f"{len(left_out):,} images could not be read and are left out of the comparison: {named}")
    return SplitSubset(split, readable)


def align_probabilities(runs: Sequence[ComparedRun]) -> tuple[ComparedRun, ...]:
    """Return the runs with a column of probabilities for every class that some run knows, 0 where one does not."""
    known = [run.viewer.classes or () for run in runs]
    every = list(dict.fromkeys(name for classes in known for name in classes))
    if all(list(classes) == every for classes in known):
        return tuple(runs)
    aligned = []
    for run, classes in zip(runs, known, strict=True):
        columns = run.probabilities.new_zeros(len(run.probabilities), len(every))
        columns[:, [every.index(name) for name in classes]] = run.probabilities
        aligned.append(replace(run, probabilities=columns))
    return tuple(aligned)


def get_seed(run: ComparedRun) -> int:
    """Return the seed of a run's recipe."""
    assert run.viewer.recipe is not None
    return run.viewer.recipe.seed


def select_finished_runs(requests: Sequence[AttentionEvalRequest], reporter: Reporter) -> list[AttentionEvalRequest]:
    """Return the requests without those for runs that have not finished, which are reported.

    Raises:
        UsageError: Fewer than two runs have finished.
    """
    finished = []
    for request in requests:
        if is_unfinished(request.path):
            reporter.report_message(f"Skipped: {request.path} has not finished.")
        else:
            finished.append(request)
    if len(finished) < 2:
        raise UsageError(
            f"A comparison needs at least two finished runs, got {len(finished)}.",
            what_to_do="Name two or more finished runs.",
            code="run.too-few-runs",
        )
    return finished


def build_comparison(requests: Sequence[AttentionEvalRequest], reporter: Reporter) -> RunComparison:
    """Measure several runs on the same images. All runs are opened and checked before the first is measured.

    Runs that have not finished are skipped and reported.

    Raises:
        UsageError: there are fewer than two finished runs.
        ToastError: a run cannot be opened, the split, level or head does not exist, or the images or object masks of
            the runs differ.
    """
    requests = select_finished_runs(requests, reporter)
    names = make_names_unique(request.path.resolve().name for request in requests)
    runs: list[AttentionRun] = []
    for request, name in zip(requests, names, strict=True):
        with name_run_in_errors(request.path):
            runs.append(open_run_for_comparison(name, request, runs[0].session.recipe.seed if runs else None, reporter))
    first = runs[0]
    for other in runs[1:]:
        check_same_images(get_images(first), get_images(other), reporter)
    measured = []
    for run in runs:
        with name_run_in_errors(run.request.path):
            measured.append(measure_run(run, reporter))
    session = first.session
    dataset, measure = session.recipe.dataset.name, session.model.objective.measure
    split = select_common_images(first.split, measured, reporter)
    return RunComparison(align_probabilities(measured), split, dataset, session.data.classes, measure)


@contextmanager
def name_run_in_errors(path: Path) -> Iterator[None]:
    """Add the path of the run to errors raised within the block."""
    try:
        yield
    except ToastError as error:
        reasons = (error.what, *filter(None, error.reasons))
        raise ToastError(
            f"Cannot compare {path}.", reasons, error.what_to_do, exit_code=error.exit_code, code=error.code
        ) from error


def get_images(run: AttentionRun) -> EvaluationImages:
    """Return the evaluation images of a run."""
    return EvaluationImages(run.request.path, run.split, run.session.data.classes, run.session.recipe)


@torch.no_grad()
def open_run_for_comparison(
    name: str, request: AttentionEvalRequest, seed: int | None, reporter: Reporter
) -> AttentionRun:
    """Open a run with its data, and check that its attention can be recorded on the first image.

    `seed` draws the images with a `limit`; None for the run's own seed.

    Raises:
        UsageError: the split, level or head does not exist, or the split does not hold images with class labels.
        ToastError: the classes of the data set differ from the model's, or the run or its data cannot be loaded.
    """
    run = open_attention_run(request, reporter, name, seed)
    image, _ = run.viewer.transform(run.split.load(0).image)
    run.viewer.recorder.record(image[None].to(run.session.accelerator.device))  # a missing head is detected here
    return run


@torch.no_grad()
def measure_run(run: AttentionRun, reporter: Reporter) -> ComparedRun:
    """Measure a run on all of its images.

    Raises:
        ToastError: an image cannot be read, or a map differs from the model's attention.
    """
    session, split, batches = run.session, run.split, run.make_loader()
    objective = session.model.objective
    numbers, probabilities, kind, checks = AttentionMetricsTable(objective=objective), [], "", []
    for batch in reporter.track_progress(batches, len(batches), run.viewer.name):
        batch = send_to_device(batch, session.accelerator.device)
        with session.accelerator.autocast():
            output = run.viewer.recorder.record(batch["image"])
        kind = output.kind
        checks.append(output.checks)
        numbers.add(output, batch)
        known = ~objective.measure_samples(output.logits, batch).isnan()
        probabilities.append(objective.compute_scores(output.logits)[known].cpu())
    readable = tuple(sorted(row["index"] for row in numbers.rows))
    if not readable:
        raise ToastError(
            f"No image of {session.recipe.dataset.name} could be read.",
            what_to_do="Run 'toast data check' to see what is wrong with each.",
            code="image.unreadable",
        )
    last = "pass_two" if "pass_two/share_inside" in numbers.list_metrics() else "pass_one"
    inside = np.array(numbers.get_values(f"{last}/share_inside")) if split.has_masks else None
    even = bootstrap_mean(numbers.get_values(f"{UNIFORM_MAP}/share_inside")) if split.has_masks else None
    return ComparedRun(
        run.viewer,
        run.request,
        session.measure_model_sizes(),
        kind,
        torch.cat(probabilities),
        np.array(numbers.get_values(objective.measure.name)),
        inside,
        None if even is None else even.mean,
        merge_attention_checks(checks),
        readable,
    )


def merge_attention_checks(batches: Sequence[AttentionChecks | None]) -> AttentionChecks | None:
    """Merge the checks of all batches, which have the same layers, with the largest differences."""
    known = [checks for checks in batches if checks is not None]
    if not known:
        return None
    return replace(
        known[0],
        mismatch=max((checks.mismatch for checks in known if checks.mismatch is not None), default=None),
        difference=max((checks.difference for checks in known if checks.difference is not None), default=None),
    )
