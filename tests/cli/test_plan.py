"""`toast plan`: what fits into a memory, what it costs, and what a backbone does not take."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.cli.conftest import TINY_DEMO, Said, toast
from tests.language import instructions, make_model, write_json
from toast_cli.training.plan import method_costs, throughput
from toast_cli.training.plan.memory import MemoryByBatchSize
from toast_cli.training.plan.method_costs import parse_memory
from toast_cli.training.plan.throughput import TimePerSample
from toast_cli.utils.errors import UsageError

GROWTH = MemoryByBatchSize(weights=1000, gradients=100, optimizer=100, first=300, further=200)


def test_memory_grows_by_each_sample_and_the_largest_batch_is_the_last_that_fits() -> None:
    assert [GROWTH.estimate(size).total for size in (1, 2, 5)] == [1500, 1700, 2300]
    assert [GROWTH.find_largest_batch_size(limit) for limit in (1499, 1500, 1699, 1700, 2300)] == [0, 1, 1, 2, 5]


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("24GiB", 24 * 2**30), ("1.5 MB", 1.5e6), ("8 kB", 8e3)])
def test_memory_is_written_with_its_unit(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["24", "24Gb", "0GB", "much", "-1GB"])
def test_anything_else_is_no_memory(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_memory(text)
    assert refused.value.code == "cli.invalid-value"


def test_a_whole_run_is_its_epochs_with_validation_and_one_look_at_test() -> None:
    from toast_cli.recipe.lookup import resolve_recipe

    here, samples = TimePerSample(train=0.1, evaluate=0.01, before=5.0), {"train": 100, "val": 50, "test": 200}
    recipe = resolve_recipe(overrides=["training.epochs=3", "training.validate_every=1"]).recipe
    assert here.estimate_run_seconds(recipe, samples) == pytest.approx(5 + 3 * (10 + 0.5) + 2)
    untested = resolve_recipe(overrides=["training.epochs=3", "training.validate_every=1", "test=false"]).recipe
    assert here.estimate_run_seconds(untested, samples) == pytest.approx(5 + 3 * (10 + 0.5))
    seldom = resolve_recipe(overrides=["training.epochs=3", "training.validate_every=2", "test=false"]).recipe
    assert here.estimate_run_seconds(seldom, samples) == pytest.approx(5 + 3 * 10 + 2 * 0.5)
    short = resolve_recipe(
        overrides=["training.epochs=3", "training.batch_size=50", "training.max_steps=3", "test=false"]
    ).recipe
    assert here.estimate_run_seconds(short, samples) == pytest.approx(5 + 1.5 * 10 + 0.5)


def test_ways_are_compared_and_those_that_do_not_fit_or_are_not_taken_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = ("method.feedback=early", "method.feedback_level=9")
    ways = {name: method_costs.METHOD_VARIANTS[name] for name in ("TOAST", "TOAST, cached", "linear")}
    monkeypatch.setattr(method_costs, "METHOD_VARIANTS", {**ways, "early, at level 9": ("toast", refused)})
    monkeypatch.setattr(throughput, "MAX_TIMED_STEPS", 1)
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path))
    said = toast("plan", "--memory", "4MB", "--device", "cpu", "--json", "backbone=vit_demo_3", *TINY_DEMO)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    by_way = {each["way"]: each for each in found["ways"]}
    toasted, linear = by_way["TOAST"], by_way["linear"]
    assert found["memory"] == 4_000_000
    assert (toasted["trained"], linear["trained"]) == (115_461, 645)
    assert toasted["largest"] == 0 and toasted["memory"]["1"] > 4_000_000
    assert linear["largest"] > 20
    assert all(each["seconds_per_epoch"] > 0 for each in (toasted, by_way["TOAST, cached"], linear))
    assert "no early feedback at level 9" in by_way["early, at level 9"]["why"]


def test_the_table_says_what_fits_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        method_costs, "METHOD_VARIANTS", {name: method_costs.METHOD_VARIANTS[name] for name in ("TOAST", "linear")}
    )
    monkeypatch.setattr(throughput, "MAX_TIMED_STEPS", 1)
    said = toast("plan", "--memory", "6MB", "--device", "cpu", "backbone=vit_demo_3", *TINY_DEMO)
    assert said.code == 0, said.err
    assert "largest batch" in said.out and "115,461" in said.out
    assert "training.accumulate=" in said.out and "linear" in said.out
    toast("plan", "--memory", "lots").fails(2, "lots", "24GB", error="cli.invalid-value")
    toast("plan", "--dataset", "folder:nowhere", "--backbone", "vit_demo", "--memory", "1GB").fails(1, "nowhere")


def test_no_weights_are_needed_to_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_costs, "METHOD_VARIANTS", {"linear": method_costs.METHOD_VARIANTS["linear"]})
    monkeypatch.setattr(throughput, "MAX_TIMED_STEPS", 1)
    said = toast("plan", "--backbone", "vit:test_vit", "--memory", "1GB", "--device", "cpu", *TINY_DEMO)
    assert said.code == 0, said.err
    assert "Measuring linear" in said.err and "random weights unless --weights was given" in said.out + said.err


MODEL = ("--backbone", "llama_7b", "--device", "cpu")


def plan_texts(monkeypatch: pytest.MonkeyPatch, *words: str | Path, ways: tuple[str, ...] = ("lora",)) -> Said:
    monkeypatch.setattr(method_costs, "METHOD_VARIANTS", {way: method_costs.METHOD_VARIANTS[way] for way in ways})
    said = toast("plan", *words)
    assert said.code == 0, said.err
    return said


def test_a_large_model_is_planned_without_weights_tokenizer_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """7B weights in float16 are 13.5 GB; a step of LoRA on 512 tokens adds under 2 GB. Nothing of it is allocated."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = plan_texts(monkeypatch, *MODEL, "--tokens", "512", "--memory", "24GB", "--json", ways=("lora", "full"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    found = json.loads(said.out)
    lora, full = found["ways"]
    assert lora["weights"] == pytest.approx(13.5e9, rel=0.01) and lora["trained"] == 32 * 2 * 8 * 2 * 4096
    assert 13.5e9 < lora["memory"]["1"] < 15.5e9 and lora["largest"] > 4
    assert full["memory"]["1"] > 16 * 6.7e9 and full["largest"] == 0
    assert found["texts"]["longest"]["tokens"] == 512


