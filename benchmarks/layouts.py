"""What torch.compile and another memory layout would gain, one pass and two, side by side in one run.

    python benchmarks/layouts.py --backbone vit_s16 --batch 4
    python benchmarks/layouts.py --backbone convnext_t --batch 4

Signals are put into the frozen network's own attention, which torch.compile cannot follow, so each MLP is compiled, in
which nothing is steered. `channels_last` is for networks that convolve. Weights are random; medians in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from speed import build_random_model, in_turns

from toast_cli.model.model import Model


def compiled(model: Model) -> Model:
    """With every MLP compiled, in place."""
    for name, module in model.backbone.module.named_modules():
        if name.endswith(".mlp"):
            module.compile()
    return model


def channels_last(model: Model) -> Model:
    """With every convolution's weights laid out by pixels, in place."""
    return model.to(memory_format=torch.channels_last)


CHANGES: dict[str, Callable[[Model], Model]] = {"as it is": lambda model: model, "MLPs compiled": compiled}
CONVOLVES = {"channels last": channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_s16", help="a name; its weights are random")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    changes = CHANGES | (CONVOLVES if given.backbone.startswith("convnext") else {})
    ways: dict[str, Callable[[], Any]] = {}
    for method in ("linear", "toast"):
        for change, apply in changes.items():
            model = apply(build_random_model(given.backbone, method, 100, given.device).eval())
            images = model.backbone.example(given.batch).to(given.device)
            if change in CONVOLVES:
                images = images.to(memory_format=torch.channels_last)
            ways[f"{method}, {change}"] = partial(model, images)
    with torch.no_grad():
        seconds = in_turns(ways, given.repeats, given.device)
    print(f"{given.backbone}, batch {given.batch}, inference, {torch.get_num_threads()} threads")
    for way, each in seconds.items():
        print(f"{way}: {1000 * each:.0f} ms, {each / seconds[way.split(',')[0] + ', as it is']:.2f} × as it is")


if __name__ == "__main__":
    main()
