"""Where the time of two passes goes: every part of TOAST's inference against one whole pass of the plain backbone.

    python benchmarks/gap.py --backbone vit_b16 --batch 8 --methods full late early

Parts are timed inside the very calls that inference makes, feedback folded, in turns with the plain model; medians and
PyTorch's own count of FLOPs are printed, both as shares of the plain pass. What of the sum is above the plain pass is
the gap, and which part it lies in is what this is for. A part that is not there was shared with the first pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from speed import METHODS, build_random_model, flops

from toast_cli.model.model import fold_model


class Parts:
    """What each part of a forward pass took, by name, in the order of their first call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, int] = defaultdict(int)
        self.counting = self.inside = False

    def of(self, name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time, or its FLOPs, noted; calls from within another part belong to that one."""

        def noted(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return function(*arguments, **named)
            self.inside, part, out = True, name if isinstance(name, str) else name(), []
            if self.counting:
                self.flops[part] += flops(lambda: out.append(function(*arguments, **named)))
            else:
                began = time.perf_counter()
                out.append(function(*arguments, **named))
                self.seconds[part] += time.perf_counter() - began
            self.inside = False
            return out[0]

        return noted


@contextmanager
def noting(model: Any, parts: Parts) -> Iterator[None]:
    """While it lasts, the parts of the model's forward passes are noted."""
    backbone, steering = model.backbone, model.adapted.steering
    sent = False

    def pass_of() -> str:
        return "second pass, all but its last level" if sent else "first pass and what both share"

    def send_signals(*arguments: Any) -> Any:
        nonlocal sent
        sent = True
        return compute(*arguments)

    compute = steering.compute_signals_fast
    wrapped = {
        (backbone, "enter"): parts.of("embedding", backbone.enter),
        (backbone, "run"): parts.of(pass_of, backbone.run),
        (backbone, "keep"): parts.of("what both passes keep", backbone.keep),
        (backbone, "leave"): parts.of("end of the first pass", backbone.leave),
        (backbone, "tap"): parts.of("end of the first pass", backbone.tap),
        (steering, "compute_signals_fast"): parts.of("select and feed back", send_signals),
        (backbone, "conclude"): parts.of("last level of the second pass, and pooling", backbone.conclude),
    }
    patches = [patch.object(owner, name, new) for (owner, name), new in wrapped.items()]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b16", help="a name; its weights are random")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["full", "late", "early"])
    for name, default in (("batch", 8), ("classes", 200), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    plain = build_random_model(given.backbone, "linear", given.classes, "cpu").eval()
    images = plain.backbone.example(given.batch)
    models = {
        name: fold_model(build_random_model(given.backbone, METHODS[name], given.classes, "cpu").eval())
        for name in given.methods
    }
    found: dict[str, list[Parts]] = {name: [] for name in models}
    whole = []
    for repeat in range(given.repeats + 1):
        began = time.perf_counter()
        plain(images)
        took = time.perf_counter() - began
        for name, model in models.items():
            parts = Parts()
            with noting(model, parts):
                model(images)
            if repeat:  # the first of each warms up
                found[name].append(parts)
        if repeat:
            whole.append(took)
    plain_seconds, plain_flops = statistics.median(whole), flops(lambda: plain(images))
    print(f"{given.backbone}, batch {given.batch}: the plain model {1000 * plain_seconds:.0f} ms")
    for name, model in models.items():
        counted = Parts()
        counted.counting = True
        with noting(model, counted):
            model(images)
        print(f"\n| {name} feedback | time | FLOPs |\n|---|---|---|")
        total = 0.0
        for part in counted.flops:
            seconds = statistics.median(parts.seconds[part] for parts in found[name])
            total += seconds
            print(f"| {part} | {seconds / plain_seconds:.3f} | {counted.flops[part] / plain_flops:.3f} |")
        print(f"| together | {total / plain_seconds:.3f} | {sum(counted.flops.values()) / plain_flops:.3f} |")


if __name__ == "__main__":
    main()
