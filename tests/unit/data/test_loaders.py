"""How many worker processes suit a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toast_cli.data import loaders
from toast_cli.data.loaders import LoaderMachine, choose_worker_count, describe_loader_machine
from toast_cli.model.recipe_data import count_workers
from toast_cli.recipe.parse import build_recipe

ROOMY = 2**34


@pytest.mark.parametrize(
    ("cores", "processes", "gpu", "workers"),
    [
        (1, 1, False, 0),
        (2, 1, False, 0),
        (3, 1, False, 1),
        (4, 1, False, 2),
        (64, 1, False, 8),
        (8, 4, False, 0),
        (1, 1, True, 1),
        (2, 1, True, 2),
        (16, 1, True, 8),
        (16, 4, True, 4),
        (2, 4, True, 0),
    ],
)
def test_the_cores_are_shared_by_the_processes(cores: int, processes: int, gpu: bool, workers: int) -> None:
    assert choose_worker_count(LoaderMachine(cores, processes, gpu, True, ROOMY)) == workers


def test_no_worker_is_started_where_it_could_fail() -> None:
    machine = LoaderMachine(16, 1, True, forks=True, shared_memory=None)
    assert choose_worker_count(machine) == 8
    assert choose_worker_count(replace(machine, forks=False)) == 0
    assert choose_worker_count(replace(machine, shared_memory=64 * 2**20)) == 0


def test_affinity_quota_and_launcher_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(loaders, "CPU_QUOTA", quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert loaders.count_cores() == 12
    for text, cores in (("max 100000", 12), ("350000 100000", 3), ("50000 100000", 1), ("9900000 100000", 12)):
        quota.write_text(text)
        assert loaders.count_cores() == cores
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert describe_loader_machine(False).processes == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert describe_loader_machine(False).processes == 2


def test_the_recipe_says_auto_until_a_number_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(**training: int) -> int:
        raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": "linear", "training": training, "device": "cpu"}
        return count_workers(build_recipe(raw, {}, origin="a test"))

    machine = LoaderMachine(6, 1, False, True, ROOMY)
    monkeypatch.setattr("toast_cli.model.recipe_data.describe_loader_machine", lambda gpu: replace(machine, gpu=gpu))
    assert workers() == 4 and workers(workers=1) == 1
