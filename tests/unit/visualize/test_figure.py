"""Figures show each map under its name, where it lies in the original image, on one scale."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from packaging import version
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from tests.scenes import CLASSES, demo_model, scenes, viewer_of
from toast_cli.attention.feature_energy import FEATURE_ENERGY, compute_feature_energy
from toast_cli.attention.predicted_classes import SegmentationMap, format_class_shares
from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow, build_transform
from toast_cli.model.model import Model
from toast_cli.utils.tensor_fingerprints import hash_tensors
from toast_cli.visualize.figure import FigurePanel, FigureRow, draw_figure
from toast_cli.visualize.figure_output import save_figure
from toast_cli.visualize.figure_panels import build_comparison_rows, build_passes_row
from toast_cli.visualize.map_color_scales import build_sequential_scale
from toast_cli.visualize.save_figures import save_attention_figure, save_comparison_figure, strip_folders
from toast_cli.visualize.view import ImageView, TopPrediction, compute_image_view

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model() -> Model:
    return demo_model()


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours and one disc, so that a resized picture is much the same."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 255 * (1 - x / width)], -1).astype(np.uint8)
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).ellipse((0.55 * width, 0.3 * height, 0.7 * width, 0.6 * height), fill="white")
    return image


SEEN = [
    ((64, 64), (100, 80), ImageOptions()),
    ((64, 64), (100, 80), ImageOptions(resize=90)),
    ((64, 96), (210, 75), ImageOptions()),
    ((96, 64), (130, 90), ImageOptions(squash=True)),
]


@pytest.mark.parametrize(("size", "shape", "images"), SEEN)
def test_the_window_is_what_the_model_sees(size: tuple[int, int], shape: tuple[int, int], images: ImageOptions) -> None:
    image = photograph(*shape)
    transform = build_transform(images, Preprocessing(size, (0.0,) * 3, (1.0,) * 3, crop_pct=0.9), train=False)
    window = transform.compute_window(image)
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    cut = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    seen = transform(image)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(seen - np.asarray(cut, dtype=float)).mean() < 1.5
    assert window.left >= 0 and box[2] <= shape[0] + 1e-3 and window.top >= 0 and box[3] <= shape[1] + 1e-3


def test_the_share_on_the_object_is_what_the_pixels_of_the_original_image_add_up_to(
    model: Model, tmp_path: Path
) -> None:
    """By another route: raw maps and window as written, every pixel of the demo's exact mask by itself."""
    for number, sample in enumerate(scenes(3)):
        record = save_attention_figure(viewer_of(model), sample, tmp_path, f"scene-{number}")
        maps, (view,) = load_file(record["maps"]), record["views"]
        window, mask = CropWindow(**view["window"]), sample.mask
        assert mask is not None and set(view["share_inside"]) == {"pass_one", "similarity", "pass_two", "even"}
        assert view["share_inside"].pop("even") == pytest.approx(mask.mean(), abs=1e-6), "chance is the object's area"
        for name, share in view["share_inside"].items():
            rows, columns = maps[name].shape
            inside = 0.0
            for y, x in zip(*np.nonzero(mask), strict=True):
                row = int((y + 0.5 - window.top) / window.height * rows)
                column = int((x + 0.5 - window.left) / window.width * columns)
                inside += float(maps[name][row, column]) * (rows * columns) / (window.height * window.width)
            assert share == pytest.approx(inside / float(maps[name].sum()), abs=1e-5)


def test_each_panel_is_the_map_that_its_heading_names(model: Model) -> None:
    sample = scenes(1)[0]
    view = compute_image_view(viewer_of(model), sample)
    panels = {panel.heading.split("\n")[0]: panel for panel in build_passes_row(sample, view).panels}
    without, of_task, with_toast = (
        "where it looks without TOAST",
        "similarity to the task, ξ",
        "where it looks with TOAST",
    )
    assert list(panels) == ["image", without, of_task, with_toast, "what changed"]
    for heading, name, scale in (
        (without, "pass_one", 64), (of_task, "similarity", 1),
        (with_toast, "pass_two", 64), ("what changed", "difference", 64),
    ):  # fmt: skip
        np.testing.assert_allclose(panels[heading].values, view.maps[name].numpy() * scale)
    both = build_sequential_scale("", "", [64 * view.maps[name].numpy() for name in ("pass_one", "pass_two")])
    for heading in (without, with_toast):
        assert panels[heading].scale.high == pytest.approx(both.high), "one scale, made of both"  # type: ignore[union-attr]
    assert not torch.allclose(view.maps["pass_one"], view.maps["pass_two"], atol=1e-3)
    assert torch.equal(view.maps["difference"], view.maps["pass_two"] - view.maps["pass_one"])
    low, high = panels["what changed"].scale.low, panels["what changed"].scale.high  # type: ignore[union-attr]
    assert low == -high


