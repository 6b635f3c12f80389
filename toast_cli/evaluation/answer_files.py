"""Tables and pictures of a model's answers to a split, in the folder of a run or of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toast_cli.data.base import Split, get_image_folders
from toast_cli.data.splits import get_split_hash
from toast_cli.evaluation.class_metrics import (
    compute_calibration,
    compute_class_metrics,
    compute_label_metrics,
    compute_number_metrics,
    compute_pixel_class_metrics,
    count_confusions,
    count_label_outcomes,
    iterate_confusion_rows,
    iterate_label_outcome_rows,
)
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.evaluation.prediction.answers import round_number
from toast_cli.evaluation.prediction.table import LABEL_SEPARATOR
from toast_cli.tasks.base import Target
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.utils.files import remove_file, write_json
from toast_cli.utils.formatting import write_csv
from toast_cli.utils.hashing import hash_json
from toast_cli.utils.names import make_names_unique, to_folder_name
from toast_cli.visualize.answer_figures import draw_confusion, draw_reliability
from toast_cli.visualize.figure_output import save_figure
from toast_cli.visualize.label_figures import draw_label_outcomes
from toast_cli.visualize.number_figures import draw_numbers
from toast_cli.visualize.save_figures import SOURCE_DIGEST_KEY, find_free_name

PREDICTIONS_FILE = "predictions.csv"
CLASSES_FILE = "per_class.csv"
NUMBERS_FILE = "per_number.csv"
CONFUSION_FILE = "confusion.csv"
CONFUSION_FIGURE = "confusion.png"
RELIABILITY_FIGURE = "reliability.png"
NUMBERS_FIGURE = "numbers.png"
REPORT_FILE = "report.html"
RECORD_FILE = "evaluation.json"
"""Record of an evaluation's run, data and metrics. It is written last, so a folder with a record is complete."""
EVALUATIONS_FOLDER = "evaluations"
"""Folder of a run with its evaluations."""
MAX_MATRIX_CLASSES = 500
"""Largest number of classes whose confusions are a matrix in the table; those of more are a list of pairs."""


def write_answer_files(answers: SplitAnswers, folder: Path) -> list[str]:
    """Write the tables and pictures of a model's answers to a folder, and return the names of the files.

    Raises:
        ToastError: the folder cannot be written to.
    """
    return list(WRITERS[answers.target](answers, folder))


def _write_class_files(answers: SplitAnswers, folder: Path) -> Iterator[str]:
    """Write the files of a model with one class per sample, and yield their names."""
    write_csv(folder / PREDICTIONS_FILE, iterate_prediction_rows(answers))
    yield PREDICTIONS_FILE
    yield from _write_class_tables(answers, compute_class_metrics(answers), folder)
    what = f"{len(answers.columns['index']):,} samples of the {answers.split} split"
    yield _save(draw_confusion(count_confusions(answers), answers.classes, what), folder / CONFUSION_FIGURE)
    yield from _write_reliability(answers, what, folder)


def _write_reliability(answers: SplitAnswers, what: str, folder: Path) -> Iterator[str]:
    """Write the reliability diagram, if the answers have probabilities, and yield its name."""
    calibration = compute_calibration(answers)
    if calibration is None:
        remove_file(folder / RELIABILITY_FIGURE)
        return
    figure = draw_reliability(**vars(calibration), what=what, several_labels=answers.target == "labels")
    yield _save(figure, folder / RELIABILITY_FIGURE)


def _write_pixel_files(answers: SplitAnswers, folder: Path) -> Iterator[str]:
    """Write the files of a model with one class per pixel, and yield their names."""
    yield from _write_class_tables(answers, compute_pixel_class_metrics(answers), folder)
    counts = count_confusions(answers)
    what = f"{counts.sum():,} pixels of the {answers.split} split"
    yield _save(draw_confusion(counts, answers.classes, what, shares=True), folder / CONFUSION_FIGURE)


def _write_label_files(answers: SplitAnswers, folder: Path) -> Iterator[str]:
    """Write the files of a model with several labels per sample, and yield their names."""
    write_csv(folder / PREDICTIONS_FILE, iterate_label_rows(answers))
    yield PREDICTIONS_FILE
    yield _write_metrics(compute_label_metrics(answers), folder / CLASSES_FILE)
    write_csv(folder / CONFUSION_FILE, iterate_label_outcome_rows(answers))
    yield CONFUSION_FILE
    what = f"{len(answers.columns['index']):,} samples of the {answers.split} split"
    yield _save(draw_label_outcomes(count_label_outcomes(answers), answers.classes, what), folder / CONFUSION_FIGURE)
    yield from _write_reliability(answers, what, folder)


def _write_number_files(answers: SplitAnswers, folder: Path) -> Iterator[str]:
    """Write the files of a model with numbers per sample, and yield their names."""
    write_csv(folder / PREDICTIONS_FILE, iterate_number_rows(answers))
    yield PREDICTIONS_FILE
    yield _write_metrics(compute_number_metrics(answers), folder / NUMBERS_FILE)
    what = f"{len(answers.columns['index']):,} samples of the {answers.split} split"
    label, predicted = answers.columns["label"], answers.columns["predicted"]
    yield _save(draw_numbers(label, predicted, answers.classes, what), folder / NUMBERS_FIGURE)


