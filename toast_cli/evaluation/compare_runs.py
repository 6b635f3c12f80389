"""Several runs on the same images: what each says and where it looks, and how sure a difference between them is."""

from __future__ import annotations

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

from toast_cli.attention.table import UNIFORM_MAP, AttentionMetricsTable
from toast_cli.attention.validation import AttentionChecks
from toast_cli.data.base import ImageSplit
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest, AttentionRun, open_attention_run
from toast_cli.evaluation.same_data import EvaluationImages, check_same_images
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean
from toast_cli.visualize.save_figures import make_names_unique
from toast_cli.visualize.view import AttentionViewer


@dataclass(frozen=True)
class ComparedRun:
    """One run: `probabilities` `[images, classes]` of its last pass, whether each was `correct` (1 or 0), and `inside`.

    That is the share of the last pass's map inside the object, for every image, NaN where the crop lost it, and `even`
    the mean of what a map that is the same everywhere has there; None where there are no masks. `checks` say what the
    maps were held against, over all images; None where they were not.
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


@dataclass(frozen=True)
class RunComparison:
    """Several runs on one split."""

    runs: tuple[ComparedRun, ...]
    split: ImageSplit
    dataset: str
    classes: tuple[str, ...]

    def pairs(self) -> list[tuple[ComparedRun, ComparedRun]]:
        """Return every run with each one after it."""
        return list(combinations(self.runs, 2))

    def estimate_difference(self, one: ComparedRun, other: ComparedRun, what: str) -> MeanEstimate | None:
        """Return the second run less the first, in `correct` or `inside`, paired over images.

        The intervals of all pairs hold together with 95%. None where either run has none, or where what lies inside is
        attention of one and feature energy of the other.
        """
        if what == "inside" and one.kind != other.kind:
            return None
        first, second = getattr(one, what), getattr(other, what)
        return None if first is None or second is None else bootstrap_mean(second - first, intervals=len(self.pairs()))

    def find_most_disputed(self, count: int) -> list[int]:
        """Return the images on which the runs disagree most, the most disputed first.

        The measure is the total variation of their probabilities, the mean over all pairs of runs; images on which all
        predict the same class come last.
        """
        pairs = [(one.probabilities, other.probabilities) for one, other in self.pairs()]
        apart = torch.stack([(one - other).abs().sum(1) / 2 for one, other in pairs]).mean(0)
        predicted = torch.stack([run.probabilities.argmax(1) for run in self.runs])
        apart = apart + (predicted != predicted[0]).any(0).float()
        return apart.argsort(descending=True, stable=True)[:count].tolist()


def build_comparison(requests: Sequence[AttentionEvalRequest], reporter: Reporter) -> RunComparison:
    """Show every run the same images; all are opened and held against each other before any is measured.

    Raises:
        UsageError: fewer than two runs.
        ToastError: one cannot be opened or has no such split, level or head; the runs do not see the same images with
            the same object marked in them.
    """
    if len(requests) < 2:
        raise UsageError(
            "One run has nothing to be compared with.", what_to_do="Name two or more.", code="run.too-few-runs"
        )
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
    return RunComparison(tuple(measured), first.split, first.session.recipe.dataset.name, first.session.data.classes)


@contextmanager
def name_run_in_errors(path: Path) -> Iterator[None]:
    """Name, in an error raised within the block, the run that it is about."""
    try:
        yield
    except ToastError as error:
        reasons = (error.what, *filter(None, error.reasons))
        raise ToastError(
            f"{path} cannot be compared.", reasons, error.what_to_do, exit_code=error.exit_code, code=error.code
        ) from error


def get_images(run: AttentionRun) -> EvaluationImages:
    """Return what a run is shown."""
    return EvaluationImages(run.request.path, run.split, run.session.data.classes, run.session.recipe)


@torch.no_grad()
def open_run_for_comparison(
    name: str, request: AttentionEvalRequest, seed: int | None, reporter: Reporter
) -> AttentionRun:
    """Open a run with its data, and check that it can look at the first of its images.

    Where only some are asked for, `seed` draws them, the run's own where it is None.

    Raises:
        UsageError: there is no such split, level or head, or it is made of texts or of labelled pixels.
        ToastError: the data set's classes are not the model's, or nothing can be loaded.
    """
    run = open_attention_run(request, reporter, name, seed)
    image, _ = run.viewer.transform(run.split.load(0).image)
    run.viewer.recorder.record(image[None].to(run.session.accelerator.device))  # a missing head is found only here
    return run


@torch.no_grad()
def measure_run(run: AttentionRun, reporter: Reporter) -> ComparedRun:
    """Measure one run on all of its images.

    Raises:
        ToastError: an image cannot be read, or a map is not what the model attends with.
    """
    session, split, batches = run.session, run.split, run.batches()
    numbers, probabilities, kind, checks = AttentionMetricsTable(), [], "", []
    for batch in reporter.track(batches, len(batches), run.viewer.name):
        batch = send_to_device(batch, session.accelerator.device)
        with session.accelerator.autocast():
            output = run.viewer.recorder.record(batch["image"])
        kind = output.kind
        checks.append(output.checks)
        numbers.add(output, batch)
        probabilities.append(output.logits.float().softmax(-1)[batch["label"] >= 0].cpu())
    if len(numbers.rows) != len(split):
        raise ToastError(
            f"{len(split) - len(numbers.rows):,} images of {session.recipe.dataset.name} could not be read.",
            what_to_do="Mend or remove them: runs are compared on the same images.",
            code="data.unreadable-image",
        )
    last = "pass_two" if "pass_two/share_inside" in numbers.names() else "pass_one"
    inside = np.array(numbers.column(f"{last}/share_inside")) if split.has_masks else None
    even = bootstrap_mean(numbers.column(f"{UNIFORM_MAP}/share_inside")) if split.has_masks else None
    return ComparedRun(
        run.viewer,
        run.request,
        session.sizes(),
        kind,
        torch.cat(probabilities),
        np.array(numbers.column("correct")),
        inside,
        None if even is None else even.mean,
        merge_attention_checks(checks),
    )


def merge_attention_checks(found: Sequence[AttentionChecks | None]) -> AttentionChecks | None:
    """Merge the checks of all batches: the same layers in each, and the largest differences."""
    known = [checks for checks in found if checks is not None]
    if not known:
        return None
    return replace(
        known[0],
        mismatch=max((checks.mismatch for checks in known if checks.mismatch is not None), default=None),
        difference=max((checks.difference for checks in known if checks.difference is not None), default=None),
    )
