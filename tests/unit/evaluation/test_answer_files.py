"""The files of a model's answers: what they hold, where they lie, and the page of the worst mistakes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.evaluation.answers import GreySplit, answers_of, pixel_answers
from toast_cli.evaluation.answer_files import choose_evaluation_folder, write_answer_files, write_evaluation_record
from toast_cli.evaluation.answer_report import render_answer_report
from toast_cli.evaluation.mistakes import describe_mistake, find_worst_mistakes
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.training.evaluate import SplitAnswers

NAMES = ["=cmd()", "<b>ü</b>", 'a "b", c']
ANSWERS = answers_of(
    NAMES, [0, 1, 2, 2], [1, 1, 0, 1], [0.9, 0.8, 0.7, 0.95], ["x,1.jpg", "+2.jpg", "broken <i>.jpg", "naïve.jpg"]
)


def read(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))


def test_tables_and_pictures_are_written_and_names_survive(tmp_path: Path) -> None:
    written = write_answer_files(ANSWERS, tmp_path)
    assert written == ["predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png"]
    assert {file.name for file in tmp_path.iterdir()} == set(written)
    assert read(tmp_path / "predictions.csv") == [
        ["file", "label", "choice", "probability"],
        ["x,1.jpg", "'=cmd()", "<b>ü</b>", "0.900000"],
        ["'+2.jpg", "<b>ü</b>", "<b>ü</b>", "0.800000"],
        ["broken <i>.jpg", 'a "b", c', "'=cmd()", "0.700000"],
        ["naïve.jpg", 'a "b", c', "<b>ü</b>", "0.950000"],
    ]
    assert read(tmp_path / "confusion.csv")[0] == ["label", "'=cmd()", "<b>ü</b>", 'a "b", c']
    header, *_, last = read(tmp_path / "per_class.csv")
    found = dict(zip(header, last, strict=True))
    assert (found["precision"], found["recall"], found["mean_probability"]) == ("", "0.000000", "0.825000")
    for picture in ("confusion.png", "reliability.png"):
        with Image.open(tmp_path / picture) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_answers_without_probabilities_leave_no_diagram_of_them(tmp_path: Path) -> None:
    (tmp_path / "reliability.png").write_bytes(b"of an earlier evaluation")
    written = write_answer_files(answers_of("ab", [0, 1], [0, 0]), tmp_path)
    assert "reliability.png" not in written and not (tmp_path / "reliability.png").exists()
    assert read(tmp_path / "predictions.csv")[1] == ["0.jpg", "a", "a", ""]


def test_classes_of_pixels_have_tables_and_a_picture(tmp_path: Path) -> None:
    written = write_answer_files(pixel_answers(["ground", "sky"], [[5_000_000, 1], [2, 3]]), tmp_path)
    assert written == ["per_class.csv", "confusion.csv", "confusion.png"]
    assert read(tmp_path / "confusion.csv")[1] == ["ground", "5000000", "1"]
    page = render_answer_report(pixel_answers(["ground", "sky"], [[5, 1], [2, 3]]), tmp_path, "title", [])
    assert "IoU" in page and "mistakes" not in page


def test_labels_have_a_column_each_and_numbers_their_errors(tmp_path: Path) -> None:
    columns = {
        "index": np.arange(2),
        "label": np.array([[True, True, False], [False, False, False]]),
        "chosen": np.array([[True, False, False], [True, False, False]]),
        "probability": np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.4]], dtype=np.float32),
    }
    labels = replace(ANSWERS, target="labels", columns=columns, classes=("=a", "ü", "c"), thresholds=(0.5, 0.25, 0.5))
    written = ["predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png"]
    assert write_answer_files(labels, tmp_path) == written
    assert read(tmp_path / "confusion.csv")[1:] == [
        ["'=a", "1", "0", "1", "0"],
        ["ü", "0", "1", "0", "1"],
        ["c", "0", "0", "0", "2"],
    ]
    assert find_worst_mistakes(labels, most=9) == [1, 0]
    assert describe_mistake(labels, 0)[1:3] == ("=a, ü", "missed ü 10.0%")
    assert describe_mistake(labels, 1)[1:3] == ("none", "given =a 80.0%")
    page = render_answer_report(labels, tmp_path, "title", [])
    assert page.count("<figure>") == 2 and page.count("data:image/png") == 2 and "<th>average precision</th>" in page
    assert "2 answers are wrong" in page and "Reliability" in page
    assert read(tmp_path / "predictions.csv") == [
        ["file", "labels", "choices", "p_=a", "p_ü", "p_c"],
        ["x,1.jpg", "'=a|ü", "'=a", "0.900000", "0.100000", "0.200000"],
        ["'+2.jpg", "", "'=a", "0.800000", "0.300000", "0.400000"],
    ]
    assert read(tmp_path / "per_class.csv") == [
        ["label", "support", "predicted", "correct", "precision", "recall", "f1", "average_precision", "threshold"],
        ["'=a", "1", "2", "1", "0.500000", "1.000000", "0.666667", "1.000000", "0.500000"],
        ["ü", "1", "0", "0", "", "0.000000", "0.000000", "0.500000", "0.250000"],
        ["c", "0", "0", "0", "", "", "", "", "0.500000"],
    ]
    numbers = np.array([[31.5, 2.0], [40.0, np.nan]], dtype=np.float32)
    columns = {"index": np.arange(2), "label": np.array([[31.0, 4.0], [42.0, 1.0]]), "predicted": numbers}
    answers = replace(ANSWERS, target="number", columns=columns, classes=("age", "file"))
    assert write_answer_files(answers, tmp_path) == ["predictions.csv", "per_number.csv", "numbers.png"]
    assert read(tmp_path / "per_number.csv")[1] == [
        "age",
        *(f"{n:.6f}" for n in (1.25, 2.125**0.5, 0.929752, -0.75, 2)),
    ]
    assert find_worst_mistakes(answers, most=9) == [1, 0]
    assert describe_mistake(answers, 0)[1:3] == ("age 31, file 4", "age 31.5, file 2")
    page = render_answer_report(answers, tmp_path, "title", [])
    assert "Largest errors" in page and "<th>RMSE</th>" in page and "predicted" not in page.split("<figure>")[0]
    assert read(tmp_path / "predictions.csv") == [
        ["file", "age", "predicted_age", "error_age", "file-2", "predicted_file", "error_file"],
        ["x,1.jpg", "31.0", "31.5", "0.5", "4.0", "2.0", "-2.0"],
        ["'+2.jpg", "42.0", "40.0", "-2.0", "1.0", "", ""],
    ]


def chosen_folder(answers: SplitAnswers, run: Path, out: Path | None = None, alpha: float | None = None) -> Path:
    folder, digest = choose_evaluation_folder(answers, RunRequest(run, alpha=alpha), None, out)
    folder.mkdir(parents=True, exist_ok=True)
    write_evaluation_record(folder, digest, {})
    return folder


def test_an_evaluation_gets_its_own_folder_again_and_one_of_other_data_another(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = chosen_folder(ANSWERS, run)
    assert first == run / "evaluations" / "pets-test" == chosen_folder(ANSWERS, run)
    elsewhere = replace(ANSWERS, samples=GreySplit(ANSWERS.samples.names, ANSWERS.samples.labels, [tmp_path]))
    assert chosen_folder(elsewhere, run) == run / "evaluations" / "pets-test-2" == chosen_folder(elsewhere, run)
    assert chosen_folder(ANSWERS, run) == first
    assert chosen_folder(ANSWERS, run, alpha=0.5).name == "pets-test-alpha0.5"
    assert chosen_folder(replace(ANSWERS, split="val"), run).name == "pets-val"
    spaced = replace(ANSWERS, data={"name": "folder", "path": "my pets (2024)"})
    assert chosen_folder(spaced, run).name == "my-pets--2024--test"


def test_the_folder_lies_in_the_run_of_an_adapter_and_beside_an_output_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/adapter").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").touch()
    assert chosen_folder(ANSWERS, tmp_path / "run/adapter") == tmp_path / "run/evaluations/pets-test"
    models = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for model in models:
        model.touch()
    assert [str(chosen_folder(ANSWERS, model)) for model in models] == [
        "evaluations/pets-test", "evaluations/pets-test-2",
    ]  # fmt: skip
    assert chosen_folder(ANSWERS, tmp_path / "run", tmp_path / "n.json") == tmp_path / "n-answers"


def test_the_page_shows_the_surest_mistakes_first_and_only_those(tmp_path: Path) -> None:
    assert find_worst_mistakes(ANSWERS, most=9) == [3, 0, 2] and find_worst_mistakes(ANSWERS, most=1) == [3]
    write_answer_files(ANSWERS, tmp_path)
    page = render_answer_report(ANSWERS, tmp_path, "<title>", [("accuracy", "25%")])
    assert page.index("naïve.jpg</span>") < page.index("x,1.jpg</span>") < page.index("broken &lt;i&gt;.jpg</span>")
    assert "+2.jpg" not in page and "<b>" not in page and "<title></h1>" not in page
    assert page.count("data:image/jpeg") == 2 and "It is truncated." in page
    assert page.count("data:image/png") == 2 and "http" not in page.replace("http-equiv", "")


def test_many_mistakes_are_cut_and_a_stream_has_no_images(tmp_path: Path) -> None:
    many = answers_of("ab", [0] * 50, [1] * 50, [0.5] * 50)
    assert render_answer_report(many, tmp_path, "", []).count("<figure>") == 36
    stream = GreySplit([], [])
    stream.kind = "stream"  # type: ignore[attr-defined]
    del stream.names
    streamed = replace(many, samples=stream, names={0: "shard-0: cat"})
    page = render_answer_report(streamed, tmp_path, "", [])
    assert "<figure>" not in page and "50 answers are wrong" in page and "stream cannot be read" in page
    assert [streamed.get_sample_name(index) for index in (0, 1)] == ["shard-0: cat", "1"]
