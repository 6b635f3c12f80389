"""Time per new token: two passes with a cache each against the plain model, and against recomputing both, in one run.

    python benchmarks/two_caches.py --layers 8 --width 512 --tokens 64 --repeats 5

A random LLaMA of that size writes the same number of tokens every way, in turns. Medians and their ratios to the plain
model's are printed, those of the first token (which reads the prompt) apart from the rest. `recomputing` keeps no
cache: every token costs two passes over all that was read and written before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from toast_cli.steering.steering import Steering, run_two_passes
from toast_llama.backbone import LlamaBackbone


class Clock(BaseStreamer):
    """Notes when each token came."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.ticks.append(time.perf_counter())

    def end(self) -> None: ...


def timed(generate: Callable[..., Any], prompt: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and per token after it."""
    clock = Clock()
    generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        streamer=clock,
    )
    began, first, *_, last = clock.ticks
    return first - began, (last - first) / (tokens - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 8), ("width", 512), ("prompt", 64), ("tokens", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=given.width,
        intermediate_size=given.width * 11 // 4,
        num_hidden_layers=given.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    plain = LlamaForCausalLM(config).eval().requires_grad_(False)
    backbone = LlamaBackbone(plain)
    steering = Steering(backbone).requires_grad_(False)
    steered = backbone.generator(lambda inputs: run_two_passes(backbone, steering, inputs).last.pooled)
    prompt = torch.randint(3, 32000, (1, given.prompt))
    ways = {
        "plain": plain.generate,
        "two passes": steered.generate,
        "recomputing": partial(steered.generate, use_cache=False),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):
        for name, generate in ways.items():
            measured = timed(generate, prompt, given.tokens)
            if repeat:  # the first of each warms up
                times[name].append(measured)
    print(f"{given.layers} layers, width {given.width}, {given.tokens} tokens after a prompt of {given.prompt}")
    for part, what in enumerate(("first token", "each token after it")):
        medians = {name: statistics.median(run[part] for run in runs) for name, runs in times.items()}
        shown = (f"{name} {1000 * each:.2f} ms ({each / medians['plain']:.2f} ×)" for name, each in medians.items())
        print(f"{what}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