def test_the_longest_text_is_planned_as_well_as_the_typical_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = [*instructions(40), {"instruction": "Say yes.", "input": "", "output": "yes " * 40}]
    file, model = write_json(tmp_path / "a.json", texts), make_model(tmp_path / "m")
    words = ("--backbone", f"llama:{model}", "--dataset", f"alpaca:{file}", "dataset.test_fraction=0")
    said = plan_texts(monkeypatch, *words, "dataset.val_fraction=0", "--memory", "1GB", "--json")
    found = json.loads(said.out)
    (lora,), lengths = found["ways"], found["texts"]
    assert lengths["longest"]["tokens"] > 160 > 80 > lengths["typical"]["tokens"]
    assert lengths["longest"]["learned"] > 160 > 10 > lengths["typical"]["learned"]
    assert lora["memory"]["64"] > 2 * lora["typical_memory"]["64"] and lora["largest"] < lora["typical_largest"]
    assert lora["seconds_per_epoch"] is None
    timed = plan_texts(monkeypatch, *words, "--memory", "1GB", "--time", "dataset.max_tokens=64", "--device", "cpu")
    assert "time per epoch" in timed.out and "texts of 64 tokens (the longest)" in timed.out


def test_lengths_are_estimated_and_said_to_be_without_a_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = write_json(tmp_path / "a.json", instructions(40))
    said = plan_texts(monkeypatch, *MODEL, "--dataset", f"alpaca:{file}", "--memory", "24GB")
    assert "no tokenizer of the model on this machine" in said.out and "--tokens" in said.out
    assert (
        "Fits into 24 GB" in said.out
        and "24 GB" in said.out.split("Planned for precision")[1]
        and "No weights were loaded" in said.out
    )


def test_a_dry_run_on_texts_has_no_settings_of_images(tmp_path: Path) -> None:
    file, model = write_json(tmp_path / "a.json", instructions(40)), make_model(tmp_path / "m")
    words = ("--backbone", f"llama:{model}", "--dataset", f"alpaca:{file}", "--device", "cpu", "--dry-run")
    said = toast("tune", *words, "--method", "lora")
    assert said.code == 0, said.err
    first, *_, recipe = said.out.split("\n\n")
    assert len(first.splitlines()) <= 8 and "first batch: input_ids" in first
    assert recipe.startswith("backbone:") and "max_tokens" in recipe and "batch_size" in recipe
    assert not any(word in recipe for word in ("images:", "workers:", "sampler:", "cache_views"))


def test_what_cannot_be_planned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    toast("plan", *MODEL, "--memory", "1GB").fails(2, "takes texts", "--tokens 512", error="backbone.not-for-images")
    toast("plan", "--backbone", "vit_demo", "--tokens", "9").fails(2, "takes images", error="cli.conflicting-options")
    toast("plan", *MODEL, "--tokens", "9", "--time").fails(2, "--dataset", error="cli.conflicting-options")
    monkeypatch.setattr(method_costs, "get_free_memory", lambda device: 1000)
    said = toast("plan", "--backbone", "vit_demo", "--memory", "1GB", *TINY_DEMO)
    said.fails(1, "too large", error="device.too-little-memory")
