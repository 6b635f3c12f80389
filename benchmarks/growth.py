"""How the cost of two passes grows with the work, side by side with one pass: figures and a table.

    python benchmarks/growth.py --out docs/reports/performance
    python benchmarks/growth.py --only batch width --repeats 5 --out somewhere

A ViT-Ti (width 192, 12 blocks, 224 pixels, batch 4, random weights) grows along one axis at a time; a LLaMA in the
length of its text; a whole run of the demo in images and in processes. Inference is measured against the plain model
with a head, a training step against LoRA (PEFT, rank 4), in turns; FLOPs are PyTorch's own count. Medians are shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import timm
import torch
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, StrMethodFormatter
from speed import flops, in_turns
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import toast_cli

CLASSES = 200
SHAPE: dict[str, Any] = {"img_size": 224, "embed_dim": 192, "depth": 12, "num_heads": 3}
AXES: dict[str, list[int]] = {
    "batch": [1, 2, 4, 8, 16],
    "image side": [64, 128, 224, 320],
    "depth": [3, 6, 12, 24],
    "width": [96, 192, 384, 768],
    "sequence": [32, 128, 512],
}
RUNS: dict[str, list[int]] = {"images": [500, 1000, 2000, 4000], "processes": [1, 2]}
UNITS = {
    "batch": "images in a batch",
    "image side": "side of an image, pixels",
    "depth": "depth, blocks",
    "width": "width, channels",
    "sequence": "length of a text, tokens",
    "images": "training images of a whole run",
    "processes": "processes of a whole run",
}


@dataclass
class Point:
    """What one way costs at one size."""

    axis: str
    size: int
    way: str
    seconds: float
    flops: int | None = None


def vit(axis: str, size: int) -> tuple[Callable[[], nn.Module], Any, torch.Tensor]:
    """How to make the ViT of that size, its input, and labels."""
    shape, batch = dict(SHAPE), 4
    if axis == "batch":
        batch = size
    elif axis == "width":
        shape |= {"embed_dim": size, "num_heads": max(1, size // 64)}
    else:
        shape["img_size" if axis == "image side" else axis] = size
    side = shape["img_size"]
    images = torch.randn(batch, 3, side, side)
    return lambda: timm.create_model("vit_tiny_patch16_224", **shape), images, torch.randint(CLASSES, (batch,))


def llama(size: int) -> tuple[Callable[[], nn.Module], Any, torch.Tensor]:
    """How to make the language model, one text of that length, and the same text to learn."""
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4
    )
    tokens = torch.randint(3, 2000, (1, size))
    return lambda: LlamaForCausalLM(config), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens


def steps(make: Callable[[], nn.Module], inputs: Any, labels: torch.Tensor, classes: int | None) -> Iterator[Any]:
    """Every way by name, as a call: plain and TOAST looking, LoRA and TOAST learning."""
    plain = "linear" if classes else "full"
    for way, method, learns in (
        ("plain", plain, False),
        ("TOAST", "toast", False),
        ("LoRA, training", "lora", True),
        ("TOAST, training", "toast", True),
    ):
        model = toast_cli.steer(make(), classes, method).train(learns)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)

        def step(model: Any = model, learns: bool = learns, optimizer: Any = optimizer) -> None:
            with torch.set_grad_enabled(learns):
                logits = model(inputs)
                if learns:
                    F.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
                    optimizer.step()
                    optimizer.zero_grad()

        yield way, step


def measured(axis: str, size: int, repeats: int) -> list[Point]:
    """All ways at one size of one axis."""
    torch.manual_seed(0)
    made = llama(size) if axis == "sequence" else vit(axis, size)
    ways = dict(steps(*made, None if axis == "sequence" else CLASSES))
    seconds = in_turns(ways, repeats, "cpu")
    return [Point(axis, size, way, each, flops(ways[way])) for way, each in seconds.items()]


def whole_runs(axis: str, size: int) -> list[Point]:
    """`toast tune` on the demo, three epochs without a test: the seconds of the run itself."""
    found = []
    images = size if axis == "images" else 1000
    for way, more in {"TOAST": [], "TOAST, first pass cached": ["training.cache=true", "images.augment=none"]}.items():
        with tempfile.TemporaryDirectory() as folder:
            launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(size)] if axis == "processes" else []
            fields = [f"dataset.train_images={images}", "dataset.val_images=100", "training.epochs=3", "test=false"]
            words = ["tune", "--device", "cpu", "--output-dir", f"{folder}/run", *fields, *more]
            cached = ["env", f"TOAST_CACHE_DIR={folder}/cache", "OMP_NUM_THREADS=1", sys.executable]
            command = [*cached, *launcher, "-m", "toast_cli", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            results = json.loads(Path(f"{folder}/run/results.json").read_text(encoding="utf-8"))
            found.append(Point(axis, size, way, results["seconds"]))
    return found


def draw(points: list[Point], out: Path) -> None:
    """A panel an axis: seconds of every way, both on logarithmic scales."""
    axes = list(dict.fromkeys(point.axis for point in points))
    columns = min(4, len(axes))
    rows = -(-len(axes) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 3.2 * rows), squeeze=False)
    for panel in panels.flat[len(axes) :]:
        panel.remove()
    for axis, panel in zip(axes, panels.flat, strict=False):
        for number, way in enumerate(dict.fromkeys(point.way for point in points if point.axis == axis)):
            own = [point for point in points if point.axis == axis and point.way == way]
            panel.plot([each.size for each in own], [each.seconds for each in own], "o-", color=f"C{number}", label=way)
        panel.set(xscale="log", yscale="log", xlabel=UNITS[axis], ylabel="seconds")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.set_xticks(sizes := sorted({point.size for point in points if point.axis == axis}), labels=sizes)
        panel.minorticks_off()
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "growth.png", dpi=90)


def table(points: list[Point]) -> Iterator[str]:
    """Ratios of TOAST to its measure at every size: time, then FLOPs."""
    yield "| axis | size | inference, time | FLOPs | training step, time | FLOPs |\n|---|---|---|---|---|---|"
    sizes = dict.fromkeys((point.axis, point.size) for point in points if point.flops is not None)
    for axis, size in sizes:
        at = {point.way: point for point in points if (point.axis, point.size) == (axis, size)}
        cells = []
        for ours, theirs in (("TOAST", "plain"), ("TOAST, training", "LoRA, training")):
            counted, theirs_counted = at[ours].flops or 0, at[theirs].flops or 1
            cells += [f"{at[ours].seconds / at[theirs].seconds:.2f} ×", f"{counted / theirs_counted:.2f} ×"]
        yield f"| {axis} | {size} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*AXES, *RUNS], default=[*AXES, *RUNS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="folder for growth.png and growth.json")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for axis in given.only:
        for size in (AXES | RUNS)[axis]:
            points += measured(axis, size, given.repeats) if axis in AXES else whole_runs(axis, size)
            print(f"{axis} {size}", file=sys.stderr, flush=True)
    (given.out / "growth.json").write_text(json.dumps([vars(point) for point in points], indent=1) + "\n")
    draw(points, given.out)
    for line in table(points):
        print(line)
    for point in points:
        if point.flops is None:
            print(f"{point.axis} {point.size}, {point.way}: {point.seconds:.1f} s")


if __name__ == "__main__":
    main()
