"""UperNet sees the levels of the pass that counts; windows, losses and metrics are what they would be by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from toast_cli import registry
from toast_cli.backbones.base import Trace
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.tasks.iou import SegmentationMeter
from toast_cli.tasks.segmentation import Segmentation, SegmentationOptions
from toast_cli.tasks.sliding_window import compute_window_starts, predict_sliding_window
from toast_cli.tasks.upernet import SegmentationHead, extract_feature_maps, select_pyramid_levels
from toast_cli.training.distributed.fsdp import check_shardable
from toast_cli.training.optimization import make_scheduler
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

CLASSES = ("ground", "cat", "dog")


def model_of(method: Any = "toast", backbone: Any = "vit_demo_3", **task: Any) -> Model:
    raw = {
        "backbone": backbone if isinstance(backbone, dict) else {"name": backbone, "weights": "none"},
        "dataset": "demo-segmentation",
        "method": {"name": method, "start": "random"} if method in ("toast", "toast-lite") else method,
        "task": {"width": 16, **task},
    }
    return build_model(build_recipe(raw, {}, origin="a test"), CLASSES).eval()


def images_for(model: Model, count: int = 2) -> Tensor:
    torch.manual_seed(5)
    return model.backbone.example(count)


def as_batch(labels: Any) -> dict[str, Tensor]:
    return {"labels": torch.tensor(labels)}


def scores_for(predicted: Any) -> Tensor:
    """Logits whose largest is the predicted class."""
    return F.one_hot(torch.tensor(predicted), len(CLASSES)).movedim(-1, 1).float() * 5


LABELS = [[[0, 0, 1], [1, 1, IGNORE_INDEX]]]
PREDICTED = [[[0, 1, 1], [1, 0, 2]]]


class TestOverlap:
    def test_iou_and_accuracy_are_what_counting_pixels_by_hand_gives(self) -> None:
        meter = SegmentationMeter(CLASSES)
        meter.add(scores_for(PREDICTED), as_batch(LABELS))
        found = meter.result()
        # ground: 1 pixel right, labelled 2, predicted 2: 1 of 3. cat: 2 right, labelled 3, predicted 3: 2 of 4.
        assert found["iou"] == {"ground": pytest.approx(1 / 3), "cat": pytest.approx(1 / 2), "dog": None}
        assert found["mean_iou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
        assert found["pixel_accuracy"] == pytest.approx(3 / 5)
        assert found["class_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert (found["images"], found["pixels"]) == (1, 5)

    def test_many_pixels_come_to_what_torchmetrics_has_for_them(self) -> None:
        torch.manual_seed(3)
        logits, labels = torch.randn(3, 3, 20, 30), torch.randint(0, 3, (3, 20, 30))
        labels[torch.rand(3, 20, 30) < 0.3] = IGNORE_INDEX
        logits[..., :15].scatter_add_(1, labels[:, None, :, :15].clamp_min(0), torch.full((3, 1, 20, 15), 2.0))
        meter = SegmentationMeter(CLASSES)
        meter.add(logits, {"labels": labels})
        theirs = MulticlassJaccardIndex(3, average="none", ignore_index=IGNORE_INDEX)(logits.argmax(1), labels)
        assert list(meter.result()["iou"].values()) == pytest.approx(theirs.tolist())

    def test_a_class_that_is_predicted_but_nowhere_labelled_counts_as_zero(self) -> None:
        meter = SegmentationMeter(CLASSES)
        meter.add(scores_for([[[0, 2]]]), as_batch([[[0, 0]]]))
        assert meter.result()["iou"] == {"ground": 0.5, "cat": None, "dog": 0.0}
        assert meter.result()["mean_iou"] == 0.25

    def test_the_loss_is_the_mean_over_labelled_pixels_alone(self) -> None:
        torch.manual_seed(0)
        logits, labels = torch.randn(1, 3, 2, 3), torch.tensor(LABELS)
        meter = SegmentationMeter(CLASSES)
        meter.add(logits, {"labels": labels})
        by_hand = [
            -logits[0, :, row, column].log_softmax(0)[labels[0, row, column]]
            for row in range(2)
            for column in range(3)
            if labels[0, row, column] != IGNORE_INDEX
        ]
        assert meter.result()["loss"] == pytest.approx(float(torch.stack(by_hand).mean()))

    def test_parts_of_a_split_come_to_the_whole_exactly_and_a_kept_count_goes_on(self) -> None:
        torch.manual_seed(0)

        def drawn() -> tuple[Tensor, dict[str, Tensor]]:
            labels = torch.randint(0, 3, (2, 9, 7)).masked_fill(torch.rand(2, 9, 7) < 0.2, IGNORE_INDEX)
            return torch.randn(2, 3, 9, 7), {"labels": labels}

        batches = [drawn() for _ in range(4)]
        whole, first, second, kept = (SegmentationMeter(CLASSES) for _ in range(4))
        for number, (logits, batch) in enumerate(batches):
            whole.add(logits, batch)
            (first if number % 2 else second).add(logits, batch)
        first.merge(second)
        kept.restore(first.state())
        for other in (first, kept):
            assert other.result() == {**whole.result(), "loss": pytest.approx(whole.result()["loss"])}

    def test_scores_of_a_resized_image_are_judged_at_its_own_size_without_its_padding(self) -> None:
        logits = torch.full((1, 3, 4, 6), 9.0)
        logits[0, :, :2, :4] = scores_for([[[1, 1, 2, 2], [1, 1, 2, 2]]])[0]
        labels = torch.full((1, 5, 9), IGNORE_INDEX)
        labels[0, :4, :8] = torch.tensor([1, 1, 1, 1, 2, 2, 2, 2])
        meter = SegmentationMeter(CLASSES)
        sizes = {"extent": torch.tensor([[2, 4]]), "size": torch.tensor([[4, 8]])}
        meter.add(logits, {"labels": labels, **sizes})
        assert meter.result()["pixels"] == 32
        assert meter.result()["mean_iou"] == 1.0

    def test_a_split_without_a_labelled_pixel_is_said_and_not_a_number(self) -> None:
        meter = SegmentationMeter(CLASSES)
        meter.add(scores_for(PREDICTED), as_batch([[[IGNORE_INDEX] * 3] * 2]))
        with pytest.raises(ToastError) as refused:
            meter.result()
        assert refused.value.code == "task.nothing-to-measure"


class TestWindows:
    def test_they_cover_a_side_and_end_where_it_does(self) -> None:
        assert compute_window_starts(10, 4, 3) == [0, 3, 6]
        assert compute_window_starts(11, 4, 3) == [0, 3, 6, 7]
        assert compute_window_starts(4, 4, 3) == [0]
        with pytest.raises(ValueError, match="does not fit"):
            compute_window_starts(3, 4, 3)

    def test_every_pixel_gets_the_mean_of_the_windows_that_cover_it(self) -> None:
        looked: list[int] = []

        def scores(windows: Tensor) -> Tensor:
            looked.append(len(windows))
            return torch.arange(sum(looked[:-1]), sum(looked)).float()[:, None, None, None].expand(-1, 2, 2, 4)

        found = predict_sliding_window(scores, torch.zeros(3, 2, 7), (2, 4), (2, 2), at_once=2)
        # Windows 0, 1 and 2 begin at columns 0, 2 and 3.
        assert looked == [2, 1]
        assert found.shape == (2, 2, 7)
        assert torch.allclose(found[0, 0], torch.tensor([0, 0, 0.5, 1, 1.5, 1.5, 2]))

    def test_what_was_scored_in_half_precision_is_summed_in_single(self) -> None:
        found = predict_sliding_window(
            lambda windows: torch.full((len(windows), 1, 4, 4), 1 / 3).bfloat16(),
            torch.zeros(3, 4, 9),
            (4, 4),
            (1, 1),
            2,
        )
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.full((1, 4, 9), float(torch.tensor(1 / 3).bfloat16())))

    @torch.no_grad()
    def test_one_window_that_covers_all_is_the_whole_image(self) -> None:
        model = model_of()
        image = images_for(model, 1)
        objective = model.objective
        assert isinstance(objective, Segmentation)
        slid = predict_sliding_window(model, image[0], objective.window, objective.window, 1)
        assert torch.allclose(slid, model(image)[0], atol=1e-6)

    @torch.no_grad()
    def test_larger_images_are_slid_over_each_within_its_own_extent(self) -> None:
        model = model_of("linear")
        torch.manual_seed(0)
        images = torch.randn(2, 3, 80, 96)
        extents = torch.tensor([[64, 96], [80, 64]])
        found = model.objective.predict(model, {"image": images, "extent": extents})
        assert found.shape == (2, 3, 80, 96)
        alone = model.objective.predict(model, {"image": images[1:, :, :80, :64], "extent": extents[1:]})
        assert torch.allclose(found[1, :, :80, :64], alone[0], atol=1e-5)
        assert not found[0, :, 64:].any() and not found[1, :, :, 64:].any()
        top = model(images[1:, :, :64, :64])
        assert torch.allclose(found[1, :, :16, :64], top[0, :, :16], atol=1e-5), "only the first window is there"

    def test_windows_go_on_by_the_stride_that_is_asked_for(self) -> None:
        looked: list[int] = []

        def scores(windows: Tensor) -> Tensor:
            looked.append(len(windows))
            return torch.zeros(len(windows), 3, 8, 8)

        batch = {"image": torch.zeros(1, 3, 8, 24), "extent": torch.tensor([[8, 24]])}
        for stride, windows in ((1.0, 3), (0.5, 5), (0.25, 9)):
            looked.clear()
            Segmentation(torch.nn.Identity(), CLASSES, (8, 8), SegmentationOptions(stride=stride)).predict(
                scores, batch
            )
            assert sum(looked) == windows


class TestFeatures:
    @pytest.mark.parametrize(
        ("backbone", "sides"),
        [
            ({"name": "vit_demo_3", "weights": "none"}, [(32, 32), (16, 16), (8, 8), (4, 4)]),
            ({"name": "vit_demo_3", "weights": "none", "image_size": [72, 40]}, [(36, 20), (18, 10), (9, 5), (5, 3)]),
            ({"name": "convnext:test_convnext", "weights": "none"}, None),
        ],
    )
    @torch.no_grad()
    def test_tokens_become_four_scales_and_the_stages_of_a_convnet_stay_as_they_are(
        self, backbone: Any, sides: list[tuple[int, int]] | None
    ) -> None:
        model = model_of("linear", backbone)
        images = images_for(model)
        head = model.head
        assert isinstance(head, SegmentationHead)
        trace = Trace(levels=True)
        readout = model.adapted(images, trace).last
        features = extract_feature_maps(model.backbone, readout, trace.outputs, images)
        scales = [layer(map) for layer, map in zip(head.pyramid, features.maps, strict=True)]
        if sides is None:
            assert all(scaled is stage for scaled, stage in zip(scales[:3], trace.outputs[:3], strict=True))
            sides = [tuple(stage.shape[-2:]) for stage in trace.outputs]
        assert [tuple(map.shape[-2:]) for map in scales] == sides
        assert model(images).shape == (2, 3, *images.shape[-2:])

    @torch.no_grad()
    def test_the_auxiliary_head_reads_the_third_map_alone(self) -> None:
        model = model_of("linear")
        images, head = images_for(model, 1), model.head
        assert isinstance(head, SegmentationHead)
        head.training = True  # itself alone: nothing in it is dropped by chance
        trace = Trace(levels=True)
        features = extract_feature_maps(model.backbone, model.adapted(images, trace).last, trace.outputs, images)
        before = head(features)[:, len(CLASSES) :]
        moved = []
        for place in range(4):
            maps = [map + (number == place) * torch.randn_like(map) for number, map in enumerate(features.maps)]
            moved.append(not torch.allclose(head(replace(features, maps=maps))[:, len(CLASSES) :], before, atol=1e-3))
        assert moved == [False, False, True, False]

    def test_levels_are_evenly_spaced_and_end_at_the_last(self) -> None:
        card = registry.load_backbone_card("vit:vit_base_patch16_224")
        backbone = model_of("linear").backbone
        backbone.levels = [backbone.levels[0]] * 12
        assert select_pyramid_levels(backbone) == [2, 5, 8, 11] and card.family == "vit"

    @torch.no_grad()
    def test_a_token_lies_where_its_patch_does_and_the_class_token_nowhere(self) -> None:
        backbone = model_of("linear").backbone
        images = torch.zeros(1, 3, 64, 64)
        tokens = torch.zeros(1, 1 + 64, 128)
        tokens[0, 0] = 7.0
        tokens[0, 1 + 8 * 2 + 5] = 1.0
        readout = backbone.leave(backbone.enter(images))
        maps = extract_feature_maps(backbone, readout, [tokens] * 3, images).maps
        assert maps[0].shape == (1, 128, 8, 8)
        assert maps[0][0, 0].nonzero().tolist() == [[2, 5]] and float(maps[0].max()) == 1.0

    @pytest.mark.parametrize("feedback", ["full", "early", "late"])
    @pytest.mark.parametrize("backbone", ["vit_demo_3", "convnext:test_convnext"])
    @torch.no_grad()
    def test_the_head_reads_the_second_pass_with_every_feedback(self, feedback: str, backbone: str) -> None:
        model = model_of({"name": "toast", "start": "random", "feedback": feedback}, backbone)
        steering = model.adapted.steering
        for weight in steering.feedback.parameters():  # type: ignore[union-attr]
            torch.nn.init.normal_(weight, std=0.2)
        images = images_for(model)
        first, last = Trace(levels=True), Trace(levels=True)
        passes = model.adapted(images, first, last)

        read: list[Any] = []
        model.head.register_forward_pre_hook(lambda module, given: read.append(given[0]))
        model(images)
        expected = extract_feature_maps(model.backbone, passes.last, last.outputs, images).maps
        plain = extract_feature_maps(model.backbone, passes.first, first.outputs, images).maps
        reached = [level >= steering.levels.start for level in select_pyramid_levels(model.backbone)]  # type: ignore[union-attr]
        for map, wanted in zip(read[0].maps, expected, strict=True):
            assert torch.equal(map, wanted)
        # The last map of an early first pass is where it stopped.
        for map, other, moved in list(zip(read[0].maps, plain, reached, strict=True))[:-1]:
            assert torch.equal(map, other) is not moved, "what no signal has reached is as in pass one"

    @pytest.mark.parametrize("method", ["toast", "toast-lite", "full", "lora", "vpt", "linear"])
    def test_every_method_trains_with_one_image_and_with_what_it_declares(self, method: str) -> None:
        model = model_of(method).train()
        batch = {"image": images_for(model, 1), "labels": torch.randint(0, 3, (1, 64, 64))}
        outputs = model(model.objective.inputs(batch))
        assert outputs.shape == (1, 2 * 3, 64, 64), "the auxiliary head's scores lie behind"
        model.objective.loss(outputs, batch).backward()
        without = [name for name, weight in model.get_trained_parameters().items() if weight.grad is None]
        assert without == []
        assert any(name.startswith("head.upernet") for name in model.get_trained_parameters())

    def test_samples_of_a_batch_do_not_see_each_other(self) -> None:
        model = model_of("linear").train()
        images = images_for(model, 3)
        assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)

    def test_the_same_gradients_come_with_levels_run_again(self) -> None:
        plain, again = model_of("toast").train(), model_of("toast").train()
        again.backbone.checkpointing = True
        batch = {"image": images_for(plain), "labels": torch.randint(0, 3, (2, 64, 64))}
        for model in (plain, again):
            model.objective.loss(model(batch["image"]), batch).backward()
        for (name, weight), other in zip(
            plain.get_trained_parameters().items(), again.get_trained_parameters().values(), strict=True
        ):
            torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-3, msg=name)


def test_the_loss_weighs_the_auxiliary_head_and_leaves_unlabelled_pixels_out() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(2, 6, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, :2] = IGNORE_INDEX
    objective = Segmentation(torch.nn.Identity(), CLASSES, (4, 4), SegmentationOptions(auxiliary=0.25))
    own, other = outputs[:, :3].log_softmax(1), outputs[:, 3:].log_softmax(1)
    places = [(b, y, x) for b in range(2) for y in range(4) for x in range(4) if labels[b, y, x] != IGNORE_INDEX]
    by_hand = -sum(own[b, labels[b, y, x], y, x] + 0.25 * other[b, labels[b, y, x], y, x] for b, y, x in places)
    batch = {"labels": labels}
    assert torch.allclose(objective.loss(outputs, batch), torch.as_tensor(by_hand), rtol=1e-5)
    assert objective.count(batch) == len(places) == 24


def test_the_epoch_is_chosen_by_mean_iou_and_not_by_pixels() -> None:
    objective = Segmentation(torch.nn.Identity(), CLASSES, (4, 4), SegmentationOptions())
    assert objective.score({"mean_iou": 0.25, "pixel_accuracy": 0.9, "class_accuracy": 0.5}) == 0.25


def test_a_model_that_windows_slide_over_is_not_divided_among_processes_which_would_wait_for_ever() -> None:
    with pytest.raises(UsageError) as refused:
        check_shardable(model_of("linear"))
    assert refused.value.code == "training.uneven-forward-calls"
    check_shardable(model_of("linear", evaluation="whole"))


@pytest.mark.parametrize("scale", [[0, 1], [2, 0.5], [-1, 1]])
def test_a_scale_that_is_none_is_refused(scale: list[float]) -> None:
    raw = {"backbone": "vit_demo_3", "dataset": "demo-segmentation", "method": "linear", "task": {"scale": scale}}
    with pytest.raises(UsageError, match=r"task\.scale") as refused:
        build_recipe(raw, {}, origin="a test")
    assert refused.value.code == "recipe.invalid-value"


def test_the_poly_schedule_is_the_remaining_share_to_its_power() -> None:
    raw = {
        "backbone": "vit_demo_3", "dataset": "demo-segmentation", "method": "linear",
        "training": {"schedule": "poly", "poly_power": 0.9, "epochs": 10, "lr": 0.5, "warmup_epochs": 1, "min_lr": 0.1},
    }  # fmt: skip
    training = build_recipe(raw, {}, origin="a test").training
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.lr)
    schedule = make_scheduler(optimizer, training, steps_per_epoch=4)
    rates = []
    for step in range(40):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.1) and rates[1] < rates[2] < rates[3] < 0.5
    for step in (4, 17, 39):
        assert rates[step] == pytest.approx(0.1 + 0.4 * (1 - step / 40) ** 0.9)
