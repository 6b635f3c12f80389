"""Images as they are, made at random: what Pillow reads without complaint works, the rest is refused by one message.

Reports of this kind: those of `test_image_files.py`.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import toast_cli
from tests.cli.conftest import toast
from toast_cli.data.audit.image_scan import scan_images
from toast_cli.data.images.decode import open_image
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.utils.errors import ToastError

pytestmark = pytest.mark.nightly

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "gif": "GIF", "bmp": "BMP", "jp2": "JPEG2000"}
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB"]
SIDES = st.sampled_from([1, 2, 3, 7, 16, 33, 64, 200, 3000])
SETTINGS: Any = {
    "deadline": None, "derandomize": True, "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}  # fmt: skip


@st.composite
def image_files(draw: Any) -> tuple[str, bytes]:
    """The suffix and the content of a file: any mode, size, format, orientation, frames, depth, and damage."""
    width, height = draw(SIDES), draw(SIDES)
    mode, suffix = draw(st.sampled_from(MODES)), draw(st.sampled_from(sorted(FORMATS)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if mode in ("I;16", "I", "F"):
        most = draw(st.sampled_from([1, 255, 4095, 65_535, 10**6 if mode != "I;16" else 65_535]))
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray((rng.random((height, width)) * most).astype(kinds[mode]))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = image if mode == "LAB" else image.convert(mode)
    options: dict[str, Any] = {}
    if (orientation := draw(st.integers(-1, 10))) >= 0:
        exif = Image.Exif()
        exif[0x0112] = orientation
        if draw(st.booleans()):
            exif[0x011A] = draw(st.sampled_from(["odd", 72.0, 0]))
        options["exif"] = exif
    if draw(st.booleans()):
        options |= {"save_all": True, "append_images": [image.copy()] * draw(st.integers(0, 2))}
    if mode == "P" and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255))
    content = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(content, FORMATS[suffix], **options)
    except Exception:  # Pillow cannot write this mode in this format, or this EXIF
        image.convert("RGB").save(content, "PNG")
    data = content.getvalue()
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return suffix if draw(st.integers(0, 4)) else draw(st.sampled_from(sorted(FORMATS))), data


def is_read_by_pillow(data: bytes) -> bool:
    """Whether Pillow converts it to RGB and its grey values have a range that is known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            image.convert("RGB")
            values = np.asarray(image)
        return image.mode != "F" and not (image.mode == "I" and (values.min() < 0 or values.max() > 65_535))
    except Exception:
        return False


@pytest.mark.filterwarnings("ignore")
def test_check_and_prediction_take_what_pillow_reads(tmp_path: Path) -> None:
    model = toast_cli.steer(timm.create_model("test_vit"), 3, method="linear")

    @settings(max_examples=300, **SETTINGS)
    @given(file=image_files())
    def check(file: tuple[str, bytes]) -> None:
        suffix, data = file
        path = tmp_path / f"image.{suffix}"
        path.write_bytes(data)
        (scanned,) = scan_images(FileSplit(tmp_path, (path.name,), (0,)))
        try:
            opened = open_image(path)
        except ToastError as error:
            assert not is_read_by_pillow(data), error
            assert error.code == "image.unreadable" and scanned.error == error.why != ""
            return
        assert not scanned.error and opened.mode == "RGB" and (scanned.width, scanned.height) == opened.size
        by_path, by_image = model.predict([path, Image.open(path)])
        assert by_path.probability == pytest.approx(by_image.probability, abs=1e-6)

    check()


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_such_files_goes_through_the_whole_chain(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toast_cli.export import verification_worker

    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)

    @settings(max_examples=15, **SETTINGS)
    @given(files=st.lists(image_files(), min_size=8, max_size=12))
    def chain(files: list[tuple[str, bytes]]) -> None:
        folder = tmp_path_factory.mktemp("chain")
        for number, (suffix, data) in enumerate(files):
            path = folder / "data" / "ab"[number % 2] / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for name in "ab":  # an ordinary one in every class and split
            for number in range(6):
                Image.new("RGB", (30, 20), (40 * number, 90, 200)).save(folder / f"data/{name}/plain{number}.png")
        run = folder / "run"
        said = toast(
            "tune", "--backbone", "vit_demo", "--dataset", f"folder:{folder / 'data'}", "--method", "linear",
            "--device", "cpu", "--output-dir", run, "training.max_steps=1", "training.batch_size=4",
            "images.on_error=skip",
        )  # fmt: skip
        assert said.code == 0, said.err
        assert toast("eval", "--run", run).code == 0
        pictures = [path for path in sorted((folder / "data").rglob("*")) if path.is_file()]
        drawn = toast("visualize-attention", "--run", run, "--out", folder / "drawn", "--per-image", *pictures[:4])
        assert drawn.code in (0, 1) and "Traceback" not in drawn.err
        bad = sum(not is_read_by_pillow(path.read_bytes()) for path in pictures[:4])
        assert len(list((folder / "drawn").glob("*.png"))) == 4 - bad, drawn.err
        exported = toast("export", "--run", run, "--format", "hf", "--out", folder / "exported")
        assert exported.code == 0, exported.err

    chain()
