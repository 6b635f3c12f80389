"""Splits that turn out empty: one clear message, no division by zero, and what was trained is kept.

No public report; it is a kind of its own (missing and empty data) that users of every trainer meet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layouts import put
from toast_cli.data.audit.check import check_dataset
from toast_cli.data.base import DataSource
from toast_cli.data.images.image_folder import SOURCE, ImageFolderOptions
from toast_cli.data.open_source import open_source
from toast_cli.recipe.parse import build_recipe
from toast_cli.tasks.classification_meter import ClassificationMeter
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError


def track(items: Any, total: int, what: str) -> Any:
    return items


def photographs(root: Path, broken: str = "") -> Path:
    number = 0
    for part, count in (("train", 5), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            for place in range(count):
                number += 1
                put(root / part / name / f"{place}.jpg", number)
                if part == broken:
                    (root / part / name / f"{place}.jpg").write_bytes(b"no picture")
    return root


class Listener(Reporter):
    """The messages and ends of epochs of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def report_message(self, text: str) -> None:
        self.texts.append(text)

    def report_epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        self.texts.append(f"epoch {epoch}")


def tuned(root: Path, out: Path, reporter: Reporter | None = None, epochs: int = 1) -> dict[str, Any]:
    raw = {
        "backbone": {"name": "vit_demo", "weights": "none"},
        "dataset": f"folder:{root}",
        "method": "linear",
        "device": "cpu",
        "images": {"on_error": "skip"},
        "training": {"epochs": epochs, "batch_size": 3, "warmup_epochs": 0, "workers": 0},
    }
    return tune_model(build_recipe(raw, {}, origin="a test"), out, reporter or Reporter())[1]


def test_a_meter_of_nothing_says_so() -> None:
    meter = ClassificationMeter(3)
    with pytest.raises(ToastError) as refused:
        meter.result()
    assert refused.value.code == "task.nothing-to-measure"
    meter.add(torch.zeros(1, 3), {"label": torch.tensor([0])})
    assert meter.result()["class_accuracy"] == 1


def test_a_test_split_without_a_readable_image_costs_only_the_test(tmp_path: Path) -> None:
    results = tuned(photographs(tmp_path / "data", "test"), tmp_path / "run")
    assert results["test"] is None and len(results["skipped"]["test"]) == 4
    assert results["validation"]["images"] == 4
    assert (tmp_path / "run/adapter/adapter_config.json").is_file() and (tmp_path / "run/results.json").is_file()


def test_without_a_readable_validation_image_the_last_epoch_is_kept(tmp_path: Path) -> None:
    said = Listener()
    results = tuned(photographs(tmp_path / "data", "val"), tmp_path / "run", said, epochs=2)
    assert results["validation"] is None and results["selected_epoch"] == 2 and results["test"]["images"] == 4
    assert len(results["skipped"]["val"]) == 4
    assert sum("val: not evaluated" in text and "last one is kept" in text for text in said.texts) == 1
    assert not any("There is no validation split" in text for text in said.texts)


def test_a_class_without_a_readable_image_is_named_per_split_after_the_first_epoch(tmp_path: Path) -> None:
    root, said = photographs(tmp_path / "data"), Listener()
    for part, name in (("train", "dog"), ("test", "cat")):
        for file in (root / part / name).iterdir():
            file.write_bytes(b"no picture")
    tuned(root, tmp_path / "run", said, epochs=2)
    warnings = [text for text in said.texts if "no image of class" in text]
    assert warnings[0].startswith("Warning: train: no image of class 'dog'") and "epoch 1" in said.texts
    assert said.texts.index("epoch 1") < said.texts.index(warnings[0]) < said.texts.index("epoch 2")
    assert any(text.startswith("Warning: test: no image of class 'cat'") for text in warnings)
    problems = check_dataset(open_source(SOURCE, ImageFolderOptions(path=str(root)), None), track)["problems"]
    assert "class 'dog': no readable image in train" in problems
    assert "class 'cat': no readable image in test" in problems


def test_without_a_readable_training_image_nothing_is_divided_by_zero(tmp_path: Path) -> None:
    with pytest.raises(ToastError) as refused:
        tuned(photographs(tmp_path / "data", "train"), tmp_path / "run")
    assert refused.value.code == "task.nothing-to-measure"


@pytest.mark.parametrize("broken", ["train", "val", "test"])
def test_the_check_reports_it(tmp_path: Path, broken: str) -> None:
    root = photographs(tmp_path, broken)
    report = check_dataset(open_source(SOURCE, ImageFolderOptions(path=str(root)), None), track)
    assert any(problem.startswith(f"{broken}: ") for problem in report["problems"])


def test_an_empty_split_of_any_source_is_left_out_with_a_note(tmp_path: Path) -> None:
    options = ImageFolderOptions(path=str(photographs(tmp_path)))

    def open_with(part: str) -> DataSource:
        def open_emptied(options: Any, data_dir: Path | None) -> Any:
            data = SOURCE.open(options, data_dir)
            return replace(data, splits={**data.splits, part: data.splits[part].take([])})  # type: ignore[attr-defined]

        return replace(SOURCE, open=open_emptied)

    data = open_source(open_with("test"), options, None)
    assert "test" not in data.splits and any("the split is empty" in note for note in data.notes)
    with pytest.raises(ToastError) as refused:
        open_source(open_with("train"), options, None)
    assert refused.value.code == "data.no-train-split"
