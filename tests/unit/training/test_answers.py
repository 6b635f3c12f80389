"""The answers of a model: kept with their probability, and handed on after the test or, without one, validation."""

from __future__ import annotations

import csv
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.layouts import put
from tests.unit.evaluation.answers import answers_of
from toast_cli.evaluation.answer_files import write_answer_files
from toast_cli.evaluation.evaluate_run import evaluate_run
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.tasks.classification import Classification, ClassificationOptions
from toast_cli.training.evaluate import SamplePredictions, SplitAnswers
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import format_answers_record, tune_model
from toast_cli.utils.constants import IGNORE_INDEX


def predictions(
    logits: list[list[float]], label: list[int], index: list[int], scores: bool = True
) -> SamplePredictions:
    found, objective = SamplePredictions(), Classification(torch.nn.Identity(), 2, ClassificationOptions())
    objective.class_scores = scores
    found.add(objective, torch.tensor(logits), {"label": torch.tensor(label), "index": torch.tensor(index)})
    return found


def test_choices_are_kept_with_their_probability_by_index_over_processes() -> None:
    one = predictions([[0.0, math.log(3)], [9.0, 0.0]], [1, IGNORE_INDEX], [5, 6])
    one.merge(predictions([[math.log(4), 0.0]], [1], [2]))
    columns = {name: column.tolist() for name, column in one.get_columns().items()}
    assert columns.pop("probability") == pytest.approx([0.8, 0.75])
    assert columns == {"index": [2, 5], "label": [1, 1], "chosen": [0, 1]}
    assert SamplePredictions().get_columns() == {}


def test_a_task_without_class_scores_has_choices_without_probabilities() -> None:
    assert np.isnan(predictions([[0.0, 1.0]], [0], [0], scores=False).get_columns()["probability"]).all()
    assert format_answers_record(answers_of("ab", [1], [0])) == {"index": [0], "label": [1], "chosen": [0]}


def tuned(root: Path, out: Path, **more: Any) -> list[SplitAnswers]:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": f"folder:{root}",
        "method": "toast-lite",
        "device": "cpu",
        "training": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "workers": 0, "cache": True},
    }
    answers: list[SplitAnswers] = []
    tune_model(build_recipe(raw | more, {}, origin="a test"), out, Reporter(), on_answers=answers.append)
    return answers


def test_answers_are_of_the_test_split_and_without_one_of_validation(tmp_path: Path) -> None:
    for number in range(12):
        put(
            tmp_path / "pets" / ("train" if number < 8 else "val") / ("cat", "dog")[number % 2] / f"{number}.jpg",
            number,
        )
    (answers,) = tuned(tmp_path / "pets", tmp_path / "run")
    assert answers.split == "val" and answers.classes == ("cat", "dog")
    names = [answers.get_sample_name(index) for index in answers.columns["index"].tolist()]
    assert sorted(names) == [f"val/{('cat', 'dog')[number % 2]}/{number}.jpg" for number in (10, 8, 11, 9)]
    assert not (tmp_path / "run/test_answers.json").exists()

    (tmp_path / "pets/val").rename(tmp_path / "pets/test")
    (answers,) = tuned(tmp_path / "pets", tmp_path / "tested")
    assert answers.split == "test"
    record = json.loads((tmp_path / "tested/test_answers.json").read_text())
    assert record["chosen"] == answers.columns["chosen"].tolist()
    assert record["probability"] == pytest.approx(answers.columns["probability"].tolist(), abs=1e-6)
    assert tuned(tmp_path / "pets", tmp_path / "untested", test=False) == []


