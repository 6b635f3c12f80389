"""What is compared: the same images with the same marks, where runs look in the end, and who disagrees most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.scenes import CLASSES, demo_model, kept, recipe_of
from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.maps import AttentionOutput
from toast_cli.cli.output.comparison import build_rows
from toast_cli.data.base import Sample
from toast_cli.data.demo.scenes import DemoOptions, open_demo
from toast_cli.evaluation import compare_runs
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest, AttentionRun
from toast_cli.evaluation.compare_runs import ComparedRun, RunComparison, build_comparison, merge_attention_checks
from toast_cli.evaluation.same_data import EvaluationImages, check_same_images
from toast_cli.steering.steering import PassOutputs
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError


@dataclass
class Named:
    """As much of a viewer as a table has of it."""

    name: str


def compared(name: str, probabilities: list[list[float]], **more: Any) -> ComparedRun:
    """A run that says these probabilities of two classes."""
    sizes = {"trained_parameters": 5, "total_parameters": 100, "flops": 3e9, "flops_plain": 2e9}
    right, request = np.ones(len(probabilities)), AttentionEvalRequest(Path(name))
    found = ComparedRun(Named(name), request, sizes, "attention", torch.tensor(probabilities), right, None, None)  # type: ignore[arg-type]
    return replace(found, **more)


def comparison(*runs: ComparedRun) -> RunComparison:
    return RunComparison(runs, open_demo(DemoOptions(), None).splits["test"], "demo", CLASSES)  # type: ignore[arg-type]


def test_the_most_disputed_images_come_first_and_those_that_all_answer_alike_last() -> None:
    one = compared("one", [[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.55, 0.45]])
    other = compared("other", [[0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.45, 0.55]])
    # They are 0.3, 0.7, 0 and 0.1 apart; of the second and the fourth image they say different classes.
    assert comparison(one, other).find_most_disputed(4) == [1, 3, 0, 2]
    assert comparison(one, other).find_most_disputed(2) == [1, 3]


def test_a_difference_is_the_second_run_less_the_first() -> None:
    one = compared("one", [[1.0, 0.0]] * 4, correct=np.array([1.0, 0, 0, 0]), inside=np.array([0.1, 0.2, 0.3, 0.4]))
    other = compared("other", [[1.0, 0.0]] * 4, correct=np.array([1.0, 1, 1, 0]), inside=np.array([0.3, 0.4, 0.5, 0.6]))
    accuracy, inside = (comparison(one, other).estimate_difference(one, other, what) for what in ("correct", "inside"))
    assert accuracy is not None and inside is not None
    assert (accuracy.mean, inside.mean) == (0.5, pytest.approx(0.2))


def test_flops_are_told_against_the_plain_backbone_and_chance_by_run() -> None:
    runs = [
        compared(name, [[1.0, 0.0]] * 2, inside=np.array([0.25, 0.75]), even=even)
        for name, even in (("one", 0.2), ("other", 0.4))
    ]
    headings, (one, other), _, _ = build_rows(comparison(*runs))
    first, second = (dict(zip(headings, line["cells"], strict=True)) for line in (one, other))
    assert first["FLOPs"]["interval"] == "1.50 × plain" and first["of all"]["value"] == "5.00%"
    assert first["on the object, %"]["value"] == "50.0"
    assert (first["an even map, %"]["value"], second["an even map, %"]["value"]) == ("20.0", "40.0")


@dataclass
class Looking:
    """A recorder with a quarter on the object in pass one, three in pass two, and other checks at each look."""

    looks: int = 0

    def record(self, images: Tensor) -> AttentionOutput:
        self.looks += 1
        first, last = torch.zeros(len(images), 8, 8), torch.zeros(len(images), 8, 8)
        first[:, 0, 0], first[:, 7, 7] = 0.75, 0.25
        last[:, 0, 0], last[:, 7, 7] = 0.25, 0.75
        checks = AttentionChecks((2,), 1e-6 * self.looks, (), 0, 2e-7 / self.looks)
        return AttentionOutput(
            torch.eye(5)[[0] * len(images)], PassOutputs(None, None, None), first, last, None, "attention", checks
        )  # type: ignore[arg-type]


@dataclass(frozen=True)
class Corners:
    """Images whose object is the cell in the corner, the last of eight by eight."""

    has_masks: bool = True
    marks: str = "a corner"
    labels: tuple[int, ...] = (0, 1, 0, 0)
    names: tuple[str, ...] = ("a", "b", "c", "d")

    def __len__(self) -> int:
        return 4

    def load(self, index: int) -> Sample:
        mask = np.zeros((64, 64), dtype=bool)
        mask[56:, 56:] = True
        return Sample(Image.new("RGB", (64, 64)), self.labels[index], self.names[index], mask)


def test_what_lies_inside_is_of_the_last_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = compare_runs.open_attention_run

    def with_corners(*arguments: Any) -> AttentionRun:
        run = opened(*arguments)
        run.session.data = replace(run.session.data, splits={"test": Corners()})
        return replace(run, split=Corners())

    monkeypatch.setattr(compare_runs, "open_attention_run", with_corners)
    monkeypatch.setattr("toast_cli.visualize.view.build_recorder", lambda *_: Looking())
    path = kept(demo_model("linear"), tmp_path / "run", training={"eval_batch_size": 2})
    run, _ = build_comparison([AttentionEvalRequest(path), AttentionEvalRequest(path)], Reporter()).runs
    assert run.inside == pytest.approx(np.full(4, 0.75)) and run.even == pytest.approx(1 / 64)
    assert run.correct.tolist() == [1, 0, 1, 1]
    assert run.checks == AttentionChecks((2,), 3e-6, (), 0, 1e-7), "over both batches the largest"


def test_checks_of_all_batches_tell_how_far_off_maps_were_at_most() -> None:
    assert merge_attention_checks(
        [AttentionChecks((1, 2), 3e-7, (), 1, 0.0), AttentionChecks((1, 2), 5e-7, (), 1, 1e-8)]
    ) == AttentionChecks((1, 2), 5e-7, (), 1, 1e-8)
    assert (
        merge_attention_checks([AttentionChecks((), None, (0,))]) == AttentionChecks((), None, (0,))
        and merge_attention_checks([None, None]) is None
    )


def shown(name: str, **options: Any) -> EvaluationImages:
    """What a run is shown of a small demo."""
    small = {"name": "demo", "test_images": 6, **options}
    recipe = recipe_of(dataset=small)
    data = open_demo(recipe.dataset, None)  # type: ignore[arg-type]
    return EvaluationImages(Path(name), data.splits["test"], data.classes, recipe)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Changed:
    """A split of which something is otherwise."""

    split: Any
    marks: str = "its exact pixels"
    has_masks: bool = True
    other_mask: int | None = None
    renamed: int | None = None

    @property
    def labels(self) -> Any:
        return self.split.labels

    @property
    def names(self) -> list[str]:
        return ["another" if index == self.renamed else name for index, name in enumerate(self.split.names)]

    def __len__(self) -> int:
        return len(self.split)

    def load(self, index: int) -> Sample:
        sample = self.split.load(index)
        return replace(sample, mask=~sample.mask) if index == self.other_mask else sample


class TestTheSameImages:
    def test_options_that_change_no_test_image_are_accepted(self) -> None:
        check_same_images(shown("one"), shown("other", train_images=7), Reporter())

    def test_images_of_one_name_and_other_pixels_are_refused_by_the_first_of_them(self) -> None:
        with pytest.raises(ToastError) as found:
            check_same_images(shown("one"), shown("other", world_seed=1), Reporter())
        assert found.value.code == "data.different-images"
        assert "fine/test/000000" in found.value.why and "other" in found.value.what
        smaller = shown("other", side=32)
        with pytest.raises(ToastError) as refused:
            check_same_images(shown("one"), smaller, Reporter())
        assert refused.value.code == "data.different-images"
        assert "fine/test/000000" in refused.value.why

    def test_other_names_and_numbers_of_images_are_refused(self) -> None:
        with pytest.raises(ToastError, match=r"has 5.*one has 6"):
            check_same_images(shown("one"), shown("other", test_images=5), Reporter())
        one, other = shown("one"), shown("other")
        renamed = replace(other, split=Changed(other.split, renamed=3))
        with pytest.raises(ToastError, match=r"another.*one has fine/test/000003"):
            check_same_images(one, renamed, Reporter())

    def test_other_marks_of_the_object_are_refused(self) -> None:
        one, other = shown("one"), shown("other", train_images=7)
        boxed = replace(other, split=Changed(other.split, marks="its box"))
        with pytest.raises(ToastError) as found:
            check_same_images(one, boxed, Reporter())
        assert found.value.code == "data.different-masks"
        assert "its exact pixels in one, its box in other" in found.value.why
        with pytest.raises(ToastError, match="its exact pixels in one, nothing in other"):
            check_same_images(one, replace(other, split=Changed(other.split, has_masks=False)), Reporter())
        with pytest.raises(ToastError, match=r"fine/test/000002\."):
            check_same_images(one, replace(other, split=Changed(other.split, other_mask=2)), Reporter())