def test_both_passes_say_what_they_see_and_how_sure_they_are(model: Model) -> None:
    sample = scenes(1)[0]
    viewer = viewer_of(model)
    view = compute_image_view(viewer, sample)
    images = viewer.transform(sample.image)[0][None]
    with torch.no_grad():
        plain = model.compute_outputs(model.backbone.stock(images)).softmax(-1)[0]
        last = model(images).softmax(-1)[0]
    assert viewer.classes is not None and view.first is not None and view.last is not None
    for verdict, expected in ((view.first, plain), (view.last, last)):
        assert verdict.probability == pytest.approx(float(expected.max()), abs=1e-5)
        assert verdict.label == viewer.classes[int(expected.argmax())]
    headings = [panel.heading for panel in build_passes_row(sample, view).panels]
    assert any(f"{view.last.label} {view.last.probability:.0%}" in heading for heading in headings)


def test_early_feedback_too_says_what_the_plain_pass_says() -> None:
    model = demo_model(method={"name": "toast", "feedback": "early"})  # type: ignore[arg-type]
    viewer, sample = viewer_of(model), scenes(1)[0]
    with torch.no_grad():
        plain = model.compute_outputs(model.backbone.stock(viewer.transform(sample.image)[0][None])).softmax(-1)[0]
    view = compute_image_view(viewer, sample)
    assert view.first is not None and view.first.probability == pytest.approx(float(plain.max()), abs=1e-5)


def test_several_viewers_share_a_scale_and_a_row_is_an_image(model: Model) -> None:
    samples = scenes(2)
    viewers = [viewer_of(model, "two passes"), viewer_of(demo_model("linear"), "one pass")]
    views = [[compute_image_view(viewer, sample) for viewer in viewers] for sample in samples]
    rows = build_comparison_rows(samples, views)
    assert [len(row.panels) for row in rows] == [3, 3]
    assert len({panel.scale for row in rows for panel in row.panels[1:]}) == 1
    np.testing.assert_allclose(rows[1].panels[1].values, 64 * views[1][0].maps["pass_two"].numpy())
    np.testing.assert_allclose(rows[1].panels[2].values, 64 * views[1][1].maps["pass_one"].numpy())


RISING = torch.arange(24.0).view(4, 6).softmax(-1) / 4
"""A made-up map on a grid that is not square."""


def made_up(kind: str, window: CropWindow, first: Tensor, second: Tensor | None, name: str = "a run") -> ImageView:
    maps = {"pass_one": first}
    if second is not None:
        maps |= {"similarity": first.flip(0) * 4, "pass_two": second, "difference": second - first}
    viewer = replace(viewer_of(demo_model("linear"), name), classes=CLASSES)
    said = None if second is None else TopPrediction("ringed", 0.9)
    return ImageView(viewer, window, kind, maps, TopPrediction("plus", 0.4), said)


def outlined(width: int = 120, height: int = 80) -> Sample:
    """An oblong photograph with an object."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height * 3 // 10 : height * 6 // 10, width * 11 // 20 : width * 7 // 10] = True
    return Sample(photograph(width, height), 0, "a photograph", mask)


def passes(window: CropWindow) -> list[FigureRow]:
    """Figure 4's panels: both passes over most of an image."""
    return [build_passes_row(outlined(), made_up("attention", window, RISING, RISING.flip(1)))]


def grid(window: CropWindow) -> list[FigureRow]:
    """Figure 3's: two images, one upright, under two viewers."""
    upright = CropWindow(window.top, window.left, window.height, window.width)
    views = [
        [made_up("attention", seen, map, map.flip(1), "toast"), made_up("attention", seen, map.flip(0), None, "linear")]
        for seen, map in ((window, RISING), (upright, RISING.T))
    ]
    return build_comparison_rows([outlined(), outlined(80, 120)], views)


def convnext(window: CropWindow) -> list[FigureRow]:
    """The energy of features that grow towards the right, then towards the left."""
    features = torch.linspace(0, 2, 6).expand(1, 8, 4, 6)
    one, two = compute_feature_energy(features)[0], compute_feature_energy(features.flip(-1))[0]
    return [build_passes_row(outlined(), made_up(FEATURE_ENERGY, window, one, two))]


def drawn(rows: list[FigureRow]) -> Image.Image:
    file = io.BytesIO()
    draw_figure(rows, "a title").savefig(file, format="png", dpi=60)
    return Image.open(file).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> float:
    """Root mean square of the difference of two pictures at a third of their size, 0 to 255: letters hardly count."""
    size = (other.width // 3, other.height // 3)
    first, second = (np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=float) for picture in (one, other))
    return float(np.sqrt(((first - second) ** 2).mean()))


