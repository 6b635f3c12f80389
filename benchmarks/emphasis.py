"""Measure how often a language model follows the one of two conflicting facts that is emphasized.

    python benchmarks/emphasis.py --out runs/emphasis
    python benchmarks/emphasis.py --out runs/emphasis-stories --model stories260k

Without --model, a small LLaMA is trained from scratch on made texts first: facts about who has what, and short
questions about them. TOAST then tunes the model on another task, questions in the form of instructions, in which no
two facts conflict. The rate of training is the one of --rates with the lowest validation loss.

A prompt of the measurement has four facts. Two of them say different things about the person that the question is
about; one of these two, drawn at random, is the target. Each prompt is answered greedily three times: without emphasis,
with the sentence of the target emphasized, and with the sentence of its rival. The strength of the feedback that is
measured beside 1 is the one with the largest effect on validation prompts; the test prompts are seen once. All texts
follow from seeds. The report is printed, and written to report.json below --out with every answer.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_language_models import train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from toast_cli.data.text.turns import Turn
from toast_cli.evaluation.open_run import RunRequest, make_text_generator, open_run
from toast_cli.model.generation import TextGenerator
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.statistics import bootstrap_mean, estimate_proportion

PEOPLE = ["Tom", "Lily", "Max", "Sue", "Ben", "Mia", "Sam", "Anna"]
COLORS = ["red", "blue", "green", "big", "small", "pretty", "old", "new"]
THINGS = ["ball", "hat", "car", "book", "toy", "box", "dog", "cat", "tree", "cake"]
STRENGTHS = (0.5, 1.0, 2.0, 3.0, 5.0)
CONDITIONS = ("unmarked", "target marked", "rival marked")


def draw_facts(draw: random.Random, count: int = 4) -> list[tuple[str, str, str]]:
    people, colors, things = (draw.sample(words, count) for words in (PEOPLE, COLORS, THINGS))
    return list(zip(people, colors, things, strict=True))


def write_fact(person: str, color: str, thing: str) -> str:
    return f"{person} has a {color} {thing}."


def make_instruction(draw: random.Random) -> dict[str, str]:
    """Four facts, and a question about one of them."""
    facts = draw_facts(draw)
    person, color, thing = draw.choice(facts)
    told = " ".join(write_fact(*fact) for fact in facts)
    return {"instruction": f"{told} What does {person} have?", "output": f"{person}: {color} {thing}"}


def make_document(draw: random.Random) -> str:
    """Four facts, and a short question about each, in any order."""
    facts = draw_facts(draw)
    told = " ".join(write_fact(*fact) for fact in facts)
    draw.shuffle(facts)
    return told + "\n" + "".join(f"{person}: {color} {thing}\n" for person, color, thing in facts)


def make_conflict(draw: random.Random) -> dict[str, Any]:
    """Four facts, two of them about one person, and a question about that person."""
    facts = draw_facts(draw)
    facts[1] = (facts[0][0], *facts[1][1:])
    target, rival = draw.sample(facts[:2], 2)
    draw.shuffle(facts)
    told = [write_fact(*fact) for fact in facts]
    return {
        "prompt": " ".join(told) + f" What does {target[0]} have?",
        "target": write_fact(*target),
        "rival": write_fact(*rival),
        "first": facts.index(target) < facts.index(rival),
    }


def train_base_model(folder: Path, steps: int, batch: int = 32) -> None:
    """Train a LLaMA from scratch on documents that are drawn as they are needed."""
    torch.manual_seed(0)
    draw = random.Random(0)
    headings = "### Instruction:\n### Response:\n What does have?\n"
    tokenizer = train_tokenizer([make_document(draw) + headings for _ in range(2000)], 400)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    started, average = time.perf_counter(), math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = [[1, *tokenizer(make_document(draw)).input_ids, 2] for _ in range(batch)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        loss = model(input_ids=ids, attention_mask=ids != 0, labels=ids.masked_fill(ids == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if step % 200 == 199:
            print(f"  step {step + 1}: loss {average:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def tune(out: Path, model: Path, rate: float, seed: int, texts: int, epochs: int) -> dict[str, Any]:
    """Return the results of a run, which is trained if it is not there."""
    run = out / f"toast-{rate:g}-seed{seed}"
    if not (run / "results.json").is_file():
        path, draw = out / f"facts-{texts}.json", random.Random(1)
        path.write_text(json.dumps([make_instruction(draw) for _ in range(texts + 200)], indent=1), encoding="utf-8")
        held_out = 100 / (texts + 200)
        resolved = resolve_recipe(
            backbone=f"lm:{model}",
            dataset=f"alpaca:{path}",
            method="toast",
            seed=seed,
            device="cpu",
            overrides=[
                *(f"dataset.val_fraction={held_out}", f"dataset.test_fraction={held_out}", f"training.lr={rate}"),
                *(f"training.epochs={epochs}", "training.checkpoint_gradients=false", "training.workers=0"),
            ],
        )
        tune_model(resolved.recipe, run, Reporter())
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {**results, "run": run}


def answer(generator: TextGenerator, prompts: list[dict[str, Any]], condition: str) -> list[str]:
    """Return the answers to prompts, with the sentence of a condition emphasized."""
    turns = [[Turn("user", prompt["prompt"])] for prompt in prompts]
    marked = None if condition == "unmarked" else [[prompt[condition.partition(" ")[0]]] for prompt in prompts]
    return generator.answer_all(turns, 50, marked, max_new_tokens=24, do_sample=False)


def follows(text: str, fact: str) -> bool:
    """Return whether an answer names the color and the thing of a fact, or of the answer to a question."""
    return " ".join(fact.rstrip(".").split()[-2:]) in text


def measure(generator: TextGenerator, prompts: list[dict[str, Any]], strength: float) -> dict[str, Any]:
    """Return rates of answers that name the target's thing, the rival's and neither, with 95% intervals."""
    steering = generator._model.adapted.steering
    assert steering is not None
    steering.strength = strength
    answers = {condition: answer(generator, prompts, condition) for condition in CONDITIONS}
    steering.strength = 1.0
    target = {
        condition: np.array([follows(text, prompt["target"]) for text, prompt in zip(texts, prompts, strict=True)])
        for condition, texts in answers.items()
    }
    rival = {
        condition: np.array([follows(text, prompt["rival"]) for text, prompt in zip(texts, prompts, strict=True)])
        for condition, texts in answers.items()
    }
    record: dict[str, Any] = {"strength": strength, "prompts": len(prompts), "answers": answers}
    for condition in CONDITIONS:
        neither = ~target[condition] & ~rival[condition]
        record[condition] = {
            name: estimate(values)
            for name, values in (("target", target[condition]), ("rival", rival[condition]), ("neither", neither))
        }
    record["gain"] = estimate(target["target marked"].astype(float) - target["unmarked"])
    record["against rival"] = estimate(target["target marked"].astype(float) - target["rival marked"])
    return record


def estimate(values: np.ndarray) -> dict[str, float]:
    mean = estimate_proportion(values) if values.dtype == bool else bootstrap_mean(values)
    assert mean is not None
    return {"mean": mean.mean, "low": mean.low, "high": mean.high}


def format_share(share: dict[str, float]) -> str:
    return f"{share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def print_rates(split: str, record: dict[str, Any]) -> None:
    for condition in CONDITIONS:
        shares = " | ".join(format_share(record[condition][name]) for name in ("target", "rival", "neither"))
        print(f"| {split} | {record['strength']:g} | {condition} | {shares} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the run and the report")
    parser.add_argument("--model", type=Path, help="folder of a trained language model, instead of a new one")
    parser.add_argument("--steps", type=int, default=3000, help="steps of training the new model")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2], help="rates of TOAST")
    parser.add_argument("--texts", type=int, default=512, help="training texts of TOAST")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of TOAST")
    parser.add_argument("--prompts", type=int, default=400, help="test prompts; half as many for validation")
    parser.add_argument("--seed", type=int, default=0, help="seed of TOAST")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = given.model or given.out / "model"
    if not (model / "config.json").is_file():
        train_base_model(model, given.steps)
    runs = [tune(given.out, model, rate, given.seed, given.texts, given.epochs) for rate in given.rates]
    best = min(runs, key=lambda results: float(results["validation"]["loss"]))
    print(f"{best['run'].name}: loss {best['validation']['loss']:.3f} (validation), {best['test']['loss']:.3f} (test)")
    generator = make_text_generator(open_run(RunRequest(best["run"], device="cpu")), print)

    draw = random.Random(3)
    entries = [make_instruction(draw) for _ in range(200)]
    single = [
        {"prompt": entry["instruction"], "target": write_fact(person, *rest.split())}
        for entry in entries
        for person, _, rest in [entry["output"].partition(": ")]
    ]
    right = {}
    for condition in CONDITIONS[:2]:
        pairs = zip(answer(generator, single, condition), single, strict=True)
        right[condition] = estimate(np.array([follows(text, prompt["target"]) for text, prompt in pairs]))
    for condition, share in right.items():
        print(f"without conflict, {condition}: {format_share(share)} right")

    print("| prompts | strength | emphasis | answers the target | answers its rival | neither |")
    print("|---|---|---|---|---|---|")
    validation = [make_conflict(draw) for _ in range(given.prompts // 2)]
    searched = [measure(generator, validation, strength) for strength in STRENGTHS]
    for record in searched:
        print_rates("validation", record)
    chosen = max(searched, key=lambda record: record["against rival"]["mean"])["strength"]
    test = [make_conflict(draw) for _ in range(given.prompts)]
    tested = [measure(generator, test, strength) for strength in sorted({1.0, chosen})]
    for record in tested:
        print_rates("test", record)
    for record in tested:
        gain, against = format_share(record["gain"]), format_share(record["against rival"])
        print(f"strength {record['strength']:g}: target marked less unmarked {gain}, less rival marked {against}")
    report = {"run": best["run"].name, "right": right, "validation": searched, "test": tested, "prompts": test}
    (given.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
