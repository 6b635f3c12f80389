from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toast_cli.data.images.decode import open_image
from toast_cli.utils.errors import ToastError


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_an_rgb_image_comes_back_pixel_for_pixel(tmp_path: Path) -> None:
    written = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(written).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), written)


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (6, (0, -1)), (8, (-1, 0))]
)
def test_a_photo_is_turned_as_its_exif_orientation_says(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    image = Image.new("RGB", (20, 10))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    shown = pixels(tmp_path / "a.png")
    assert shown.shape[:2] == ((20, 10) if orientation > 4 else (10, 20))
    assert shown[corner].tolist() == [255, 255, 255]
    assert shown.sum() == 3 * 255


@pytest.mark.parametrize("file", ["grey.png", "grey.tif", "grey.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, file: str) -> None:
    grey = np.array([[0, 257, 32_768, 65_535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / file)
    assert pixels(tmp_path / file)[0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]


def test_big_endian_16_bit_grey_is_scaled_too(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), np.array([257, 65_535], dtype=">u2").tobytes())
    image.save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [1, 255]


def test_cmyk_shows_the_colours_it_means(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.jpg", quality=95)
    assert pixels(tmp_path / "red.jpg")[4, 4].tolist() == pytest.approx([255, 0, 0], abs=6)
    assert pixels(tmp_path / "white.jpg")[4, 4].tolist() == pytest.approx([255, 255, 255], abs=6)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white_whatever_colour_hides_there(tmp_path: Path, mode: str) -> None:
    bands = 4 if mode == "RGBA" else 2
    image = Image.new(mode, (2, 1), (0,) * bands)
    image.putpixel((1, 0), (*(40,) * (bands - 1), 255))
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[255] * 3, [40] * 3]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_palette_with_transparency_is_laid_over_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_a_plain_palette_shows_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == [10, 20, 30]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("file", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, file: str) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    lossless = {"lossless": True} if file == "a.webp" else {}
    red.save(tmp_path / file, save_all=True, append_images=[blue], **lossless)
    assert Image.open(tmp_path / file).n_frames == 2  # type: ignore[attr-defined]
    assert pixels(tmp_path / file)[0, 0].tolist() == [255, 0, 0]


def test_what_is_returned_does_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.bmp")
    image = open_image(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").unlink()
    assert image.resize((2, 2)).getpixel((0, 0)) == (255, 0, 0)


class TestErrors:
    def refused(self, path: Path) -> ToastError:
        with pytest.raises(ToastError) as error:
            open_image(path)
        assert str(path) in error.value.what
        assert error.value.what_to_do
        return error.value

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert "No such file" in self.refused(tmp_path / "gone.jpg").why

    @pytest.mark.parametrize("content", [b"", b"hello, I am a text"])
    def test_what_is_not_an_image_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.jpg").write_bytes(content)
        assert "not an image" in self.refused(tmp_path / "a.jpg").why

    @pytest.mark.parametrize("file", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif"])
    def test_a_truncated_image_is_named(self, tmp_path: Path, file: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / file)
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
        assert self.refused(tmp_path / file).why

    def test_a_damaged_image_is_named(self, tmp_path: Path) -> None:
        Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
        content = bytearray((tmp_path / "a.png").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (tmp_path / "a.png").write_bytes(bytes(content))
        assert self.refused(tmp_path / "a.png").why

    def test_a_decompression_bomb_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert "large" in self.refused(tmp_path / "a.png").why

    def test_so_is_an_image_of_which_pillow_only_warns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        assert open_image(tmp_path / "a.png").size == (100, 100)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert "100×100 pixels, and at most 9,999 are read" in self.refused(tmp_path / "a.png").why

    @pytest.mark.e2e
    def test_pillows_warning_without_a_name_is_not_shown(self, tmp_path: Path) -> None:
        Image.new("1", (9_500, 9_500)).save(tmp_path / "a.png")
        script = (
            "import sys; from pathlib import Path; from toast_cli.data.images.decode import open_image; "
            "open_image(Path(sys.argv[1]))"
        )
        command = [sys.executable, "-c", script, tmp_path / "a.png"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "a.png cannot be read" in done.stderr and "Warning" not in done.stderr

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.jpg")
        assert "regular file" in self.refused(tmp_path / "a.jpg").why

    @pytest.mark.parametrize("values", [np.array([[0.5]], np.float32), np.array([[70_000]], np.int32)])
    def test_pixels_of_unknown_range_are_refused_and_not_guessed(self, tmp_path: Path, values: np.ndarray) -> None:
        Image.fromarray(values).save(tmp_path / "a.tif")
        assert "white" in self.refused(tmp_path / "a.tif").why

    def test_a_folder_is_not_an_image(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path).why


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_stays_open_whether_it_could_be_read_or_not(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    kept = open_image(tmp_path / "good.gif")
    with pytest.raises(ToastError):
        open_image(tmp_path / "bad.jpg")
    opened = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _exists(number)]  # noqa: PTH115, PTH208
    assert not [file for file in opened if file.startswith(str(tmp_path))]
    assert kept.size == (8, 8)


def _exists(number: str) -> bool:
    return Path(f"/proc/self/fd/{number}").exists()
