"""Throughput of `toast serve`: requests at the same time against one after the other, in one run.

    python benchmarks/serving.py --requests 16 --tokens 48 --rounds 2

A random LLaMA of about 100 million parameters is steered by TOAST and served in a process of its own. In every round,
the same requests are sent one after the other and then all at once, with the client of OpenAI. Medians of the new
tokens per second and their ratio are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import openai
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toast_cli.api import steer


def write_run(folder: Path, width: int, layers: int, heads: int) -> tuple[Path, int]:
    """Write a random model, its tokenizer of bytes and a random adapter. Return the adapter and the model's size."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder / "model"
    )
    steered = steer(AutoModelForCausalLM.from_pretrained(folder / "model"))
    steered.save(folder / "run")
    return folder / "run", sum(weight.numel() for weight in model.parameters())


def start_server(run: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server and wait until it is ready. Return its process and its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "toast_cli", "serve", "--run", str(run), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
            if response.status == 200:
                return server, f"http://127.0.0.1:{port}/v1"
        time.sleep(0.2)
    raise SystemExit("The server has ended.")


async def measure(url: str, requests: int, tokens: int, at_once: bool) -> float:
    """Return the new tokens per second of some requests."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=3600) as client:

        async def ask(number: int) -> int:
            prompt = f"Request {number}: write a few words about birds, please."
            done = await client.completions.create(model="run", prompt=prompt, max_tokens=tokens, temperature=0)
            assert done.usage is not None
            return done.usage.completion_tokens

        began = time.perf_counter()
        if at_once:
            counts = await asyncio.gather(*map(ask, range(requests)))
        else:
            counts = [await ask(number) for number in range(requests)]
        return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"requests": 16, "tokens": 48, "rounds": 2, "width": 768, "layers": 12, "heads": 12}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run, size = write_run(Path(folder), given.width, given.layers, given.heads)
        server, url = start_server(run)
        try:
            asyncio.run(measure(url, 2, 4, at_once=True))  # warms up
            speeds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(given.rounds):
                for at_once, measured in speeds.items():
                    measured.append(asyncio.run(measure(url, given.requests, given.tokens, at_once)))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    one, many = statistics.median(speeds[False]), statistics.median(speeds[True])
    print(f"{size / 1e6:.0f} million parameters, {given.requests} requests of {given.tokens} new tokens")
    print(f"one after the other: {one:.1f} tokens/s; at once: {many:.1f} tokens/s ({many / one:.2f} ×)")


if __name__ == "__main__":
    main()