def write_table(root: Path, columns: str, cells: list[str]) -> Path:
    rows = [f"path,split,{columns}"]
    for number, cell in enumerate(cells):
        put(root / f"{number}.jpg", number)
        rows.append(f"{number}.jpg,{('train', 'train', 'val', 'test')[number % 4]},{cell}")
    (root / "t.csv").write_text("\n".join(rows) + "\n")
    return root / "t.csv"


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize(
    ("fields", "columns", "cells"),
    [
        ({"label_columns": ["indoor", "cute"]}, "indoor,cute", ["1,0", "0,1", "1,1", "0,1"] * 3),
        ({"target_column": ["age", "size"]}, "age,size", [f"{20 + number},{number / 8}" for number in range(12)]),
    ],
    ids=["labels", "numbers"],
)
def test_labels_and_numbers_leave_their_answers_after_tuning_and_evaluation(
    fields: dict[str, Any], columns: str, cells: list[str], tmp_path: Path
) -> None:
    dataset = {"name": "table", "path": str(write_table(tmp_path, columns, cells)), "split_column": "split", **fields}
    (answers,) = tuned(tmp_path, tmp_path / "run", dataset=dataset)
    written = write_answer_files(answers, tmp_path / "run")
    details = ["per_class.csv", "confusion.csv", "confusion.png", "reliability.png"]
    assert written == [
        "predictions.csv",
        *(details if "label_columns" in fields else ["per_number.csv", "numbers.png"]),
    ]
    assert not (tmp_path / "run/test_answers.json").exists()
    rows, names = read(tmp_path / "run/predictions.csv"), columns.split(",")
    assert sorted(row["file"] for row in rows) == ["11.jpg", "3.jpg", "7.jpg"]
    results = json.loads((tmp_path / "run/results.json").read_text())["test"]
    if answers.target == "labels":
        per_label = read(tmp_path / "run/per_class.csv")
        assert {row["labels"] for row in rows} == {"cute"}
        for name, found in zip(names, per_label, strict=True):
            likely = [float(row[f"p_{name}"]) >= float(found["threshold"]) for row in rows]
            assert [name in row["choices"].split("|") for row in rows] == likely
        assert float(per_label[names.index("cute")]["f1"]) == pytest.approx(results["label_f1"]["cute"], abs=1e-6)
    else:
        assert {row["file"]: row["age"] for row in rows} == {"3.jpg": "23.0", "7.jpg": "27.0", "11.jpg": "31.0"}
        for name in names:
            errors = [float(row[f"error_{name}"]) for row in rows]
            assert errors == pytest.approx(
                [float(row[f"predicted_{name}"]) - float(row[name]) for row in rows], abs=1e-3
            )
            assert np.mean(np.abs(errors)) == pytest.approx(results["number_mae"][name], rel=1e-4)
        for found in read(tmp_path / "run/per_number.csv"):
            for name in ("mae", "rmse", "r2"):
                assert float(found[name]) == pytest.approx(results[f"number_{name}"][found["number"]], rel=1e-4)
    again: list[SplitAnswers] = []
    evaluate_run(RunRequest(tmp_path / "run"), Reporter(), on_answers=again.append)
    for name, column in answers.columns.items():
        np.testing.assert_allclose(again[0].columns[name], column, rtol=1e-4, atol=1e-5)
    assert evaluate_run(RunRequest(tmp_path / "run"), Reporter(), require_answers=True)["test"]["images"] == 3


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_are_merged_over_processes_without_what_is_left_out(task: str) -> None:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": "linear", "task": task}
    objective = build_model(build_recipe(raw, {}, origin="a test"), ("a", "b")).objective
    first, second = SamplePredictions(), SamplePredictions()
    for found, index, label, outputs in (
        (first, [5, 6], [[1.0, 0.0], [math.nan] * 2], [[2.0, -1.0], [0.0, 0.0]]),
        (second, [2], [[0.0, 1.0]], [[3.0, 4.0]]),
    ):
        batch = {"index": torch.tensor(index), "label": torch.tensor(label)}
        found.add(objective, torch.tensor(outputs), batch)
    first.merge(pickle.loads(pickle.dumps(second)))
    columns = {name: column.tolist() for name, column in first.get_columns().items()}
    assert columns["index"] == [2, 5] and columns["label"] == [[0, 1], [1, 0]]
    assert columns.get("chosen") == ([[True, True], [True, False]] if task == "multilabel" else None)
    assert columns.get("predicted") == ([[3, 4], [2, -1]] if task == "regression" else None)
