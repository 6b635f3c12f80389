"""Images as they are: any file or open image that Pillow reads works in the same way everywhere, or is refused by name.

Reports of this kind: ultralytics/ultralytics #23630, Peterande/D-FINE #308, kohya-ss/sd-scripts #1316 (orientation);
nagadomi/nunif #256, DepthAnything/Depth-Anything-V2 #256 (extreme shapes).
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torchvision import tv_tensors
from torchvision.transforms import v2

import toast_cli
from tests.cli.conftest import toast
from tests.peak import forget_peak, peak
from toast_cli.attention.predicted_classes import SegmentationMap
from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.audit.check import check_dataset
from toast_cli.data.audit.image_scan import scan_images
from toast_cli.data.base import BatchOptions, DataSet, LoaderOptions, set_white
from toast_cli.data.images.decode import open_image
from toast_cli.data.images.image_folder import ImageFolderOptions, open_image_folder
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.loader import build_image_loader
from toast_cli.data.images.object_masks import MaskFile
from toast_cli.data.images.resize import MAX_EXCESS
from toast_cli.data.images.transforms import CropWindow, build_transform
from toast_cli.data.images.upright import to_upright_rgb
from toast_cli.data.segmentation.dataset import SegmentationSplit, read_class_map
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.visualize.figure import FigurePanel, FigureRow, draw_figure

ORIENTATION = 0x0112
HALF = (0.5, 0.5, 0.5)


def noise(width: int = 20, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def exif_block(*entries: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    """EXIF written by hand: tag, type, number of values, and the value or its offset."""
    block = b"II*\0" + struct.pack("<IH", 8, len(entries) if count is None else count)
    return b"Exif\0\0" + block + b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)


TURNED = (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))
ODD_EXIF = {
    "a resolution that is text": exif_block(TURNED, (0x011A, 2, 3, b"abc\0")),
    "a type that does not exist": exif_block((0x010F, 99, 1, b"abcd"), TURNED),
    "a value outside of the file": exif_block((0x010F, 2, 500, struct.pack("<I", 999_999)), TURNED),
    "a folder of tags outside of the file": exif_block(TURNED, (0x8769, 4, 1, struct.pack("<I", 99_999))),
    "a place that is no place": exif_block(TURNED, (0x8825, 4, 1, struct.pack("<I", 4))),
    "an orientation of 32 bits": exif_block((ORIENTATION, 4, 1, struct.pack("<I", 6))),
    "fewer tags than it says": exif_block(TURNED, count=9),
}
UPRIGHT_EXIF = {
    "garbage": b"Exif\0\0garbage",
    "nothing": b"Exif\0\0",
    "orientation 0": exif_block((ORIENTATION, 3, 1, struct.pack("<HH", 0, 0))),
    "orientation 9": exif_block((ORIENTATION, 3, 1, struct.pack("<HH", 9, 0))),
    "an orientation that is text": exif_block((ORIENTATION, 2, 2, b"6\0\0\0")),
    "none": b"",
}


@pytest.fixture(scope="module")
def model() -> toast_cli.Steered:
    torch.manual_seed(0)
    return toast_cli.steer(timm.create_model("test_vit"), 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_and_the_same_file_opened_are_turned_alike_and_once(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    file = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    noise().save(file, exif=exif)
    opened = Image.open(file)
    by_path, by_image = open_image(file), to_upright_rgb(opened)
    expected = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    for shown in (by_path, by_image, to_upright_rgb(by_path), to_upright_rgb(expected), to_upright_rgb(by_image)):
        np.testing.assert_array_equal(shown, expected)
    if suffix != "tif":  # Pillow itself turns these when it loads them
        assert opened.size == (20, 12) and opened.getexif()[ORIENTATION] == orientation, "the caller's image changed"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("block", [*ODD_EXIF, *UPRIGHT_EXIF])
def test_odd_exif_neither_stops_nor_hides_the_orientation(block: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    noise().save(file, exif={**ODD_EXIF, **UPRIGHT_EXIF}[block])
    size = (12, 20) if block in ODD_EXIF else (20, 12)
    assert open_image(file).size == to_upright_rgb(Image.open(file)).size == size


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "I;16", "CMYK"])
def test_every_mode_is_turned(mode: str, tmp_path: Path) -> None:
    image = (
        noise().convert(mode) if mode != "I;16" else Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20))
    )
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "turned.tif", exif=exif)
    image.save(tmp_path / "plain.tif")
    turned = open_image(tmp_path / "plain.tif").transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(open_image(tmp_path / "turned.tif"), turned)
    np.testing.assert_array_equal(to_upright_rgb(Image.open(tmp_path / "turned.tif")), turned)


def test_the_orientation_of_xmp_is_followed(tmp_path: Path) -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    noise().save(tmp_path / "a.png", pnginfo=text)
    noise().save(tmp_path / "a.jpg", xmp=xmp.encode())
    for name in ("a.png", "a.jpg"):
        assert open_image(tmp_path / name).size == to_upright_rgb(Image.open(tmp_path / name)).size == (12, 20)


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    noise(60, 40).save(tmp_path / "turned.png", exif=exif)
    return tmp_path / "turned.png"


def test_every_verb_of_python_sees_a_turned_photograph_upright(model: toast_cli.Steered, turned: Path) -> None:
    upright = noise(60, 40).transpose(Image.Transpose.ROTATE_270)
    opened = Image.open(turned)
    expected = model.prepare(upright)
    assert torch.equal(model.prepare(turned), expected) and torch.equal(model.prepare(opened), expected)
    answers = [model.predict(image)[0].probabilities for image in (turned, opened, upright)]
    maps = [model.attention(image).first for image in (turned, opened, upright)]
    for first, second, third in (answers, maps):
        assert torch.equal(first, third) and torch.equal(second, third)


def test_class_maps_masks_and_archives_are_turned(turned: Path, tmp_path: Path) -> None:
    classes = np.arange(60 * 40, dtype=np.uint8).reshape(40, 60) % 3
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(classes).save(tmp_path / "map.png", exif=exif)
    np.testing.assert_array_equal(read_class_map(tmp_path / "map.png", 3), np.rot90(classes, -1))
    sample = SegmentationSplit(((turned, tmp_path / "map.png"),), 3).load(0)
    assert sample.classes is not None and sample.classes.shape == (60, 40)
    mask = MaskFile(tmp_path / "map.png", lambda pixels: pixels[..., 0] == 2).rasterize(60, 40)
    np.testing.assert_array_equal(mask, np.rot90(classes == 2, -1))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(turned, "a/turned.png")
    from toast_cli.data.images.archive_index import open_archive_index

    np.testing.assert_array_equal(open_image(open_archive_index(tmp_path / "a.zip") / "a/turned.png"), sample.image)


THIN = [(1, 100_000), (100_000, 1), (1, 1), (2, 3), (3, 5000), (1, 3_000_000), (3_000_000, 1)]
MEMORY = 60_000_000
"""Bytes for the crop of 224 pixels, whatever the shape of the image. A whole resize of the first would take 20 GB."""


@pytest.mark.parametrize("size", THIN, ids=str)
def test_no_more_of_a_thin_image_is_computed_than_a_crop_needs(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    mask = np.ones(size[::-1], dtype=bool) if max(size) <= 100_000 else None
    for mode in ("center", "squash", "border"):
        seen = Preprocessing((224, 224), HALF, HALF, crop_pct=0.9, crop_mode=mode)  # type: ignore[arg-type]
        for augment in ("none", "flip", "crop-flip", "random-resized-crop"):
            transform = build_transform(ImageOptions(augment=augment), seen, train=True)  # type: ignore[arg-type]
            forget_peak()
            before = peak()
            shown, cropped = transform(image, mask)
            assert peak() - before < MEMORY, (mode, augment)
            assert shown.shape == (3, 224, 224) and shown.max() == 1
            assert cropped is None or cropped.any()
        if mode == "border":  # at the centre up to a pixel of the resized image, which is half of a thin one
            continue
        window = build_transform(ImageOptions(), seen, train=False).compute_window(image)
        assert window.left + window.width / 2 == pytest.approx(size[0] / 2, abs=0.1)
        assert window.top + window.height / 2 == pytest.approx(size[1] / 2, abs=0.1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(900, 23), (23, 900), (8000, 200), (200, 8000), (12, 500)], ids=str)
def test_a_thin_image_looks_as_if_it_were_resized_whole(size: tuple[int, int], interpolation: str) -> None:
    image = noise(*size)
    seen = Preprocessing((48, 48), HALF, HALF, interpolation, crop_pct=0.9)
    shown, mask = build_transform(ImageOptions(), seen, train=False)(image, np.asarray(image)[..., 0] > 127)
    whole = v2.Resize(53, v2.InterpolationMode(interpolation))(image)
    assert whole.width * whole.height > MAX_EXCESS * 48 * 48, "an ordinary image"
    expected = v2.functional.pil_to_tensor(v2.CenterCrop(48)(whole))
    assert ((shown + 1) * 127.5 - expected).abs().max() < 2.01
    resized = v2.Resize(53)(tv_tensors.Mask(torch.from_numpy(np.asarray(image)[None, ..., 0] > 127)))
    assert mask is not None and torch.equal(mask, v2.CenterCrop(48)(resized)[0].as_subclass(torch.Tensor))


def test_segmentation_refuses_thin_images_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (1, 8000)).save(tmp_path / "thin.png")
    Image.new("L", (1, 8000)).save(tmp_path / "map.png")
    split = SegmentationSplit(((tmp_path / "thin.png", tmp_path / "map.png"),), 2)
    with pytest.raises(ToastError, match=r"thin\.png") as refused:
        split.load(0)
    assert refused.value.code == "image.too-thin"
    assert "thin" in next(iter(scan_images(split))).error


def test_a_thin_image_with_a_mask_or_classes_is_drawn() -> None:
    for size in ((1, 3000), (3000, 1)):
        window = CropWindow(0, 0, *size)
        classes = SegmentationMap(np.zeros(size[::-1], dtype=np.uint8), ("a", "b"))
        panels = (FigurePanel("a", window), FigurePanel("b", window, segments=classes))
        draw_figure([FigureRow(Image.new("RGB", size), panels, np.ones(size[::-1], dtype=bool))], "thin")


def make_folder(root: Path, images: dict[str, Callable[[Path], Any]]) -> FileSplit:
    for name, save in images.items():
        save(root / name)
    return FileSplit(root, tuple(images), (0,) * len(images))


def save_deep(values: np.ndarray, **how: Any) -> Callable[[Path], None]:
    return lambda file: Image.fromarray(values.astype(np.uint16)).save(file, **how)


@pytest.fixture
def twelve_bits(tmp_path: Path) -> FileSplit:
    values = np.random.default_rng(0).integers(0, 4096, (3, 24, 32))
    values[0] //= 20  # a dark one: the value of white is that of the data set, not of an image
    return make_folder(tmp_path, {f"{number}.png": save_deep(each) for number, each in enumerate(values)})


def test_data_check_and_training_say_that_16_bit_images_use_12(twelve_bits: FileSplit) -> None:
    report = check_dataset(DataSet(("a",), {"train": twelve_bits}), lambda items, *_: items)
    said = [warning for warning in report["warnings"] if "images.white=4095" in warning]
    assert len(said) == 1 and "3 images" in said[0] and "12 bits" in said[0]
    seen, batches = Preprocessing((16, 16), HALF, HALF), BatchOptions(2, shuffle=True, augment=True)
    (note,) = build_image_loader(twelve_bits, seen, batches, LoaderOptions()).notes
    assert "images.white=4095" in note
    brighter = set_white(twelve_bits, 4095)
    assert not build_image_loader(brighter, seen, batches, LoaderOptions()).notes
    dark, bright = (np.asarray(brighter.load(index).image) for index in (0, 1))
    assert bright.max() == 255 and dark.max() < 20


def test_white_is_that_of_the_recipe_in_every_verb(twelve_bits: FileSplit, model: toast_cli.Steered) -> None:
    file = twelve_bits.root / "1.png"
    given = toast_cli.Steered(model.model, model.classes, ImageOptions(white=4095))
    expected = model.prepare(set_white(twelve_bits, 4095).load(1).image)
    assert torch.equal(given.prepare(file), expected) and torch.equal(given.prepare(Image.open(file)), expected)
    assert not torch.equal(model.prepare(file), expected)


def test_a_tiff_of_12_bits_says_its_own_white(tmp_path: Path) -> None:
    """Two values of 12 bits each, 4,095 and 0, in three bytes."""
    tags = [(256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 1)]
    tags.append((279, 4, 3))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 12) + b"\xff\xf0\x00\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 0]


def test_16_bit_images_that_use_their_bits_and_8_bit_images_are_not_reported(tmp_path: Path) -> None:
    for values in (np.full((9, 9), 60_000), None):
        saved = save_deep(values) if values is not None else noise().save
        split = make_folder(tmp_path, {"a.png": saved})
        report = check_dataset(DataSet(("a",), {"train": split}), lambda items, *_: items)
        assert not [warning for warning in report["warnings"] if "images.white" in warning]


@pytest.mark.parametrize("white", [None, 4095])
@pytest.mark.parametrize("values", [np.linspace(0, 5000, 12), np.array([0.5, np.nan]), np.array([0.5, np.inf])])
def test_floats_need_a_white_and_finite_values(values: np.ndarray, white: int | None, tmp_path: Path) -> None:
    Image.fromarray(values.astype(np.float32)[None]).save(tmp_path / "a.tif")
    if white is None or not np.isfinite(values).all():
        with pytest.raises(ToastError, match=r"white|finite") as refused:
            open_image(tmp_path / "a.tif", white)
        assert refused.value.code == "image.unreadable"
    else:
        assert np.asarray(open_image(tmp_path / "a.tif", white))[0, [0, -1], 0].tolist() == [0, 255]


def test_data_check_says_what_is_left_out(tmp_path: Path) -> None:
    frames: dict[str, Any] = {"save_all": True, "append_images": [noise().rotate(180)]}
    split = make_folder(
        tmp_path,
        {
            "a.gif": lambda file: noise().save(file, **frames),
            "a.webp": lambda file: noise().save(file, **frames),
            "a.png": lambda file: noise().save(file, **frames),
            "a.tif": lambda file: noise().save(file, **frames),
            "b.jpg": noise().convert("CMYK").save,
            "thin.png": Image.new("RGB", (1, 400)).save,
        },
    )
    said = "\n".join(check_dataset(DataSet(("a",), {"train": split}), lambda items, *_: items)["warnings"])
    assert "4 images: several frames" in said and "1 image: CMYK" in said and "thin.png" in said


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused_with_its_place_in_the_list(
    size: tuple[int, int], model: toast_cli.Steered
) -> None:
    for verb in (model.predict, model.prepare, model.attention):
        with pytest.raises(UsageError, match="image 2 of the list") as refused:
            verb([noise(), noise(), Image.new("RGB", size)])
        assert refused.value.code == "image.unreadable" and "no pixels" in refused.value.why
    with pytest.raises(UsageError, match="Cannot convert the image"):
        model.predict(Image.new("L", size))


def test_negative_values_are_not_called_32_bit_pixels(tmp_path: Path) -> None:
    pixels = np.array([[-1000, 0, 1000]], dtype="<i2")
    entries = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1), (279, 6), (339, 2)]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + pixels.tobytes())
    with pytest.raises(ToastError) as refused:
        open_image(tmp_path / "a.tif")
    assert "negative pixel values, down to -1,000" in refused.value.why and "32-bit" not in refused.value.why
    assert np.asarray(open_image(tmp_path / "a.tif", 1000))[0, :, 0].tolist() == [0, 0, 255]


def test_pictures_of_several_jpegs_are_found_in_folders(tmp_path: Path) -> None:
    for name in ("cat/a.mpo", "cat/b.MPO", "dog/a.mpo", "dog/b.mpo"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise().save(tmp_path / name, "MPO", save_all=True, append_images=[noise().rotate(180)])
    data = open_image_folder(ImageFolderOptions(path=str(tmp_path), val_fraction=0, test_fraction=0), None)
    assert len(data.splits["train"]) == 4 and data.splits["train"].load(1).image.size == (20, 12)


UNREADABLE = {
    "empty": (b"", "empty"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
    "jpeg xl": (b"\xff\x0a" + bytes(40), "JPEG XL"),
    "text": (b"hello", "not an image"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><body><svg/></body></html>", "HTML page"),
    "html fragment": (b"<head><title>404</title></head>", "HTML page"),
    "svg": (b'<?xml version="1.0"?>\n<!-- a --><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "json": (b'{"message": "Not Found"}', "JSON"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "truncated": ((lambda stream: (noise(80, 80).save(stream, "png"), stream.getvalue()[:-900])[1])(io.BytesIO()), ""),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name_and_cause(kind: str, tmp_path: Path) -> None:
    content, words = UNREADABLE[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ToastError) as refused:
        open_image(tmp_path / "a.jpg")
    assert refused.value.code == "image.unreadable" and "a.jpg" in refused.value.what and words in refused.value.why
    if kind != "truncated":
        with pytest.raises(ToastError) as refused:
            read_class_map(tmp_path / "a.jpg", 3)
        assert refused.value.code == "data.unreadable-class-map" and words in refused.value.why


def test_an_empty_path_is_not_the_current_folder(model: toast_cli.Steered) -> None:
    for given in ("", ["", ""]):
        with pytest.raises(UsageError, match="an empty text") as refused:
            model.predict(given)
        assert refused.value.code == "image.empty-path"


def test_a_list_is_computed_in_batches_and_never_held_whole(
    model: toast_cli.Steered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", noise(30, 40), *[tmp_path / "a.png"] * 5]
    whole = model.predict(images, batch_size=len(images))
    sizes: list[int] = []
    forward = type(model.model).forward
    monkeypatch.setattr(
        type(model.model), "forward", lambda self, inputs: sizes.append(len(inputs)) or forward(self, inputs)
    )

    def one_by_one() -> Iterator[Any]:
        yield from images

    for given in (images, tuple(images), one_by_one()):
        sizes.clear()
        parts = model.predict(given, batch_size=3)
        assert sizes == [3, 3, 1]
        for part, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(part.probabilities, expected.probabilities, rtol=0, atol=1e-6)
    maps, expected_maps = (model.attention(images, batch_size=size) for size in (3, len(images)))
    for name in ("first", "last", "similarity"):
        torch.testing.assert_close(getattr(maps, name), getattr(expected_maps, name), rtol=0, atol=1e-6)
    for wrong in (0, -1, "3"):
        with pytest.raises(UsageError, match="batch_size") as refused:
            model.predict(images, batch_size=wrong)  # type: ignore[arg-type]
        assert refused.value.code == "task.invalid-batch-size"
    with pytest.raises(UsageError) as refused:
        model.predict(iter(()))
    assert refused.value.code == "image.none-given"


def test_data_check_reads_a_folder_of_odd_files(tmp_path: Path) -> None:
    for name in "ab":
        folder = tmp_path / "odd" / name
        folder.mkdir(parents=True)
        for number in range(5):
            noise(30 + number, 20).save(folder / f"{number}.png")
    Image.new("RGB", (1, 100_000), "red").save(tmp_path / "odd/a/thin.png")
    (tmp_path / "odd/b/phone.jpg").write_bytes(UNREADABLE["heic"][0])
    said = toast("data", "check", f"folder:{tmp_path / 'odd'}")
    assert said.code == 1 and "Traceback" not in said.err
    flat = " ".join(said.out.split())
    assert "thin.png" in flat and "HEIC" in flat
