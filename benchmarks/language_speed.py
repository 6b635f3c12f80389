"""Compare the speed of two source trees on texts: tokenizing and batching, a training step, and generation.

    git worktree add ../before COMMIT
    python benchmarks/language_speed.py --against ../before

A small LLaMA with random weights and a tokenizer of bytes is made. Each tree has a process of its own, and the two take
turns: a round measures every task once in both, in alternating order. The table has the median time of each tree, and
the median, least and largest ratio of the rounds (this tree / the other), so that load of the machine counts for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS = ("tokenize and batch", "step, LoRA", "step, TOAST", "generate, LoRA", "generate, TOAST")
HERE = Path(__file__).resolve().parents[1]
TEXTS, STEP_TOKENS, NEW_TOKENS = 400, 128, 64


def make_files(folder: Path) -> None:
    """Write a model, its tokenizer, and texts into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*specials, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")
    entries = [
        {
            "instruction": f"Explain number {i}. " + "Use short words. " * (i % 9),
            "output": "It is a number. " * (i % 7 + 1),
        }
        for i in range(TEXTS)
    ]
    (folder / "texts.json").write_text(json.dumps(entries), encoding="utf-8")


def build_tasks(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is measured, with the toast that this process imports."""
    import torch

    try:
        from toast_cli.data.text.turns import Turn
    except ImportError:  # trees before conversations of any format
        from toast_cli.data.text.conversation_split import Turn  # type: ignore[attr-defined, no-redef]
    from toast_cli.model.generation import TextGenerator
    from toast_cli.recipe.parse import build_recipe
    from toast_cli.training.optimization import make_optimizer
    from toast_cli.training.session import prepare_session
    from toast_cli.training.step import TrainingStep

    def prepare(method: str) -> Any:
        raw = {
            "backbone": f"llama:{folder / 'model'}",
            "dataset": {"name": "alpaca", "path": str(folder / "texts.json"), "template": "plain", "max_tokens": 512},
            "method": method,
            "task": "language",
            "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-4, "workers": 0},
            "device": "cpu",
        }
        return prepare_session(build_recipe(raw, {}, origin="this benchmark"))

    sessions = {method: prepare(method) for method in ("lora", "toast")}
    make_loader = getattr(sessions["lora"], "make_loader", None) or sessions["lora"].batches
    ids = torch.randint(3, 250, (4, STEP_TOKENS), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def make_step(method: str) -> Callable[[], object]:
        model = sessions[method].model
        step, optimizer = TrainingStep(model), make_optimizer(model, sessions[method].recipe.training)

        def take_steps() -> None:
            model.train()
            for _ in range(4):
                optimizer.zero_grad()
                (step(batch).loss / ids.numel()).backward()
                optimizer.step()

        return take_steps

    def generate(method: str) -> Callable[[], object]:
        model = sessions[method].model
        writer = TextGenerator(model, "plain")
        limits: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}

        def answer() -> object:
            model.eval()
            return writer.answer([Turn("user", "Say something.")], **limits)

        return answer

    return dict(
        zip(
            TASKS,
            (
                lambda: sum(1 for _ in make_loader("train", train=True)),
                make_step("lora"),
                make_step("toast"),
                generate("lora"),
                generate("toast"),
            ),
            strict=True,
        )
    )


def work(folder: Path) -> None:
    """Measure the tasks that are named on stdin, and write the seconds to stdout."""
    out, sys.stdout = sys.stdout, sys.stderr
    tasks = build_tasks(folder)
    for task in tasks.values():  # the first call is slower
        task()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        tasks[line.strip()]()
        print(time.perf_counter() - began, file=out, flush=True)


class Tree:
    """A process that measures one source tree."""

    def __init__(self, source: Path, folder: Path, metadata: Path) -> None:
        write_metadata(source, metadata)
        paths = os.pathsep.join(map(str, (metadata, source, source / "plugins")))
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--work", str(folder)],
            env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("A process ended early; its messages are above.")
        return line

    def measure(self, task: str) -> float:
        assert self.process.stdin is not None
        print(task, file=self.process.stdin, flush=True)
        return float(self.read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def write_metadata(source: Path, folder: Path) -> None:
    """Write the package metadata of a source tree, with the entry points of its plugins, as an install does."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "toast_tune-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n", encoding="utf-8")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {where}" for name, where in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="folder of the other source tree")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work)
        return
    if given.against is None:
        parser.error("--against is required")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        trees = [Tree(each.resolve(), folder, folder / key) for key, each in (("own", HERE), ("other", given.against))]
        seconds: dict[str, list[tuple[float, float]]] = {task: [] for task in TASKS}
        for number in range(given.rounds):
            for task in TASKS:
                order = trees if number % 2 == 0 else trees[::-1]
                found = {id(tree): tree.measure(task) for tree in order}
                seconds[task].append((found[id(trees[0])], found[id(trees[1])]))
        for tree in trees:
            tree.close()
    print(f"{given.rounds} rounds; a ratio is this tree / {given.against.name}")
    print("| task | this tree, ms | other, ms | median ratio | least to largest |")
    print("|---|---|---|---|---|")
    for task, pairs in seconds.items():
        own, other = (1000 * statistics.median(each) for each in zip(*pairs, strict=True))
        ratios = [mine / theirs for mine, theirs in pairs]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {task} | {own:.0f} | {other:.0f} | {statistics.median(ratios):.2f} | {spread} |")


if __name__ == "__main__":
    main()
