from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toast_cli import registry
from toast_cli.backbones.base import Backbone
from toast_cli.tasks.token_labels import TokenLabels, TokenLabelsOptions, build_token_labels, split_attributes
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

CLASSES = ("ground", "beetle, ringed", "beetle, plus", "ball, ringed")


def backbone_of(name: str = "vit_demo_3") -> Backbone:
    card = registry.load_backbone_card(name)
    return card.build(card.options(name=name, weights="none"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbone_of()


def task(backbone: Backbone, classes: tuple[str, ...] = CLASSES, **options: Any) -> TokenLabels:
    return build_token_labels(
        TokenLabelsOptions(**{"background": "ground", "attributes": True, **options}), backbone, classes
    )


def pixels(rows: int = 64, columns: int = 64, **boxes: tuple[int, int, int, int]) -> Tensor:
    """`pixels(c1=(top, left, bottom, right))` is ground but for a box of class 1."""
    labels = torch.zeros(rows, columns, dtype=torch.int64)
    for name, (top, left, bottom, right) in boxes.items():
        labels[top:bottom, left:right] = int(name.removeprefix("c"))
    return labels


def batch_of(*labels: Tensor) -> dict[str, Tensor]:
    return {"image": torch.zeros(len(labels), 3, 64, 64), "labels": torch.stack(labels)}


def outputs_for(objective: TokenLabels, image: list[float], patch: list[float] | None = None) -> Tensor:
    """Scores of one image and the same scores for each of its patches."""
    rows = torch.tensor(image).expand(1, 1, -1)
    patches = torch.tensor(patch or [0.0] * len(image)).expand(1, 64, -1)
    return torch.cat([rows, patches], dim=1)


class TestAttributes:
    def test_a_name_with_two_parts_is_two_labels(self) -> None:
        kind, marking = split_attributes(CLASSES, "ground", True)
        assert kind.values == ("ground", "beetle", "ball") and kind.class_values == (0, 1, 1, 2)
        assert marking.values == ("ground", "ringed", "plus") and marking.class_values == (0, 1, 2, 1)

    def test_without_attributes_a_class_is_one_label(self) -> None:
        (only,) = split_attributes(CLASSES, None, False)
        assert only.values == CLASSES and only.class_values == (0, 1, 2, 3)

    def test_a_background_that_is_no_class_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'sky'") as refused:
            split_attributes(CLASSES, "sky", True)
        assert refused.value.code == "task.unknown-background"

    def test_names_with_different_numbers_of_parts_are_refused(self) -> None:
        with pytest.raises(UsageError) as refused:
            split_attributes((*CLASSES, "fish"), "ground", True)
        assert refused.value.code == "task.inconsistent-class-names"


class TestTargets:
    def test_a_patch_has_the_class_of_most_of_its_pixels(self, backbone: Backbone) -> None:
        objective = task(backbone, attributes=False)
        # Rows 0 to 4 of the first patch row are class 1: five of eight. In the second patch row, three of eight.
        labels = pixels(c1=(0, 0, 5, 64), c3=(13, 0, 16, 64))
        (attribute,) = objective.attributes
        found = objective._patch_targets(objective._get_patch_pixels(batch_of(labels)), attribute).unflatten(1, (8, 8))
        assert (found[0, 0] == 1).all() and (found[0, 1:] == 0).all()

    def test_a_patch_without_a_label_is_not_learned(self, backbone: Backbone) -> None:
        objective = task(backbone)
        labels = pixels()
        labels[:8] = IGNORE_INDEX
        found = objective._patch_targets(objective._get_patch_pixels(batch_of(labels)), objective.attributes[0])
        assert (found[0, :8] == IGNORE_INDEX).all() and (found[0, 8:] == 0).all()

    def test_dominant_is_the_class_with_the_most_pixels_background_left_out(self, backbone: Backbone) -> None:
        objective = task(backbone, image="dominant")
        # Two beetles of 200 pixels each against one ball of 300: the ball is the largest thing.
        labels = pixels(c1=(0, 0, 10, 20), c2=(20, 0, 30, 20), c3=(40, 0, 55, 20))
        got = [
            objective._image_targets(objective._get_patch_pixels(batch_of(labels)), one) for one in objective.attributes
        ]
        assert [int(target) for target, _ in got] == [2, 1]  # ball, ringed

    def test_an_image_of_background_alone_has_no_dominant_class(self, backbone: Backbone) -> None:
        objective = task(backbone, image="dominant")
        _, labelled = objective._image_targets(objective._get_patch_pixels(batch_of(pixels())), objective.attributes[0])
        assert not labelled.any()

    def test_presence_names_every_value_in_the_image(self, backbone: Backbone) -> None:
        objective = task(backbone)
        labels = pixels(c2=(0, 0, 10, 10), c3=(20, 20, 30, 30))
        got = [
            objective._image_targets(objective._get_patch_pixels(batch_of(labels)), one)[0]
            for one in objective.attributes
        ]
        assert got[0][0, 1:].tolist() == [1, 1] and got[1][0, 1:].tolist() == [1, 1]

    def test_labels_of_another_size_are_resized_to_whole_patches(self, backbone: Backbone) -> None:
        objective = task(backbone, attributes=False)
        labels = pixels(50, 75, c1=(0, 0, 50, 38))  # the left half
        batch = {**batch_of(labels), "size": torch.tensor([[50, 75]])}
        found = objective._patch_targets(objective._get_patch_pixels(batch), objective.attributes[0]).unflatten(
            1, (8, 8)
        )
        assert (found[0, :, :4] == 1).all() and (found[0, :, 4:] == 0).all()


class TestLoss:
    def test_the_loss_is_the_image_loss_and_the_mean_patch_loss_averaged_over_attributes(
        self, backbone: Backbone
    ) -> None:
        objective = task(backbone, image="dominant", image_weight=3.0, patch_weight=0.5)
        labels = pixels(c1=(0, 0, 64, 64))
        scores = [0.0, 2.0, 0.0, 0.0, 0.0, 1.0]  # ground, beetle, ball; ground, ringed, plus
        loss = objective.loss(outputs_for(objective, scores, scores), batch_of(labels))
        kind = torch.logsumexp(torch.tensor([0.0, 2.0, 0.0]), 0) - 2.0
        marking = torch.logsumexp(torch.tensor([0.0, 0.0, 1.0]), 0) - 0.0
        assert float(loss) == pytest.approx(3.5 * float(kind + marking) / 2, rel=1e-5)

    def test_presence_is_binary_cross_entropy_over_the_values_but_the_background(self, backbone: Backbone) -> None:
        objective = task(backbone, patch_weight=0.0)
        labels = pixels(c1=(0, 0, 10, 10))
        scores = [9.0, 1.0, -1.0, 9.0, 1.0, -1.0]
        loss = objective.loss(outputs_for(objective, scores), batch_of(labels))
        assert float(loss) == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(-1.0))), rel=1e-5)

    def test_a_batch_counts_the_images_with_a_label(self, backbone: Backbone) -> None:
        nothing = torch.full((64, 64), IGNORE_INDEX)
        assert task(backbone).count(batch_of(pixels(), nothing)) == 1


