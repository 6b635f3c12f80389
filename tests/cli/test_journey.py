"""The whole way of a newcomer, on photographs as people have them: tune, read the numbers, label, continue, export."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import toast

pytestmark = pytest.mark.e2e
COLORS = {"Möwe": (40, 90, 200), "fox": (200, 90, 30), "owl": (90, 90, 90)}
SMALL = ["--backbone", "vit_demo_3", "--device", "cpu", "--epochs", "4", "--lr", "0.003", "training.batch_size=8"]


def photograph(name: str, number: int, side: int = 90) -> Image.Image:
    """A picture whose colour differs by class, brighter to the right and below, with a dark corner, and noise."""
    noise = np.random.default_rng(number).normal(0, 12, (side, side + 20, 3))
    ramp = np.linspace(-60, 40, side + 20)[None, :, None] + np.linspace(-30, 30, side)[:, None, None]
    pixels = np.array(COLORS[name]) + noise + ramp
    pixels[: side // 3, : side // 3] = 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_translucent(image: Image.Image) -> Image.Image:
    """The picture, fading out from left to right."""
    fading = Image.linear_gradient("L").rotate(90).resize(image.size)
    image.putalpha(fading)
    return image


def save(image: Image.Image, file: Path, **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes in nested folders, in every format; one of them has a file that is cut off, and one that is empty."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Fotos 2026"
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("Möwe", "fox"):
        for number in range(14):
            save(photograph(name, number), folder / name / f"day {number % 3}" / f"ä{number}.jpg", quality=90)
        save(photograph(name, 50).convert("CMYK"), folder / name / "cmyk.jpg")
        save(make_translucent(photograph(name, 51)), folder / name / "alpha.png")
        save(photograph(name, 52), folder / name / "turned.jpg", exif=turned)
        save(photograph(name, 53), folder / name / "modern.avif")
        deep = np.asarray(photograph(name, 54).convert("L")).astype(np.uint16) * 200 + 31
        save(Image.fromarray(deep), folder / name / "deep.png")
    whole = (folder / "fox" / "turned.jpg").read_bytes()
    (folder / "fox" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "fox" / "empty.png").touch()
    save(photograph("owl", 0), folder / "owl" / "only.jpg")
    return folder


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_whole_way_of_a_newcomer(photographs: Path, tmp_path: Path) -> None:
    words = ["tune", *SMALL, "--method", "toast", "--dataset", f"folder:{photographs}"]
    done = toast(*words, "--output-dir", "first")
    done.fails(1, "cut.jpg", "empty.png", "images.on_error=skip")
    assert not Path("first").exists()

    done = toast(*words, "--output-dir", "first", "images.on_error=skip")
    assert done.code == 0, done.err
    assert "'owl'" in done.out, "a class without images to measure is named"
    for name in ("predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png", "curves.png"):
        assert (Path("first") / name).is_file(), name
    assert {row["class"] for row in read_rows(Path("first/per_class.csv"))} == set(COLORS)

    evaluated = toast("eval", "--run", "first", "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["test"] == json.loads(Path("first/results.json").read_text())["test"]

    new = tmp_path / "new"
    for number, name in enumerate(("Möwe", "fox", "fox")):
        save(photograph(name, 100 + number), new / f"{number}" / "bild ü.jpg")
    (new / "notes.txt").write_text("not an image")
    (new / "broken.jpg").write_bytes(b"no image")
    done = toast("predict", new, "--run", "first", "--out", "answers.csv")
    assert done.code == 0, done.err
    rows = read_rows(Path("answers.csv"))
    assert len(rows) == 4 and sum(bool(row["error"]) for row in rows) == 1 and "broken.jpg" in done.err

    table = ["datei;tier;split"]
    for number, name in enumerate(("fox", "owl", "Möwe", "bat") * 6):
        color = COLORS.get(name, (20, 160, 60))
        picture = Image.new("RGB", (70, 80), tuple(min(value + number, 255) for value in color))
        save(picture, tmp_path / "more" / f"{number}.png")
        table.append(f"{number}.png;{name};{'test' if number >= 20 else 'train'}")
    (tmp_path / "more" / "labels.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    done = toast(
        *("tune", "--init-from", "first", "--dataset", "table:more/labels.csv", "--output-dir", "second"),
        *("--epochs", "3", "--device", "cpu", "dataset.image_column=datei", "dataset.label_column=tier"),
    )
    assert done.code == 0, done.err
    assert "'bat'" in done.err and "semicolons" in done.err and "first" in done.err

    done = toast("predict", new, photographs, "--run", "second", "--out", "again.csv", "--probabilities")
    assert done.code == 0, done.err
    answers = {row["path"]: row for row in read_rows(Path("again.csv")) if not row["error"]}
    assert len(answers) == 3 + 2 * 19 + 1 and "p_bat" in next(iter(answers.values()))

    done = toast("export", "--run", "second", "--format", "onnx", "--out", "exported/model.onnx")
    assert done.code == 0, done.err
    (tmp_path / "blocked").mkdir()
    for package in ("torch", "toast_cli"):
        (tmp_path / "blocked" / f"{package}.py").write_text("raise SystemError('imported')")
    ran = subprocess.run(
        [sys.executable, "exported/infer.py", *answers, str(photographs / "fox" / "cut.jpg"), "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert ran.returncode == 1 and "cut.jpg" in ran.stderr and "imported" not in ran.stderr, ran.stderr
    for line in map(json.loads, ran.stdout.splitlines()):
        expected = {name: float(answers[line["file"]][f"p_{name}"]) for name in (*COLORS, "bat")}
        assert line["scores"] == pytest.approx(expected, abs=1e-3), line["file"]
