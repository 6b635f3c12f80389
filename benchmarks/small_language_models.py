"""Train two small language models for benchmarks, on text that every installation has.

    python benchmarks/small_language_models.py --out runs/small-models

`code` reads the standard library's source without docstrings; `prose` reads docstrings of torch, transformers and
numpy without their first lines. Neither sees the first lines of the standard library's docstrings, which are the
answers of benchmarks/language_methods.py. Each has a byte-level BPE of its own. A model that is there is not trained
again.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
SPECIALS = ["<pad>", "<s>", "</s>"]
WINDOW = 256
"""Tokens of a sequence in training. The models read up to twice as many."""
SHAPES: dict[str, dict[str, Any]] = {
    "code": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "tie_word_embeddings": False},
    "prose": {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 8, "num_key_value_heads": 2},
}


def read_sources(folders: list[Path]) -> Iterator[ast.Module]:
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            if SKIPPED & set(file.relative_to(folder).parts):
                continue
            try:
                yield ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError):
                continue


def read_code() -> Iterator[str]:
    """Yield the standard library's modules without docstrings and comments."""
    for tree in read_sources([Path(sysconfig.get_paths()["stdlib"])]):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        yield ast.unparse(tree)


def read_prose() -> Iterator[str]:
    """Yield docstrings of some packages, each without its first line."""
    places = [find_spec(name) for name in ("torch", "transformers", "numpy")]
    folders = [Path(place.origin).parent for place in places if place is not None and place.origin is not None]
    for tree in read_sources(folders):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = (ast.get_docstring(node) or "").partition("\n")[2].strip()
                if len(text) > 100:
                    yield text


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2 * WINDOW
    )


def train_model(name: str, folder: Path, steps: int, characters: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    texts = list(read_code() if name == "code" else read_prose())
    random.Random(0).shuffle(texts)
    kept, total = [], 0
    for text in texts:
        kept.append(text)
        total += len(text)
        if total > characters:
            break
    tokenizer = train_tokenizer(kept, vocabulary)
    tokens: list[int] = []
    for text in kept:
        tokens += [1, *tokenizer(text, verbose=False)["input_ids"], 2]
    data = torch.tensor(tokens[: len(tokens) // WINDOW * WINDOW]).view(-1, WINDOW)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        max_position_embeddings=2 * WINDOW,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{"tie_word_embeddings": True, **SHAPES[name]},
    )
    model = LlamaForCausalLM(config).train()
    print(f"{name}: {len(data):,} sequences, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05, betas=(0.9, 0.95))
    batch, started, average = 8, time.perf_counter(), math.nan
    order = torch.cat([torch.randperm(len(data)) for _ in range(-(-steps * batch // len(data)))])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = data[order[step * batch : (step + 1) * batch]]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if math.isnan(average) else 0.95 * average + 0.05 * loss.item()
        if step % 100 == 99:
            print(f"  step {step + 1}: loss {average:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    figures = {"steps": steps, "loss": average, "tokens": steps * batch * WINDOW, "characters": total}
    (folder / "training.json").write_text(json.dumps(figures), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--characters", type=int, default=4_000_000, help="text to read at most")
    parser.add_argument("--vocabulary", type=int, default=512)
    given = parser.parse_args()
    for name in SHAPES:
        if not (given.out / name / "training.json").is_file():
            train_model(name, given.out / name, given.steps, given.characters, given.vocabulary)


if __name__ == "__main__":
    main()
