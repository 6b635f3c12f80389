"""Time, FLOPs and memory of two passes against one, side by side in one run: inference and a training step.

    python benchmarks/speed.py --backbone vit_b16 --batch 8 --repeats 7
    python benchmarks/speed.py --backbone convnext_b --what inference
    python benchmarks/speed.py --backbone dinov3_s16 --image-size 224 --batch 4 --what inference

Inference is measured against the plain backbone with a head of as many classes, a training step against LoRA (PEFT,
rank 4 on q, k, v). Weights are random. All ways take turns; medians are printed, and ratios round by round: the median,
the smallest and the largest. Memory is the highest sum of what the operations of a step hold at a time, gradients
included, beyond what was there before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from toast_cli.data.base import CACHED_KEY
from toast_cli.model.model import Model, build_model, fold_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.feature_cache import (
    CachedStep,
    FilledSlots,
    FirstPassCache,
    compute_first_pass_outputs,
)
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.step import TrainingStep
from toast_cli.utils.tensor_cache import TensorCache

METHODS: dict[str, Any] = {
    "full": "toast",
    "late": {"name": "toast", "feedback": "late"},
    "early": {"name": "toast", "feedback": "early"},
    "lite": "toast-lite",
}


def build_random_model(backbone: str, method: Any, classes: int, device: str, image_size: int | None = None) -> Model:
    """Return a model with random weights everywhere, the feedback path's included."""
    method = {"name": method} if isinstance(method, str) else method
    if method["name"].startswith("toast"):
        method = {**method, "start": "random"}
    described: dict[str, Any] = {"name": backbone, "weights": "none"}
    if image_size is not None:
        described["image_size"] = image_size
    raw = {"backbone": described, "dataset": "demo", "method": method}
    recipe = build_recipe(raw, {}, origin="a benchmark")
    return build_model(recipe, tuple(str(number) for number in range(classes))).to(device)


def _build(given: argparse.Namespace, method: Any) -> Model:
    return build_random_model(given.backbone, method, given.classes, given.device, given.image_size)


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """The median seconds of each."""
    return {name: statistics.median(each) for name, each in in_rounds(ways, repeats, device).items()}