WRITERS: Mapping[Target, Callable[[SplitAnswers, Path], Iterator[str]]] = {
    "class": _write_class_files,
    "pixels": _write_pixel_files,
    "labels": _write_label_files,
    "number": _write_number_files,
}
"""By target, the function that writes the files of the answers and yields their names."""


def iterate_prediction_rows(answers: SplitAnswers) -> Iterator[list[Any]]:
    """Yield the rows of the table of predictions, with a header."""
    yield ["file", "label", "choice", "probability"]
    columns = (answers.columns[name].tolist() for name in ("index", "label", "chosen", "probability"))
    for index, label, chosen, probability in zip(*columns, strict=True):
        share = "" if probability != probability else f"{probability:.6f}"
        yield [answers.get_sample_name(index), answers.classes[label], answers.classes[chosen], share]


def iterate_label_rows(answers: SplitAnswers) -> Iterator[list[Any]]:
    """Yield the rows of the table of predictions of several labels, with a header."""
    yield make_names_unique(["file", "labels", "choices", *(f"p_{name}" for name in answers.classes)])
    columns = (answers.columns[name] for name in ("index", "label", "chosen", "probability"))
    for index, label, chosen, probability in zip(*columns, strict=True):
        names = (
            LABEL_SEPARATOR.join(name for name, holds in zip(answers.classes, given, strict=True) if holds)
            for given in (label, chosen)
        )
        yield [answers.get_sample_name(int(index)), *names, *(f"{value:.6f}" for value in probability.tolist())]


def iterate_number_rows(answers: SplitAnswers) -> Iterator[list[Any]]:
    """Yield the rows of the table of predicted numbers, with a header. An error is the prediction minus the number."""
    yield make_names_unique(
        ["file", *(column for name in answers.classes for column in (name, f"predicted_{name}", f"error_{name}"))]
    )
    columns = (answers.columns[name] for name in ("index", "label", "predicted"))
    for index, label, predicted in zip(*columns, strict=True):
        cells = np.stack([label, predicted, predicted - label], axis=1).ravel()
        yield [answers.get_sample_name(int(index)), *map(round_number, cells.tolist())]


def _write_class_tables(answers: SplitAnswers, metrics: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    yield _write_metrics(metrics, folder / CLASSES_FILE)
    write_csv(folder / CONFUSION_FILE, iterate_confusion_rows(answers, MAX_MATRIX_CLASSES))
    yield CONFUSION_FILE


def _write_metrics(metrics: list[dict[str, Any]], path: Path) -> str:
    rows = ([f"{value:.6f}" if isinstance(value, float) else value for value in row.values()] for row in metrics)
    write_csv(path, [list(metrics[0]), *rows])
    return path.name


def _save(figure: Any, path: Path) -> str:
    save_figure(figure, path)
    return path.name


class EvaluatedAnswers(Protocol):
    """Answers to a split: what names the folder of an evaluation."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Return the options of the data source."""

    @property
    def split(self) -> str:
        """Return the name of the split."""

    @property
    def samples(self) -> Split:
        """Return the split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes; empty for texts."""


def choose_evaluation_folder(
    answers: EvaluatedAnswers, request: RunRequest, evaluation: str | None, out: Path | None
) -> tuple[Path, str]:
    """Return the folder of an evaluation, and a digest of the model's settings and the data for its record.

    The folder is beside the JSON file `out`, else in the run folder, else in the current folder. The same evaluation
    gets the same folder again. An evaluation of other data never gets it: its folder has a number.
    """
    settings = [answers.data, answers.split, request.alpha, evaluation]
    samples = [get_split_hash(answers.samples), len(answers.samples), answers.classes]
    folders = sorted(str(folder.resolve()) for folder in get_image_folders(answers.samples))
    own = request.path.parent if (request.path.parent / "recipe.yaml").is_file() else request.path  # RUN/adapter
    if out is not None:
        home, name = out.parent, f"{out.stem}-answers"
    else:
        home = own / EVALUATIONS_FOLDER if own.is_dir() else Path(EVALUATIONS_FOLDER)
        data = Path(str(answers.data["path"])).stem if answers.data.get("path") else str(answers.data["name"])
        strength = "" if request.alpha is None else f"-alpha{request.alpha:g}"
        name = to_folder_name(f"{data}-{answers.split}{strength}{f'-{evaluation}' if evaluation else ''}")
    model = "" if home.is_relative_to(own) else str(request.path.resolve())
    digest = hash_json([settings, samples, folders, model])[:16]
    return home / find_free_name(home, name, digest, f"{{}}/{RECORD_FILE}"), digest


def clear_previous_evaluation(folder: Path) -> None:
    """Remove the record and the report of an earlier evaluation from a folder. The other files are overwritten.

    Raises:
        ToastError: the folder cannot be written to.
    """
    for name in (RECORD_FILE, REPORT_FILE):
        remove_file(folder / name)


def write_evaluation_record(folder: Path, digest: str, results: Mapping[str, Any]) -> None:
    """Write the record of an evaluation, as the last file of its folder.

    Raises:
        ToastError: the folder cannot be written to.
    """
    write_json(folder / RECORD_FILE, {SOURCE_DIGEST_KEY: digest, **results})
