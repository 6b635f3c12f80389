"""`toast plan`: what fits into a memory, what it costs, and what a backbone does not take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import TINY_DEMO, toast
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
