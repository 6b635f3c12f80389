"""Styles: what they say, that it can be read at 800 pixels, and which one is drawn if none is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.scenes import CLASSES, demo_model, scenes, viewer_of
from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.figure_panels import build_passes_row
from toast_cli.visualize.styles.captions import write_register_note, write_sentence
from toast_cli.visualize.styles.registry import STYLES, choose_style
from toast_cli.visualize.styles.simple import build_simple_row
from toast_cli.visualize.view import ImageView, TopPrediction, compute_image_view

MAP = torch.full((8, 8), 1 / 64)
SAMPLE = Sample(Image.new("RGB", (90, 60), "teal"), 0, "a photograph")


@pytest.fixture(scope="module")
def model() -> Model:
    return demo_model()


def make_view(model: Model, first: TopPrediction | None, last: TopPrediction | None, **how: object) -> ImageView:
    """The view of a scene whose map is even; half of the second pass' map is in the first cell."""
    maps = {"pass_one": MAP}
    if last is not None:
        second = MAP / 2
        second[0, 0] += 0.5
        maps |= {"similarity": MAP, "pass_two": second, "difference": second - MAP}
    viewer = replace(viewer_of(model), classes=CLASSES)
    return replace(ImageView(viewer, CropWindow(15, 0, 60, 60), "attention", maps, first, last), **how)  # type: ignore[arg-type]


def texts_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


class TestSentence:
    def test_a_changed_answer_names_both(self, model: Model) -> None:
        view = make_view(model, TopPrediction("plus", 0.62), TopPrediction("ringed", 0.999))
        assert write_sentence(SAMPLE, view) == (
            "With TOAST the model says “ringed” (more than 99% sure) instead of “plus” (62%), "
            "and 49% of its attention has moved to other places."
        )

    def test_a_known_object_is_what_counts(self, model: Model) -> None:
        shares = {"pass_one": 0.014, "pass_two": 0.44, "even": 0.08}
        view = make_view(model, TopPrediction("ringed", 0.3), TopPrediction("ringed", 0.9), shares=shares)
        assert write_sentence(SAMPLE, view) == (
            "The model says “ringed” and is 90% sure (without TOAST it says the same, 30% sure), "
            "and 44% of its attention is on the outlined object, 1% without TOAST."
        )

    def test_the_same_answer_is_said_once(self, model: Model) -> None:
        view = make_view(model, TopPrediction("plus", 0.9991), TopPrediction("plus", 0.9999))
        view.maps["difference"].zero_()
        assert write_sentence(SAMPLE, view) == (
            "With TOAST or without, the model says “plus” and is more than 99% sure, and it looks at nearly the same "
            "places."
        )

    def test_a_single_pass_and_a_plain_backbone_say_less(self, model: Model) -> None:
        assert write_sentence(SAMPLE, make_view(model, TopPrediction("plus", 0.001), None)) == (
            "The model says “plus” and is less than 1% sure."
        )
        plain = make_view(model, None, None)
        plain = replace(plain, viewer=replace(plain.viewer, plain=True))
        assert "has not been tuned" in write_sentence(SAMPLE, plain)

    def test_a_chosen_class_is_explained_and_not_called_the_answer(self, model: Model) -> None:
        view = make_view(model, TopPrediction("plus", 0.1), TopPrediction("plus", 0.3))
        view = replace(view, viewer=replace(view.viewer, label="plus"))
        assert write_sentence(SAMPLE, view).startswith("“plus” gets 30% from the model; without TOAST it would be 10%")


def test_the_simple_style_can_be_read_at_800_pixels_and_prints_over_nothing(model: Model) -> None:
    registers = torch.zeros(8, 8, dtype=torch.bool)
    registers[0, 0] = True
    view = make_view(model, TopPrediction("plus", 0.6), TopPrediction("ringed", 0.9), registers=registers)
    figure = STYLES["simple"].draw([SAMPLE], [[view]])
    assert figure.get_figwidth() == 8
    texts = texts_of(figure)
    assert min(text.get_fontsize() for text in texts) >= 10, "14 pixels where the figure is 800 wide"
    figure.set_dpi(100)
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in texts]
    boxes += [axis.get_window_extent() for axis in figure.axes]
    assert all(box.x0 >= 0 and box.x1 <= 800 and box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :]), texts[number].get_text()
    said = " ".join(text.get_text().replace("\n", " ") for text in texts)
    for words in (
        "Where it looks without TOAST",
        "Correct answer: ringed. The model is right ✓",
        "51% of the attention",
    ):
        assert words in said


def test_the_simple_style_shows_what_the_model_sees_and_no_more(model: Model) -> None:
    row, headings = build_simple_row(SAMPLE, make_view(model, None, TopPrediction("ringed", 0.9)))
    assert row.image.size == (60, 60) and headings == [
        "the picture", "where it looks without TOAST", "where it looks with TOAST",
    ]  # fmt: skip
    assert row.panels[1].scale == row.panels[2].scale


def test_registers_are_marked_and_left_out_only_of_what_is_drawn(model: Model) -> None:
    registers = torch.zeros(8, 8, dtype=torch.bool)
    registers[0, 0] = True
    view = make_view(model, TopPrediction("plus", 0.6), TopPrediction("plus", 0.9), registers=registers)
    assert "51%" in write_register_note(view) and write_register_note(replace(view, registers=None)) == ""
    without = replace(view, viewer=replace(view.viewer, ignore_registers=True))
    panels = {panel.heading.split("\n")[0]: panel for panel in build_passes_row(SAMPLE, without).panels}
    map, plain = (panels[f"where it looks {which} TOAST"] for which in ("with", "without"))
    np.testing.assert_array_equal(map.crosses, registers.numpy())
    assert map.values is not None and map.values[0, 0] == 0 and map.values.sum() == pytest.approx(64)
    np.testing.assert_allclose(map.values, plain.values, atol=1e-5)
    np.testing.assert_allclose(panels["what changed"].values, 0, atol=1e-5)
    assert without.maps is view.maps and float(without.maps["pass_two"][0, 0]) > 0.5
    assert "left out" in write_register_note(without) and without.viewer.file_suffix == "-without-registers"


def test_the_default_is_simple_for_one_model_and_paper_for_several(model: Model) -> None:
    viewer = viewer_of(model)
    assert choose_style(None, [viewer]) is STYLES["simple"]
    assert choose_style(None, [viewer, viewer]) is STYLES["paper"]
    assert choose_style(None, [replace(viewer, with_grad_cam=True)]) is STYLES["full"]
    for name, viewers, code in (
        ("ful", [viewer], "cli.invalid-value"),
        ("full", [viewer, viewer], "cli.conflicting-options"),
        ("simple", [replace(viewer, with_grad_cam=True)], "cli.conflicting-options"),
    ):
        with pytest.raises(UsageError) as refused:
            choose_style(name, viewers)
        assert refused.value.code == code


@pytest.mark.parametrize("style", list(STYLES))
def test_every_style_draws_several_images_of_one_model(model: Model, style: str) -> None:
    samples = scenes(2)
    views = [[compute_image_view(viewer_of(model), sample)] for sample in samples]
    figure = STYLES[style].draw(samples, views)
    assert len([axis for axis in figure.axes if axis.images]) >= 6
