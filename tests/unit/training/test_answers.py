"""The answers of a model: kept with their probability, and handed on after the test or, without one, validation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.layouts import put
from tests.unit.evaluation.answers import answers_of
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
