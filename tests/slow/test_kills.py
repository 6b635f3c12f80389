"""Whatever is killed, at whatever moment: the next command works, or says what is broken and how to go on.

A few kills belong to every run of the tests; `-m slow` has the many that docs/reports/reliability.md reports.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import TINY_DEMO
from tests.slow.kills import explained, forked, moments
from tests.slow.suites import small_suite

SMALL = [*TINY_DEMO, "training.epochs=4", "training.save_every=1", "--device", "cpu"]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one), load_file(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


VERBS = {
    "tune": (["tune", *SMALL], "adapter/adapter_model.safetensors"),
    "tune with a cache": (["tune", *SMALL, "training.cache=true"], "adapter/adapter_model.safetensors"),
    "pretune": (["pretune", "--backbone", "vit_demo_3", "--dataset", "demo", *SMALL], "artifact/feedback.safetensors"),
}

TIMES = {"tune": 20, "tune with a cache": 20, "pretune": 14}


@pytest.mark.parametrize(
    ("verb", "count"),
    [("tune with a cache", 1), *(pytest.param(verb, times, marks=pytest.mark.slow) for verb, times in TIMES.items())],
)
@pytest.mark.usefixtures("cached")
def test_a_killed_run_is_resumed_or_begun_again_to_the_same_weights(tmp_path: Path, verb: str, count: int) -> None:
    words, weights = VERBS[verb]
    whole = forked(tmp_path, *words, "--output-dir", "whole")
    assert whole.code == 0, whole.said
    for number, moment in enumerate(moments(count, whole.seconds, seed=len(verb))):
        run = tmp_path / f"cut{number}"
        if forked(tmp_path, *words, "--output-dir", run, killed_after=moment).code is None:
            saved = any((run / "checkpoints" / name).is_dir() for name in ("last", ".last.old"))
            done = (run / "results.json").is_file()
            again = forked(tmp_path, words[0], "--resume", run)
            explained(again)
            assert ("Resuming after epoch" in again.said) == (saved and not done), again.said
            if again.code:  # too early to go on, or at its end already
                assert "is not a run folder" in again.said or "has already finished" in again.said
        if not (run / "results.json").is_file():
            shutil.rmtree(run, ignore_errors=True)
            assert forked(tmp_path, *words, "--output-dir", run).code == 0
        assert same(run / weights, tmp_path / "whole" / weights), f"killed after {moment} s"
        shutil.rmtree(run)


@pytest.mark.parametrize("count", [pytest.param(1), pytest.param(14, marks=pytest.mark.slow)])
def test_a_killed_export_leaves_the_old_file_or_the_new_one_whole(tmp_path: Path, cached: Path, count: int) -> None:
    assert forked(tmp_path, "tune", *TINY_DEMO, "--output-dir", "run").code == 0
    words = ["export", "--run", "run", "--what", "full", "--out", "o/a", "--force"]
    whole = forked(tmp_path, *words)
    assert whole.code == 0, whole.said
    expected = (tmp_path / "o" / "a.safetensors").read_bytes()
    for moment in moments(count, whole.seconds, seed=1):
        forked(tmp_path, *words, killed_after=moment)
        assert (tmp_path / "o" / "a.safetensors").read_bytes() == expected, f"killed after {moment} s"
        json.loads((tmp_path / "o" / "export_report.json").read_text())
    assert forked(tmp_path, *words).code == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"a.safetensors", "export_report.json"}


@pytest.mark.parametrize("count", [pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("cached")
def test_a_killed_suite_goes_on_to_the_same_numbers(tmp_path: Path, count: int) -> None:
    (tmp_path / "small.yaml").write_text(small_suite(seeds=2))
    words = ["bench", "small.yaml", "--device", "cpu", *TINY_DEMO]
    whole = forked(tmp_path, *words, "--out", "whole")
    assert whole.code == 0, whole.said
    for number, moment in enumerate(moments(count, whole.seconds, seed=2)):
        out = f"cut{number}"
        forked(tmp_path, *words, "--out", out, killed_after=moment)
        again = forked(tmp_path, *words, "--out", out)
        assert again.code == 0, again.said
        assert measured(tmp_path / out) == measured(tmp_path / "whole"), f"killed after {moment} s"


def measured(out: Path) -> list[Any]:
    """The tests' numbers of a suite's finished runs."""
    results = [json.loads(file.read_text()) for file in out.glob("runs/*/results.json")]
    return sorted((each["seed"], each["test"]["accuracy"], each["test"]["loss"]) for each in results)