class TestMeter:
    def test_it_counts_answers_and_two_meters_merge_to_the_same(self, backbone: Backbone) -> None:
        objective = task(backbone, image="dominant")
        right = [0.0, 5.0, 0.0, 0.0, 5.0, 0.0]  # beetle, ringed
        half = [0.0, 0.0, 5.0, 0.0, 5.0, 0.0]  # ball, ringed
        batch = batch_of(pixels(c1=(0, 0, 64, 64)))
        one, two = objective.meter(), objective.meter()
        one.add(outputs_for(objective, right, right), batch)
        two.add(outputs_for(objective, half, half), batch)
        one.merge(two)
        found = one.result()
        assert (found["accuracy"], found["patch_accuracy"], found["images"]) == (0.75, 0.75, 2)
        again = objective.meter()
        again.restore(one.state())
        assert again.result() == found

    def test_nothing_labelled_is_an_error(self, backbone: Backbone) -> None:
        with pytest.raises(ToastError) as refused:
            task(backbone).meter().result()
        assert refused.value.code == "task.nothing-to-measure"


@pytest.mark.parametrize("name", ["vit_demo_3", "convnext:test_convnext"])
def test_outputs_have_a_row_for_the_image_and_one_for_every_cell(name: str) -> None:
    backbone = backbone_of(name)
    objective = task(backbone)
    inputs = backbone.example(2)
    readout = backbone.leave(backbone.run(backbone.enter(inputs)))
    rows, columns = backbone.grid(inputs)
    outputs = objective.head(objective.features(backbone, readout, (), inputs))
    assert outputs.shape == (2, 1 + rows * columns, 6)


@pytest.mark.parametrize(("weights", "score"), [({}, 0.6), ({"patch_weight": 0.0}, 0.8), ({"image_weight": 0.0}, 0.4)])
def test_only_what_is_learned_decides_which_epoch_is_kept(
    backbone: Backbone, weights: dict[str, float], score: float
) -> None:
    assert task(backbone, **weights).score({"accuracy": 0.8, "patch_accuracy": 0.4}) == pytest.approx(score)
