"""What the report of a comparison says of each image, of its colours, and of what maps were held against."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.scenes import demo_model, scenes, viewer_of
from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.data.images.transforms import CropWindow
from toast_cli.model.model import Model
from toast_cli.visualize.report import build_report_images, format_attention_checks
from toast_cli.visualize.view import AttentionViewer, ImageView, TopPrediction


@pytest.fixture(scope="module")
def model() -> Model:
    return demo_model("linear")


def seen_by(viewer: AttentionViewer, says: str, kind: str = "attention") -> ImageView:
    """A view with two passes: a wrong answer and little on the object in the first, other numbers in the last."""
    maps = {"pass_one": torch.full((8, 8), 1 / 64), "pass_two": torch.full((8, 8), 1 / 64)}
    shares = {"pass_one": 0.11, "similarity": 0.22, "pass_two": 0.77, "even": 0.05}
    return ImageView(
        viewer,
        CropWindow(0, 0, 64, 64),
        kind,
        maps,
        TopPrediction("plus", 0.4),
        TopPrediction(says, 0.8),
        shares=shares,
    )


def test_an_answer_is_right_that_is_the_label_and_the_share_is_the_last_pass_s(model: Model) -> None:
    sample = replace(scenes(1)[0], label=list(viewer_of(model).classes or ()).index("ringed"))
    views = [seen_by(viewer_of(model, "one"), "ringed"), seen_by(viewer_of(model, "other"), "two-spotted")]
    (image,), _ = build_report_images([sample], [views])
    _, one, other = image["panels"]
    assert (one["said"], one["mark"]) == ("ringed 80%, 77% on the object", "right")
    assert (other["said"], other["mark"]) == ("two-spotted 80%, 77% on the object", "wrong")
    assert "which is right" in one["alt"] and "which is wrong" in other["alt"]


def test_a_bar_of_colours_names_the_runs_that_it_is_of(model: Model) -> None:
    first, second = scenes(2)
    viewers = [viewer_of(model, name) for name in ("one", "two", "three")]
    row = [
        seen_by(viewer, "plus", kind)
        for viewer, kind in zip(viewers, ("attention", "energy", "attention"), strict=True)
    ]
    _, bars = build_report_images([first, second], [row, row])
    assert [bar["runs"] for bar in bars] == ["one, three", "two"]
    assert bars[0]["alt"].endswith("of one, three") and "energy" in bars[1]["alt"]


def test_checks_are_told_in_words() -> None:
    assert format_attention_checks(AttentionChecks((1, 2), 3e-7, (), 1, 0.0)) == (
        "layers 1, 2 against fused attention, off by at most 3e-07; layer 1 between the passes, off by at most 0"
    )
    assert (
        format_attention_checks(AttentionChecks(unfused=(0,))) == "layer 0 not compared, as attention is unfused there"
    )
    assert "no attention" in format_attention_checks(None)