def in_rounds(ways: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """The seconds of each, round by round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:  # the first of each warms up
                times[name].append(time.perf_counter() - began)
    return times


def compare(times: list[float], reference: list[float]) -> str:
    """The median of the rounds' ratios, with the smallest and the largest."""
    ratios = [ours / theirs for ours, theirs in zip(times, reference, strict=True)]
    return f"{statistics.median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f})"


def flops(way: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def inference(given: argparse.Namespace) -> None:
    ways: dict[str, Callable[[], Any]] = {}
    plain = _build(given, "linear").eval()
    images = plain.backbone.example(given.batch).to(given.device)
    ways["plain"] = lambda: plain(images)
    for name in given.methods:
        model = _build(given, METHODS[name]).eval()
        with torch.no_grad():
            before, seen = model(images), model.forward_passes(images)[0]
            model = fold_model(model)
            one_matrix = model(images)
        largest = max(float((other - seen).abs().max()) for other in (before, one_matrix))
        print(f"{name}: the shortcuts change the logits by {largest:.1e} at most")
        ways[name] = partial(model, images)
    with torch.no_grad(), torch.autocast(given.device, torch.bfloat16, enabled=given.bf16):
        seconds = in_rounds(ways, given.repeats, given.device)
        counted = {name: flops(way) for name, way in ways.items()}
    print("\n| inference | ms a batch | time | FLOPs |\n|---|---|---|---|")
    for name, each in seconds.items():
        ratios = f"{compare(each, seconds['plain'])} | {counted[name] / counted['plain']:.2f} ×"
        print(f"| {name} | {1000 * statistics.median(each):.0f} | {ratios} |")


class Training:
    """Steps of one method on the same batch."""

    def __init__(
        self, given: argparse.Namespace, method: Any, batch: dict[str, Any], *, checkpointing: bool = False
    ) -> None:
        self.given, self.batch = given, batch
        model = _build(given, method).train()
        model.backbone.checkpointing = checkpointing
        self.run = TrainingStep(model)
        self.optimizer = make_optimizer(model, TrainingOptions(optimizer="adamw", lr=1e-4))

    def cache(self) -> Training:
        """With the batch's first passes kept in TOAST_CACHE_DIR, and without its images where nothing needs them."""
        model, count = self.run.model, self.given.batch
        assert model.adapted.steering is not None
        with torch.no_grad():
            kept = compute_first_pass_outputs(model, self.batch["image"])
        empty = {name: torch.zeros(tensor.shape[1:], dtype=torch.float16) for name, tensor in kept.items()}
        key, entry_bytes = {"levels": str(model.adapted.steering.levels)}, sum(zeros.nbytes for zeros in empty.values())
        cache = TensorCache("benchmark", key, count, entry_bytes, "the benchmark")
        dtypes = {name: tensor.dtype for name, tensor in kept.items()}
        # Nothing else deletes these entries, so no image that was left out is ever read again.
        passes = FirstPassCache(model, cache, empty, FilledSlots(count), None, dtypes)
        self.run = CachedStep(model, passes, None)
        numbers = torch.arange(count, device=self.given.device)
        self.batch = {**self.batch, "index": numbers, "view": torch.zeros_like(numbers)}
        self()
        if "hidden" in kept:
            self.batch = {CACHED_KEY: numbers, **{name: self.batch[name] for name in ("label", "index", "view")}}
        return self

    def __call__(self) -> None:
        with torch.autocast(self.given.device, torch.bfloat16, enabled=self.given.bf16):
            loss = self.run(self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def peak(self) -> int:
        """Bytes of tensors at the worst moment of a step beyond those there before it."""
        if self.given.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self()
            return torch.cuda.max_memory_allocated() - before
        with Allocations() as allocations:
            self()
        return allocations.peak


class Allocations(TorchDispatchMode):
    """Counts the memory that operations ask for and have not given back, on the CPU, where PyTorch has no counter."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        known = {id(tensor.untyped_storage()) for tensor in tree_leaves((arguments, named)) if torch.is_tensor(tensor)}
        out = function(*arguments, **(named or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor) and id(storage := tensor.untyped_storage()) not in known | self.alive.keys():
                self.alive[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, id(storage))
        return out

    def gone(self, storage: int) -> None:
        self.now -= self.alive.pop(storage)


def training(given: argparse.Namespace) -> None:
    torch.manual_seed(0)
    lora = Training(given, {"name": "lora", "rank": 4}, {})
    images = lora.run.model.backbone.example(given.batch).to(given.device)
    lora.batch = {"image": images, "label": torch.randint(given.classes, (given.batch,), device=given.device)}
    ways = {"LoRA": lora} | {name: Training(given, METHODS[name], lora.batch) for name in given.methods}
    if "full" in given.methods:
        ways["full, checkpointed"] = Training(given, METHODS["full"], lora.batch, checkpointing=True)
    folder = tempfile.TemporaryDirectory()
    os.environ["TOAST_CACHE_DIR"] = folder.name
    for name in sorted({"full", "late"} & set(given.methods)):
        ways[f"{name}, cached"] = Training(given, METHODS[name], lora.batch).cache()
    seconds = in_rounds(dict(ways), given.repeats, given.device)
    peaks = {name: way.peak() for name, way in ways.items()}
    counted = {name: flops(way) for name, way in ways.items()}
    print("\n| training step | ms | time | FLOPs | memory beyond the model | of LoRA's |\n|---|---|---|---|---|---|")
    for name, each in seconds.items():
        ratios = f"{compare(each, seconds['LoRA'])} | {counted[name] / counted['LoRA']:.2f} ×"
        memory = f"{peaks[name] / 1e6:.0f} MB | {peaks[name] / peaks['LoRA']:.2f} ×"
        print(f"| {name} | {1000 * statistics.median(each):.0f} | {ratios} | {memory} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b16", help="a name; its weights are random")
    parser.add_argument("--image-size", type=int, help="side of the images; default: the backbone's own")
    parser.add_argument("--what", choices=["inference", "training", "both"], default="both")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    for name, default in (("batch", 8), ("classes", 200), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under automatic mixed precision")
    given = parser.parse_args()
    print(f"{given.backbone}, batch {given.batch}, {given.classes} classes, {torch.get_num_threads()} threads")
    if given.what != "training":
        inference(given)
    if given.what != "inference":
        training(given)


if __name__ == "__main__":
    main()
