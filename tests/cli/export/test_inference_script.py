"""The script beside an ONNX file: its answers without torch are those of the run, on files of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import toast_cli
from tests.cli.conftest import toast
from toast_cli.export import infer
from toast_cli.export.standalone_script import build_standalone_script


def make_messy_files(folder: Path) -> list[Path]:
    """Photographs as people have them: modes, sizes, orientations and formats."""
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (61, 83, 4), dtype=np.uint8)
    values = np.asarray(Image.fromarray(values).resize((330, 240)))
    rgba = Image.fromarray(values)
    rgb = rgba.convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgba.save(folder / "alpha ü.png")
    rgb.convert("P").save(folder / "palette.gif")
    rgb.save(folder / "a.avif")
    rgb.convert("L").convert("1").save(folder / "bits.png")
    Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    rgb.resize((2000, 5)).save(folder / "thin.png")
    rgb.resize((3, 3)).save(folder / "tiny.bmp")
    return sorted(folder.iterdir())


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("normalize", [[], ["--normalize"]])
def test_answers_without_torch_are_those_of_the_run(here: Path, toast_run: Path, normalize: list[str]) -> None:
    files = make_messy_files(here / "photographs")
    (here / "photographs" / "broken.jpg").write_bytes(b"no image")
    (here / "photographs" / "empty.jpg").write_bytes(b"")
    (here / "photographs" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (here / "photographs" / "notes.txt").write_text("no image")
    said = toast("export", "--run", toast_run, "--format", "onnx", "--out", "model.onnx", *normalize)
    assert said.code == 0, said.err
    (here / "blocked").mkdir()
    for package in ("torch", "torchvision", "toast_cli", "timm", "transformers"):
        (here / "blocked" / f"{package}.py").write_text("raise SystemError('imported')")
    command = [sys.executable, "infer.py", "photographs", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(here / "blocked")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "imported" not in done.stderr, done.stderr
    for name, reason in {
        "broken.jpg": "It is not an image, or",
        "empty.jpg": "It is empty, and not an image.",
        "phone.heic": "It is a HEIC image, which Pillow decodes only with pillow-heif. Run: pip install pillow-heif",
    }.items():
        assert f"photographs{os.sep}{name}: {reason}" in done.stderr
    assert "photographs: not read, no image suffix: notes.txt\n" in done.stderr
    cut = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert cut.stdout is not None and cut.stderr is not None
    cut.stdout.close()  # as 'head' does when it has enough
    assert "Traceback" not in cut.stderr.read() and cut.wait() == 1
    found = {Path(line["file"]).name: line["scores"] for line in map(json.loads, done.stdout.splitlines())}
    model = toast_cli.load(toast_run)
    for file, prediction in zip(files, model.predict(files), strict=True):
        expected = dict(zip(model.classes, prediction.probabilities.tolist(), strict=True))
        assert found[file.name] == pytest.approx(expected, abs=1e-3), file


@pytest.mark.usefixtures("quickly")
def test_one_script_serves_a_folder_and_a_users_own_is_kept(here: Path, toast_run: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        assert toast("export", "--run", toast_run, "--format", "onnx", "--out", name).code == 0
    Path("infer.py").write_text("print('mine')")
    toast("export", "--run", toast_run, "--format", "onnx", "--out", "three.onnx").fails(2, "infer.py")
    assert Path("infer.py").read_text() == "print('mine')" and not Path("three.onnx").exists()


def test_a_script_holds_what_it_uses_and_no_import_of_toast(monkeypatch: pytest.MonkeyPatch) -> None:
    text = build_standalone_script(Path(infer.__file__))
    monkeypatch.setitem(sys.modules, "script", script := ModuleType("script"))
    names = vars(script)
    exec(compile(text, "infer.py", "exec"), names)
    assert "import toast_cli" not in text and "from toast_cli" not in text and "torch" not in names
    assert {"to_upright_rgb", "resize_and_crop_image", "MAX_EXCESS", "CropPlace"} <= names.keys()
