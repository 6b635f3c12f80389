"""Memory, time and loss of a language model in 8 and 4 bits: each in a process of its own, on random weights.

    python benchmarks/quantized_backbones.py --work DIR

A LLaMA of 57 million parameters (113 MB in bfloat16) is written to DIR. Every process loads it, reports its weights and
the peak of its resident memory, and trains TOAST for a few steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
KINDS = ("none", "int8", "int4", "nf4")
TOKENS, STEPS = 128, 4


def read_status(field: str) -> int:
    """Return a size in the status of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class PeakSampler(threading.Thread):
    """Samples the memory that only this process holds: the pages of a file that is read are left out."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = read_status("RssAnon")
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until the end."""
        while not self.ended.wait(0.001):
            self.peak = max(self.peak, read_status("RssAnon"))

    def stop(self) -> int:
        """Return what the peak was above the memory at the start, in bytes."""
        self.ended.set()
        self.join()
        return self.peak - self.before


def write_model(folder: Path) -> None:
    """Write a model with random weights, large enough that every layer matters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.04))
    model.to(torch.bfloat16).save_pretrained(folder)


def measure(folder: Path, kind: str, method: str) -> dict[str, Any]:
    """Load the model in a format and train a few steps."""
    import torch

    from toast_cli.model.model import build_model
    from toast_cli.recipe.parse import build_recipe

    torch.set_num_threads(1)
    raw: dict[str, Any] = {
        "backbone": {"name": f"llama:{folder}", "quantize": None if kind == "none" else kind},
        "dataset": "text:none",
        "method": method,
    }
    recipe = build_recipe(raw, {}, origin="the benchmark")
    if kind != "none":  # what the library itself needs is not counted
        from toast_cli.backbones.quantized_linear import QuantizedLinear

        QuantizedLinear.from_linear(torch.nn.Linear(64, 64), kind)(torch.zeros(1, 64))  # type: ignore[arg-type]
    card = recipe.plugins.backbone
    import_module("toast_llama.loading")  # nor is what transformers needs
    Path("/proc/self/clear_refs").write_text("5")
    before, sampler = read_status("VmRSS"), PeakSampler()
    sampler.start()
    started = time.perf_counter()
    backbone = card.build(recipe.backbone)
    seconds = time.perf_counter() - started
    own, loading = sampler.stop(), read_status("VmHWM") - before
    module = backbone.module
    weights = sum({id(tensor): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}.values())
    del backbone, module
    model = build_model(recipe, ())
    ids = torch.randint(4096, (4, TOKENS), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    inputs = model.objective.inputs(batch)
    with torch.no_grad():
        loss = float(model.objective.loss(model(inputs), batch)) / (4 * (TOKENS - 1))
    optimizer = torch.optim.AdamW(list(model.get_trained_parameters().values()), lr=1e-5)
    Path("/proc/self/clear_refs").write_text("5")
    sampler = PeakSampler()
    sampler.start()
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        model.objective.loss(model(inputs), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    step = sampler.stop()
    return {
        "kind": kind,
        "method": method,
        "weights_mb": weights / 1e6,
        "loading_peak_mb": loading / 1e6,
        "loading_peak_without_file_mb": own / 1e6,
        "loading_seconds": seconds,
        "training_peak_mb": read_status("VmHWM") / 1e6,
        "step_peak_mb": step / 1e6,
        "step_seconds": min(times),
        "loss": loss,
    }


def main() -> None:
    """Measure every format in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--method", default="toast-lite")
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    folder = options.work / "model"
    if options.kind is not None:
        print(json.dumps(measure(folder, options.kind, options.method)))
        return
    if not folder.exists():
        write_model(folder)
    for kind in KINDS:
        command = [sys.executable, __file__, "--work", str(options.work), "--method", options.method, "--kind", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
