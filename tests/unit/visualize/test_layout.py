"""What stands above panels: labels by their names, what each pass says, and whether that is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.scenes import demo_model, viewer_of
from toast_cli.cli.commands.visualize_images import _format_view
from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow
from toast_cli.visualize.figure_panels import build_comparison_rows, build_passes_row
from toast_cli.visualize.save_figures import describe_model, describe_view
from toast_cli.visualize.styles.full import format_title_lines
from toast_cli.visualize.view import ImageView, TopPrediction

PLUS = Sample(Image.new("RGB", (60, 60), "teal"), 1, "an image")
"""An image whose label is the second class of whose data it is of."""


def view_of(classes: tuple[str, ...], first: str, last: str | None = None, size: int = 2) -> ImageView:
    """One that says these classes, of an even map of `size` by `size` cells."""
    maps = {"pass_one": torch.full((size, size), 1 / size**2)}
    if last is not None:
        maps |= {"pass_two": maps["pass_one"], "difference": torch.zeros(size, size)}
    viewer = replace(viewer_of(demo_model("linear"), f"knows {len(classes)}"), classes=classes)
    said = None if last is None else TopPrediction(last, 0.7)
    return ImageView(viewer, CropWindow(0, 0, 60, 60), "attention", maps, TopPrediction(first, 0.4), said)


def test_a_verdict_is_right_where_it_is_the_label_and_wrong_where_it_is_not() -> None:
    panels = build_passes_row(PLUS, view_of(("ringed", "plus"), "ringed", "plus")).panels
    assert [panel.heading for panel in panels[:3]] == [
        "image\nplus", "where it looks without TOAST\nringed 40% ✗", "where it looks with TOAST\nplus 70% ✓",
    ]  # fmt: skip


class TestRunsOfDifferentClasses:
    BEETLES = view_of(("ringed", "plus", "barred"), "plus")
    BIRDS = view_of(("auklet",), "auklet")

    def test_labels_are_compared_by_name_and_the_first_run_names_them(self) -> None:
        shuffled = view_of(("plus", "barred", "ringed"), "plus")
        (row,) = build_comparison_rows([PLUS], [[self.BEETLES, shuffled]])
        assert [panel.heading.split("\n")[1] for panel in row.panels] == ["plus", "plus 40% ✓", "plus 40% ✓"]

    def test_who_does_not_know_the_label_is_neither_right_nor_wrong(self) -> None:
        (row,) = build_comparison_rows([PLUS], [[self.BEETLES, self.BIRDS]])
        assert [panel.heading.split("\n")[1] for panel in row.panels] == ["plus", "plus 40% ✓", "auklet 40%"]

    def test_a_label_beyond_another_runs_classes_is_no_error(self) -> None:
        three = replace(PLUS, label=2)
        (row,) = build_comparison_rows([three], [[self.BEETLES, self.BIRDS]])
        assert [panel.heading.split("\n")[1] for panel in row.panels] == ["barred", "plus 40% ✗", "auklet 40%"]


def test_maps_of_different_grids_have_one_scale_on_which_even_maps_are_alike() -> None:
    (row,) = build_comparison_rows([PLUS], [[view_of(("ringed", "plus"), "plus", size=size) for size in (8, 14)]])
    coarse, fine = row.panels[1:]
    assert coarse.scale == fine.scale and coarse.scale.label == "attention, times an even map"  # type: ignore[union-attr]
    assert coarse.values == pytest.approx(np.ones((8, 8))) and fine.values == pytest.approx(np.ones((14, 14)))


class TestShares:
    """How much lies on the object, by hand: a quarter in pass one, three quarters in pass two."""

    TWO = replace(
        view_of(("ringed", "plus"), "ringed", "plus"), shares={"pass_one": 0.25, "pass_two": 0.75, "even": 0.1}
    )
    ONE = replace(view_of(("ringed", "plus"), "ringed"), shares={"pass_one": 0.25, "even": 0.1})

    def test_a_caption_gives_each_pass_its_own(self) -> None:
        said = "attention on the outlined object: without TOAST 25%, with TOAST 75%, an even map 10%"
        assert format_title_lines(PLUS, self.TWO)[1] == said

    def test_a_terminal_gives_each_pass_its_own_share_and_verdict(self) -> None:
        assert _format_view(describe_view(self.TWO, "a run")) == [
            "Prediction: ringed (40.0%) without TOAST; plus (70.0%) with TOAST",
            "Attention on the object: 25.0% without TOAST, 75.0% with TOAST (an even map: 10.0%)",
        ]

    def test_a_single_pass_is_not_called_the_first(self) -> None:
        assert format_title_lines(PLUS, self.ONE)[1] == "attention on the outlined object: 25%, an even map 10%"
        assert build_passes_row(PLUS, self.ONE).panels[1].heading == "where it looks\nringed 40% ✗"
        assert _format_view(describe_view(self.ONE, "a run")) == [
            "Prediction: ringed (40.0%)",
            "Attention on the object: 25.0% (an even map: 10.0%)",
        ]


def test_a_plain_backbones_record_tells_of_no_run() -> None:
    """The recipe of a plain backbone is a stand-in: nothing was trained by its method, on its data."""
    viewer = viewer_of(demo_model("linear"), "vit_demo_3")
    run, plain = describe_model(viewer, "a run"), describe_model(replace(viewer, plain=True), "vit_demo_3")
    assert (run["run"], run["method"], run["dataset"], run["seed"]) == ("vit_demo_3", "toast", "demo", 0)
    assert plain["run"] is None and not {"method", "dataset", "seed"} & set(plain)
    assert plain["backbone"] == run["backbone"] and plain["backbone_fingerprint"] == run["backbone_fingerprint"]
