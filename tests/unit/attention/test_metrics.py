"""Every measure is what its name says, found by another way of computing it."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from toast_cli.attention.deletion_insertion import DeletionInsertionCurves, count_forward_passes, rank_cells
from toast_cli.attention.maps import AttentionOutput
from toast_cli.attention.metrics import (
    compute_cell_shares,
    entropy,
    pointing_game_chance,
    pointing_game_hits,
    share_inside,
    total_variation_distance,
)
from toast_cli.attention.roc_auc import roc_auc
from toast_cli.attention.table import AttentionMetricsTable, AttentionShare
from toast_cli.utils.statistics import bootstrap_mean

torch.manual_seed(0)
MAPS = torch.rand(3, 4, 6).softmax(-1)
MASK = torch.rand(3, 32, 48) > 0.7


def pixels(map: Tensor) -> Tensor:
    """Each cell as the pixels it stands for."""
    return map.repeat_interleave(8, 0).repeat_interleave(8, 1)


def look_of(
    first: Tensor, last: Tensor | None = None, similarity: Tensor | None = None, classes: int = 2
) -> AttentionOutput:
    return AttentionOutput(torch.zeros(len(first), classes), None, first, last, similarity)  # type: ignore[arg-type]


def test_a_share_is_what_its_pixels_add_up_to() -> None:
    found = share_inside(MAPS, MASK)
    for map, mask, share in zip(MAPS, MASK, found, strict=True):
        fine = pixels(map)
        assert share.item() == pytest.approx(float(fine[mask].sum() / fine.sum()), abs=1e-6)


def test_auc_is_that_of_the_pixels_ties_included() -> None:
    coarse = (MAPS * 40).round()
    for map, mask, value in zip(coarse, MASK, roc_auc(coarse, MASK), strict=True):
        assert value.item() == pytest.approx(float(binary_auroc(pixels(map) / 40, mask.int())), abs=1e-5)


def test_the_pointing_game_asks_for_the_middle_of_the_highest_cell() -> None:
    map = torch.zeros(2, 4, 4)
    map[:, 1, 2] = 1.0
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 12, 20] = True
    mask[1] = True
    mask[1, 12, 20] = False
    assert pointing_game_hits(map, mask).tolist() == [1.0, 0.0]


def test_entropy_is_one_when_even_and_none_in_one_cell() -> None:
    one = torch.zeros(1, 4, 4)
    one[0, 2, 2] = 1.0
    half = torch.zeros(1, 4, 4)
    half[0, 0, :2] = 0.5
    found = entropy(torch.cat([torch.full((1, 4, 4), 0.3), one, half]))
    assert found.tolist() == pytest.approx([1.0, 0.0, math.log(2) / math.log(16)], abs=1e-6)


def test_the_shift_is_what_would_have_to_be_carried() -> None:
    first, last = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    first[0, 0] = torch.tensor([0.6, 0.4])
    last[0, 0, 0], last[0, 1, 1] = 0.5, 0.5
    assert total_variation_distance(first, last).item() == pytest.approx(0.5)


def test_a_map_that_is_zero_everywhere_has_no_numbers() -> None:
    maps = torch.stack([torch.zeros(4, 6), torch.rand(4, 6)])
    for measure in (share_inside, pointing_game_hits, roc_auc):
        assert measure(maps, MASK[:2]).isnan().tolist() == [True, False]
    assert entropy(maps).isnan().tolist() == [True, False]


def test_chance_in_the_pointing_game_is_that_of_a_cell_drawn_at_random() -> None:
    won = torch.zeros(3)
    for cell in range(24):
        map = torch.zeros(3, 4, 6)
        map.view(3, 24)[:, cell] = 1
        won += pointing_game_hits(map, MASK)
    assert torch.allclose(pointing_game_chance(MASK, 4, 6), won / 24)


@pytest.mark.parametrize("cells", [2, 3])
def test_cells_of_a_grid_share_out_the_map_even_where_they_cut_patches(cells: int) -> None:
    map = torch.rand(2, 7, 8)
    found = compute_cell_shares(map, cells)
    fine = map.repeat_interleave(6, 1).repeat_interleave(6, 2)
    by_hand = [fine[:, y * 42 // cells : (y + 1) * 42 // cells, x * 48 // cells : (x + 1) * 48 // cells].sum((1, 2))
               for y in range(cells) for x in range(cells)]  # fmt: skip
    assert torch.allclose(found, torch.stack(by_hand, 1) / fine.sum((1, 2))[:, None], atol=1e-6)


class TestBootstrap:
    def test_the_interval_is_about_two_standard_errors(self) -> None:
        values = np.random.default_rng(1).normal(3.0, 2.0, 400)
        found = bootstrap_mean(values)
        assert found is not None and found.images == 400
        error = values.std() / 20
        assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
        assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
        assert bootstrap_mean(values) == found, "the same each time"

    def test_what_is_no_number_is_left_out(self) -> None:
        found = bootstrap_mean([1.0, math.nan, 3.0])
        assert found is not None and (found.mean, found.images) == (2.0, 2)
        assert bootstrap_mean([math.nan]) is None

    def test_pairing_sees_a_difference_that_two_intervals_hide(self) -> None:
        rng = np.random.default_rng(0)
        hard = rng.normal(0, 10, 200)
        one, other = hard + rng.normal(0, 0.1, 200), hard + 0.5 + rng.normal(0, 0.1, 200)
        first, second, paired = bootstrap_mean(one), bootstrap_mean(other), bootstrap_mean(other - one)
        assert first is not None and second is not None and paired is not None
        assert first.high > second.low and paired.low > 0.4

    def test_several_that_hold_together_are_wider(self) -> None:
        values = np.random.default_rng(1).normal(0.0, 1.0, 400)
        alone, one_of_six = bootstrap_mean(values), bootstrap_mean(values, intervals=6)
        assert alone is not None and one_of_six is not None
        # 1.96 standard errors alone, 2.64 of one in six.
        widths = (one_of_six.high - one_of_six.low) / (alone.high - alone.low)
        assert widths == pytest.approx(2.64 / 1.96, rel=0.06)


class TestNumbers:
    def test_chance_stands_beside_every_share_and_what_cannot_be_measured_is_counted(self) -> None:
        numbers, share = AttentionMetricsTable(2, {"auc": roc_auc}), AttentionShare()
        similarity = torch.stack([torch.zeros(4, 6), torch.rand(4, 6), torch.rand(4, 6)])
        look = look_of(MAPS, MAPS, similarity)
        numbers.add(look, {"label": torch.zeros(3).long(), "index": torch.arange(3), "mask": MASK})
        found = numbers.result()
        area = pytest.approx(float(MASK.float().mean()), abs=1e-6)
        assert found["even"]["share_inside"]["mean"] == area
        assert (found["even"]["auc"]["mean"], found["even"]["grid_hit"]["mean"]) == (0.5, 0.25)
        assert numbers.count_unmeasurable() == {"similarity": 1}
        measured = share_inside(similarity[1:], MASK[1:]).mean()
        for measure in ("share_inside", "pointing_hit", "auc", "entropy", "grid_hit"):
            assert found["similarity"][measure]["images"] == 2
        share.add(look, MASK)
        closing = share.result()
        for mean in (found["similarity"]["share_inside"]["mean"], closing["similarity"]):
            assert mean == pytest.approx(float(measured), abs=1e-6), "and does not drag the mean down"
        assert (closing["similarity_not_measurable"], closing["object_area"]) == (1, area)

    def test_each_map_is_measured_under_its_own_name_and_lost_objects_count_nowhere(self) -> None:
        mask = torch.zeros(2, 4, 4, dtype=torch.bool)
        mask[0, :2, :2] = True
        corner, elsewhere = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
        corner[:, 0, 0] = elsewhere[:, 1, 1] = 1.0
        numbers = AttentionMetricsTable(2, {"auc": roc_auc})
        batch = {"label": torch.tensor([0, 1]), "index": torch.tensor([0, 1]), "mask": mask}
        numbers.add(look_of(elsewhere, corner, torch.full((2, 2, 2), 0.5)), batch)
        found = numbers.result()
        assert [found[map]["share_inside"]["mean"] for map in ("pass_one", "similarity", "pass_two")] == [0, 0.25, 1]
        assert (found["pass_one"]["grid_hit"]["mean"], found["pass_two"]["grid_hit"]["mean"]) == (0, 1)
        assert found["pass_two"]["auc"]["mean"] == 1 and found["pass_one"]["auc"]["mean"] == pytest.approx(1 / 3)
        assert found["passes"]["shift"]["mean"] == 1 and found["passes"]["share_gained"]["mean"] == 1
        assert found["pass_one"]["share_inside"]["images"] == 1 and found["pass_one"]["entropy"]["images"] == 2

    def test_chance_of_a_coarser_similarity_is_that_of_its_own_cells(self) -> None:
        """In a grid of two by two every middle may be on something: what is chance there is none in finer cells."""
        coarse = torch.rand(3, 2, 2)
        batch = {"label": torch.zeros(3).long(), "index": torch.arange(3), "mask": MASK}
        numbers, alike = AttentionMetricsTable(), AttentionMetricsTable()
        numbers.add(look_of(MAPS, MAPS, coarse), batch)
        alike.add(look_of(MAPS, MAPS, MAPS), batch)
        found = numbers.result()
        for map, cells in (("even", (4, 6)), ("even_similarity", (2, 2))):
            chance = pointing_game_chance(MASK, *cells).mean().item()
            assert found[map]["pointing_hit"]["mean"] == pytest.approx(chance, abs=1e-6)
        assert found["even"]["pointing_hit"] != found["even_similarity"]["pointing_hit"]
        assert "even_similarity" not in alike.result()

    def test_without_masks_there_is_what_needs_none(self) -> None:
        numbers = AttentionMetricsTable()
        numbers.add(look_of(MAPS, MAPS), {"label": torch.zeros(3).long(), "index": torch.arange(3)})
        assert {map: set(found) for map, found in numbers.result().items()} == {
            "pass_one": {"entropy"}, "pass_two": {"entropy"}, "passes": {"shift"},
        }  # fmt: skip

    def test_a_line_per_class_holds_its_means(self) -> None:
        numbers = AttentionMetricsTable()
        batch = {"label": torch.tensor([1, 0, 1]), "index": torch.arange(3), "mask": MASK}
        numbers.add(look_of(MAPS), batch)
        lines = list(csv.DictReader(io.StringIO(numbers.format_per_class(("a", "b", "never")))))
        assert [(line["class"], line["images"]) for line in lines] == [("a", "1"), ("b", "2")]
        shares = share_inside(MAPS, MASK)
        assert float(lines[1]["pass_one/share_inside"]) == pytest.approx(float(shares[[0, 2]].mean()), abs=1e-5)
        assert [float(line["accuracy"]) for line in lines] == [1.0, 0.0]


class TestCurves:
    def test_a_map_that_marks_what_counts_falls_at_once_and_rises_at_once(self) -> None:
        image = torch.randn(2, 3, 16, 16)
        image[:, :, :8, :8] = 3.0  # the class is the brightness of this corner

        def predict(images: Tensor) -> Tensor:
            bright = images[:, :, :8, :8].mean((1, 2, 3))
            return torch.stack([4 * bright - 6, torch.zeros(len(images))], dim=1)

        right, wrong = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
        right[:, :2, :2], wrong[:, 2:, 2:] = 0.25, 0.25
        curves = DeletionInsertionCurves(predict, steps=4)
        look = look_of(wrong, right)
        look.logits = predict(image)
        curves.add(look, image)
        falls, rises = curves.get_curves("pass_two", "deletion")[0], curves.get_curves("pass_two", "insertion")[0]
        assert falls[0] > 0.99 and (falls[1:] < 0.01).all()
        assert (rises[1:] > 0.99).all() and rises[0] < rises[1]
        assert (curves.get_curves("pass_one", "deletion")[0, :2] > 0.99).all()
        area = curves.result()
        assert (
            area["pass_two"]["deletion"]["mean"]
            < area["random"]["deletion"]["mean"]
            < area["pass_one"]["deletion"]["mean"]
        )

    def test_steps_that_all_orders_share_are_computed_once_and_a_zero_map_orders_nothing(self) -> None:
        asked: list[Tensor] = []

        def predict(images: Tensor) -> Tensor:
            asked.append(images)
            return images.flatten(1)[:, :2]

        image = torch.randn(2, 3, 16, 16)
        curves = DeletionInsertionCurves(predict, steps=4)
        curves.add(look_of(torch.rand(2, 4, 4), torch.zeros(2, 4, 4)), image)
        assert len(asked) == 3 + 3 * 2 * 3, "the image, the mean colour, the blur; then three orders, twice, in between"
        assert sum(torch.equal(given, image) for given in asked) == 1
        for kind in ("deletion", "insertion"):
            assert curves.get_curves("pass_two", kind).isnan().all()
            assert torch.equal(curves.get_curves("pass_one", kind)[:, 0], curves.get_curves("random", kind)[:, 0])
        assert "pass_two" not in curves.result() and "pass_one" in curves.result()

    def test_a_mean_curve_has_an_interval_at_every_step_and_areas_are_compared_image_by_image(self) -> None:
        torch.manual_seed(0)
        curves = DeletionInsertionCurves(lambda images: images.flatten(1)[:, :2], steps=4)
        curves.add(look_of(torch.rand(6, 4, 4), torch.rand(6, 4, 4)), torch.randn(6, 3, 16, 16))
        whole = curves.get_curves("pass_two", "insertion")
        means = curves.compute_mean_curves()["pass_two"]["insertion"]
        assert [mean.mean for mean in means] == pytest.approx(whole.mean(0).tolist(), abs=1e-6)
        assert all(mean.low < mean.mean < mean.high and mean.images == 6 for mean in means[:-1])
        assert curves.compute_pixel_shares() == {
            name: [0, 0.25, 0.5, 0.75, 1] for name in ("pass_one", "pass_two", "random")
        }
        areas = curves.compute_areas("pass_two", "insertion")
        assert areas.tolist() == pytest.approx([float((c[1:] + c[:-1]).sum()) / 8 for c in whole], abs=1e-6)
        difference = areas - curves.compute_areas("pass_one", "insertion")
        assert curves.compute_area_gain()["insertion"]["mean"] == pytest.approx(float(difference.mean()), abs=1e-6)
        same = torch.rand(6, 4, 4)
        curves = DeletionInsertionCurves(lambda images: images.flatten(1)[:, :2], steps=4)
        curves.add(look_of(same, same.clone()), torch.randn(6, 3, 16, 16))
        for gained in curves.compute_area_gain().values():
            assert (gained["mean"], gained["low"], gained["high"]) == (0, 0, 0), "paired, so nothing is left to vary"

    def test_coarse_maps_take_whole_cells_and_areas_are_over_what_was_taken(self) -> None:
        """The answer is how much of the top left cell is there, of four; ten steps take 1, 1, 2, 2, 2, 3, 3, 4, 4."""

        def predict(images: Tensor) -> Tensor:
            there = images[:, :, :8, :8].mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
            return torch.stack([(1 - there).log(), there.log()], dim=1)

        asked: list[Tensor] = []
        curves = DeletionInsertionCurves(lambda images: (asked.append(images), predict(images))[1], steps=10)
        image = torch.zeros(1, 3, 16, 16)
        image[:, :, :8, :8] = 1.0
        second = torch.tensor([[[0.3, 0.4], [0.2, 0.1]]])  # the cell that counts is the second to go
        look = look_of(second)
        look.logits = predict(image)
        curves.add(look, image)
        taken = [0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
        assert curves.compute_pixel_shares() == {"pass_one": taken, "random": taken}
        falls = curves.get_curves("pass_one", "deletion")[0].tolist()
        assert falls == pytest.approx([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0], abs=1e-5)
        # All until a quarter is gone, then straight down to nothing at a half.
        assert curves.compute_areas("pass_one", "deletion").item() == pytest.approx(0.25 + 0.125, abs=1e-5)
        assert len(asked) == 3 + 2 * 2 * 3, (
            "nothing is asked twice: three ends, three steps of two curves in two orders"
        )

    def test_deletion_ends_in_grey_and_insertion_begins_in_a_blur(self) -> None:
        """Of an image of one colour a blur takes nothing, while mean grey takes all: the answer is the brightness."""

        def predict(images: Tensor) -> Tensor:
            bright = images.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
            return torch.stack([(1 - bright).log(), bright.log()], dim=1)

        image = torch.ones(1, 3, 16, 16)
        curves = DeletionInsertionCurves(predict, steps=4)
        look = look_of(torch.rand(1, 4, 4))
        look.logits = predict(image)
        curves.add(look, image)
        assert curves.get_curves("pass_one", "insertion")[0].tolist() == pytest.approx([1] * 5, abs=1e-5)
        assert curves.get_curves("pass_one", "deletion")[0].tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-5)

    def test_a_coarser_similarity_has_a_random_order_of_its_own_cells(self) -> None:
        asked: list[Tensor] = []
        curves = DeletionInsertionCurves(lambda images: (asked.append(images), images.flatten(1)[:, :2])[1])
        look = look_of(torch.rand(2, 4, 4), torch.rand(2, 4, 4), torch.rand(2, 2, 2))
        curves.add(look, torch.randn(2, 3, 16, 16))
        shares = curves.compute_pixel_shares()
        assert shares["random_similarity"] == shares["similarity"] != shares["random"] == shares["pass_one"]
        fine = DeletionInsertionCurves(lambda images: (asked.append(images), images.flatten(1)[:, :2])[1])
        asked.clear()
        look = look_of(torch.rand(2, 8, 8), torch.rand(2, 8, 8), torch.rand(2, 16, 16))
        fine.add(look, torch.randn(2, 3, 16, 16))
        assert len(asked) == count_forward_passes(5), "as often as is said beforehand"
        alike = DeletionInsertionCurves(lambda images: images.flatten(1)[:, :2])
        alike.add(look_of(MAPS, MAPS, MAPS), torch.randn(3, 3, 16, 24))
        assert set(alike.curves) == {"pass_one", "similarity", "pass_two", "random"}

    def test_with_a_single_pass_there_is_nothing_gained(self) -> None:
        curves = DeletionInsertionCurves(lambda images: images.flatten(1)[:, :2], steps=2)
        curves.add(look_of(torch.rand(2, 4, 4)), torch.randn(2, 3, 16, 16))
        assert curves.compute_area_gain() == {}

    def test_ranks_count_from_the_highest(self) -> None:
        assert rank_cells(torch.tensor([[[0.1, 0.4], [0.3, 0.2]]])).tolist() == [[[3, 0], [1, 2]]]