@pytest.mark.skipif(
    version.parse(matplotlib.__version__) < version.parse("3.11"),
    reason="the pictures that were looked at were drawn by matplotlib 3.11; others set text two pixels otherwise",
)
@pytest.mark.parametrize("figure", [passes, grid, convnext])
def test_a_figure_looks_as_it_did_when_somebody_looked_at_it(figure: Callable[[CropWindow], list[FigureRow]]) -> None:
    with Image.open(GOLDEN / f"{figure.__name__}.png") as file:
        golden = file.convert("RGB")
    assert distance(drawn(figure(CropWindow(20, 8, 90, 60))), golden) < 6
    assert distance(drawn(figure(CropWindow(8, 8, 90, 60))), golden) > 12, "a crop at another place would show"


def test_a_long_title_and_long_legends_print_over_nothing() -> None:
    """Seven panels, as of a model that labels pixels: three lines above, four lines of classes below."""
    classes = np.arange(120 * 80).reshape(80, 120) % 8
    view = made_up("attention", CropWindow(20, 8, 90, 60), RISING, RISING.flip(1))
    segments = {name: SegmentationMap(classes, tuple("abcdefgh")) for name in ("predicted", "labelled")}
    figure = draw_figure([build_passes_row(outlined(), replace(view, segments=segments))], "a title\nof three\nlines")
    FigureCanvasAgg(figure).draw()
    (title,) = figure.texts
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert len(boxes) == 7 + 4 and title.get_window_extent().y0 > max(box.y1 for box in boxes)
    bars = max(axis.get_window_extent().y1 for axis in figure.axes[7:])
    legends = [axis.get_legend() for axis in figure.axes[5:7]]
    assert all(legend is not None and legend.get_window_extent().y0 > bars for legend in legends)


def test_classes_of_pixels_are_drawn_over_the_whole_image() -> None:
    classes = np.zeros((80, 120), dtype=np.int64)
    view = made_up("attention", CropWindow(20, 8, 90, 60), RISING, None)
    row = build_passes_row(outlined(), replace(view, segments={"predicted": SegmentationMap(classes, ("a",))}))
    assert row.panels[-1].window == CropWindow(0, 0, 120, 80)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_written_in_every_format_the_same_each_time(kind: str, tmp_path: Path) -> None:
    seen, map = CropWindow(0, 0, 30, 30), np.eye(3)  # the crop is drawn with clips, whose ids are a figure's own
    row = FigureRow(
        photograph(40, 30),
        (FigurePanel("$a heading_{that} is no formula$", seen, map, build_sequential_scale("", "viridis", [map])),),
    )
    for name in ("a", "b"):
        save_figure(draw_figure([row], "<b>title</b>"), tmp_path / f"{name}.{kind}")
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert (tmp_path / f"a.{kind}").read_bytes().startswith(begins)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_the_record_says_how_the_maps_were_made(model: Model, tmp_path: Path) -> None:
    viewers = [viewer_of(model, "same"), viewer_of(demo_model("linear"), "same")]
    records = save_comparison_figure(viewers, [("scene", scenes(1)[0])], tmp_path)
    record = json.loads((tmp_path / "scene-comparison-same-same.json").read_text())
    assert [record] == records
    assert [view["name"] for view in record["views"]] == ["same", "same-2"]
    assert {"same/pass_one", "same/pass_two", "same/similarity", "same/difference", "same-2/pass_one"} == set(
        load_file(record["maps"])
    )
    view = record["views"][0]
    assert (view["layer"], view["head"], view["prefix_tokens_left_out"], view["shape"]) == (2, "mean", 1, [8, 8])
    assert view["checks"]["largest_mismatch_with_fused_attention"] < 1e-4
    assert (view["run"], view["backbone"], view["network"]) == ("same", "vit_demo_3", "VisionTransformer")
    assert (view["seed"], view["method"], view["alpha"]) == (0, "toast", 1.0)
    assert (view["input_size"], view["images"]["resize"], view["crop_pct"]) == ([64, 64], None, 1.0)
    assert (
        view["run_fingerprint"] == hash_tensors(model.get_trained_parameters()) != record["views"][1]["run_fingerprint"]
    )
    assert view["weights"].endswith("(no file was named)") and len(view["backbone_fingerprint"]) == 64
    assert set(record["versions"]) == {"toast", "torch", "torchvision", "timm", "transformers"}
    assert view["window"] == {"left": 0, "top": 0, "width": 64, "height": 64}


def test_a_record_tells_of_paths_their_last_part_alone() -> None:
    for name, told in (("/home/me/w.safetensors", "w.safetensors"), ("folder:/home/me/birds/", "folder:birds"),
                       ("llama:some/model", "llama:model"), ("vit_demo", "vit_demo"), ("none", "none")):  # fmt: skip
        assert strip_folders(name) == told


def test_what_covers_an_image_is_told_of_the_pixels_that_have_a_class() -> None:
    classes = np.full((4, 4), 255, dtype=np.uint8)
    assert format_class_shares(SegmentationMap(classes, ("cat", "dog"))) == ""
    classes[0, :3], classes[0, 3] = 1, 0
    assert format_class_shares(SegmentationMap(classes, ("cat", "dog"))) == "dog 75%, cat 25%"
