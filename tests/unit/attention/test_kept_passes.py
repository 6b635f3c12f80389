"""Kept first passes give the maps of the recorders, and boxes select the tokens that a user points at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.scenes import demo_model, scenes, viewer_of
from toast_cli.attention.feature_energy import build_recorder
from toast_cli.attention.image_box import ImageBox, compute_box_direction, point_at_box, select_box_cells
from toast_cli.attention.kept_passes import PassRecorder
from toast_cli.data.images.transforms import CropWindow
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.view import compute_image_view


@pytest.mark.parametrize(("level", "head"), [(-1, "mean"), (0, 1), (1, "max"), (-1, "rollout")])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_maps_of_a_kept_pass_are_those_of_the_recorder(level: int, head: str | int, strength: float) -> None:
    model = demo_model()
    viewer = viewer_of(model)
    image = viewer.transform(scenes(1)[0].image)[0][None]
    recorder = PassRecorder(model)
    kept = recorder.run_first(image)
    second = recorder.run_second(kept, strength)
    assert model.adapted.steering is not None and model.adapted.steering.strength == 1, "the model is as it was"
    model.adapted.steering.strength = strength
    expected = build_recorder(model, level, head).record(image)  # type: ignore[arg-type]
    number = recorder.resolve_level(level)
    got = kept.recorded.compute_map(number, head), second.recorded.compute_map(number, head)  # type: ignore[arg-type]
    torch.testing.assert_close(got[0], expected.first[0])
    torch.testing.assert_close(got[1], expected.last[0])  # type: ignore[index]
    torch.testing.assert_close(second.similarity, expected.similarity[0])  # type: ignore[index]
    torch.testing.assert_close(second.recorded.logits, expected.logits)
    assert torch.equal(kept.recorded.logits, second.recorded.logits) is (strength == 0)


def test_a_model_with_one_pass_has_one_and_cannot_be_pointed_at_something() -> None:
    model = demo_model("linear")
    image = viewer_of(model).transform(scenes(1)[0].image)[0][None]
    kept = PassRecorder(model).run_first(image)
    torch.testing.assert_close(kept.recorded.logits, model(image))
    assert kept.shared is None
    with pytest.raises(UsageError) as raised, point_at_box(model, image, CropWindow(0, 0, 64, 64), ImageBox(3, 3)):
        pass
    assert raised.value.code == "method.no-feedback-path"


def test_a_box_selects_the_cells_whose_centre_it_holds() -> None:
    window = CropWindow(10, 0, 40, 40)  # cells of 10 pixels: centres at 15, 25, ... and 5, 15, ...
    assert select_box_cells(ImageBox(14, 4, 12, 2), window, (4, 4)).nonzero().tolist() == [[0, 0], [0, 1]]
    assert select_box_cells(ImageBox(49.9, 39.9), window, (4, 4)).nonzero().tolist() == [[3, 3]]
    assert select_box_cells(ImageBox(26, 16, 3, 3), window, (4, 4)).nonzero().tolist() == [[1, 1]]
    for outside in (ImageBox(9.9, 5), ImageBox(50, 5), ImageBox(20, 40), ImageBox(-50, 0, 40, 40)):
        with pytest.raises(UsageError) as raised:
            select_box_cells(outside, window, (4, 4))
        assert raised.value.code == "attention.outside-crop"


def test_pointing_makes_the_chosen_cell_the_most_similar_one_in_kept_passes_and_views_alike() -> None:
    model, sample = demo_model(), scenes(1)[0]
    viewer = viewer_of(model, box=ImageBox(20.0, 37.0))
    image, window = viewer.transform(sample.image)[0][None], viewer.transform.compute_window(sample.image)
    recorder = PassRecorder(model)
    kept = recorder.run_first(image)
    direction, cells = compute_box_direction(model.backbone, image, kept.first, window, ImageBox(20.0, 37.0))  # type: ignore[arg-type]
    pointed = recorder.run_second(kept, 1.0, direction)
    assert float(pointed.similarity[cells]) == pytest.approx(1, abs=1e-5) == float(pointed.similarity.max())
    view = compute_image_view(viewer, sample)
    torch.testing.assert_close(view.maps["similarity"], pointed.similarity)
    torch.testing.assert_close(view.maps["pass_two"], pointed.recorded.compute_map(viewer.recorder.level, "mean"))
    assert "point-20-37" in viewer.file_suffix
    plain = compute_image_view(replace(viewer, box=None), sample)
    assert not torch.allclose(plain.maps["pass_two"], view.maps["pass_two"])
