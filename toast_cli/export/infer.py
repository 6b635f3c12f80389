"""Classify images with an export of toast, without toast.

    python infer.py IMAGE... [--model MODEL] [--top 5] [--json]

It needs numpy, pillow and what runs the model: onnxruntime for FILE.onnx, openvino for FILE.xml, timm for a folder of
timm. An image may be a file or a folder. The model is by default the only one next to this script. Class names and
preprocessing are in the metadata of the model. HEIC images need pillow-heif.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from toast_cli.data.images.decode import HEADER_BYTES, explain_first_bytes
from toast_cli.data.images.file_formats import HEIF_SUFFIXES, register_heif
from toast_cli.data.images.resize import compute_new_size, locate_center, resize_and_crop_image
from toast_cli.data.images.upright import to_upright_rgb

METADATA_NAMES = ("labels", "preprocessing", "outputs", "normalization", "resizing")
"""Entries in the metadata of a model that this script reads."""


def open_onnx(path: Path) -> tuple[dict[str, str], Callable[[np.ndarray], np.ndarray]]:
    """Return the metadata of an ONNX file, and the function from a batch of images to its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    dtype = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    metadata = session.get_modelmeta().custom_metadata_map
    return metadata, lambda batch: session.run(["logits"], {"image": batch.astype(dtype)})[0]


def open_openvino(path: Path) -> tuple[dict[str, str], Callable[[np.ndarray], np.ndarray]]:
    """Return the metadata of a model of OpenVINO, and the function from a batch of images to its outputs."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    metadata = {name: model.get_rt_info(["toast", name]).astype(str) for name in METADATA_NAMES}
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return metadata, lambda batch: compiled({"image": batch})["logits"]


def open_timm(folder: Path) -> tuple[dict[str, str], Callable[[np.ndarray], np.ndarray]]:
    """Return the metadata of a folder of timm, and the function from a batch of images to its outputs."""
    import timm
    import torch

    metadata = json.loads((folder / "config.json").read_text(encoding="utf-8"))["toast"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(torch.from_numpy(batch)).numpy()
        return logits

    return metadata, run


OPENERS = {".onnx": open_onnx, ".xml": open_openvino, "": open_timm}
"""How a model is opened, by the suffix of its file; a folder has none."""


class Classifier:
    """An exported model, with the preprocessing and the class names in its metadata."""

    def __init__(self, path: Path) -> None:
        suffix = "" if path.is_dir() else path.suffix
        if suffix not in OPENERS:
            sys.exit(f"{path} is not a model that this script runs: FILE.onnx, FILE.xml, or a folder of timm.")
        try:
            metadata, self.run = OPENERS[suffix](path)
        except ImportError as error:
            sys.exit(f"{path} needs a package that is not installed. Run: pip install {error.name}")
        self.labels: list[str] = json.loads(metadata["labels"])
        self.preprocessing: dict[str, Any] = json.loads(metadata["preprocessing"])
        self.outputs: dict[str, Any] = json.loads(metadata["outputs"])
        self.normalizes = metadata["normalization"].startswith("inside")
        self.resizes = metadata.get("resizing", "").startswith("inside")

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return an image of any mode as the input of the model, `[3, H, W]`."""
        given = self.preprocessing
        size = (given["image_size"][0], given["image_size"][1])
        upright = to_upright_rgb(image, given["white"])
        if self.resizes:
            return np.asarray(upright, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        rule, rule_size = given["resize_rule"], (given["resize_size"][0], given["resize_size"][1])
        place = locate_center(compute_new_size(rule, rule_size, upright.height, upright.width), size)
        mean, std = (np.array(given[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
        fill = tuple(round(255 * float(value)) for value in given["mean"])
        resample = Image.Resampling[given["interpolation"].upper()]
        seen = resize_and_crop_image(upright, place, size, resample, (fill[0], fill[1], fill[2]))
        pixels = np.asarray(seen, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        return pixels if self.normalizes else (pixels - mean) / std

    def __call__(self, path: str | Path) -> np.ndarray:
        """Return the score of every class for an image file, `[classes]`: its probability; or the numbers."""
        with Image.open(path) as image:
            batch = self.prepare(image)[None]
        outputs = self.run(batch)[0].astype(np.float64)
        if self.outputs["activation"] == "none":
            return outputs
        if self.outputs["activation"] == "sigmoid":
            return 1 / (1 + np.exp(-outputs))
        powers = np.exp(outputs - outputs.max())
        return powers / powers.sum()

    def select(self, scores: np.ndarray, top: int) -> list[tuple[str, float]]:
        """Return what to show: the `top` classes, the labels from their thresholds on, or the numbers."""
        named = [(label, float(score)) for label, score in zip(self.labels, scores, strict=True)]
        if self.outputs["activation"] == "none":
            return named
        if "thresholds" in self.outputs:
            named = [each for each, least in zip(named, self.outputs["thresholds"], strict=True) if each[1] >= least]
        return sorted(named, key=lambda each: -each[1])[:top]


def list_files(paths: list[Path]) -> list[Path]:
    """Return the files, and for a folder all files below it that have the suffix of an image, HEIC among them."""
    known = {*Image.registered_extensions(), *HEIF_SUFFIXES}
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = [file for file in sorted(path.rglob("*")) if file.is_file()]
        images = [file for file in below if file.suffix.lower() in known]
        if len(images) < len(below):
            others = [file.name for file in below if file not in images]
            print(f"{path}: not read, no image suffix: {', '.join(others)}", file=sys.stderr)
        found += images
    return found


def explain_failure(file: Path, error: Exception) -> str:
    """Return why a file could not be classified."""
    if isinstance(error, UnidentifiedImageError):
        with file.open("rb") as stream:
            return explain_first_bytes(stream.read(HEADER_BYTES))
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def find_model() -> Path:
    """Return the only model next to this script: a file, or the folder itself."""
    folder = Path(__file__).resolve().parent
    found = [file for file in sorted(folder.iterdir()) if file.suffix in OPENERS and file.is_file() and file.suffix]
    found += [folder] if (folder / "config.json").is_file() else []
    if len(found) != 1:
        sys.exit(f"{len(found)} models are next to {Path(__file__).name}. Choose one with --model.")
    return found[0]


def classify_files() -> int:
    """Print the classes of the images; return 1 if one could not be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file or folder")
    parser.add_argument("--model", type=Path, help="model; default: the only one next to this script")
    parser.add_argument("--top", type=int, default=5, help="number of classes per image")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, with every class")
    given = parser.parse_args()
    register_heif()
    classifier, broken = Classifier(given.model or find_model()), 0
    for file in list_files(given.images):
        try:
            scores = classifier(file)
        except Exception as error:  # Pillow's decoders raise arbitrary exceptions on damaged files
            print(f"{file}: {explain_failure(file, error)}", file=sys.stderr)
            broken += 1
            continue
        if given.json:
            named = {label: float(score) for label, score in zip(classifier.labels, scores, strict=True)}
            print(json.dumps({"file": str(file), "scores": named}))
        else:
            print(
                str(file), *(f"{label} {score:.4g}" for label, score in classifier.select(scores, given.top)), sep="\t"
            )
    sys.stdout.flush()  # a closed pipe is noticed here, and not when the interpreter ends
    return 1 if broken else 0


def run_script() -> int:
    """Run the script and return its exit code. A reader that has read enough, such as `head`, ends it quietly."""
    try:
        return classify_files()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(run_script())
