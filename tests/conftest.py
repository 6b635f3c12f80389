"""Shared by all tests: three tiers, no network, no user configuration, and finished runs to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shared_runs import SharedRuns

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TESTS = Path(__file__).parent
SMOKE = "cli/test_smoke.py"
"""The only test of commands in the fast tier."""
E2E = (
    "cli/",
    "unit/bench/test_same_recipe.py",
    "unit/bench/test_trials.py",
    "unit/training/test_plan_memory_measured.py",
    "unit/visualize/test_save_figures.py",
)
NIGHTLY = (
    "slow/",
    "cli/test_attacks.py",
    "cli/test_install.py",
    "cli/test_interactive_page.py",
    "cli/test_pages_in_a_browser.py",
    "cli/test_processes.py",
    "cli/test_together.py",
    "unit/training/test_fsdp.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every test in its tier by where it lies; a test may also name its tier itself."""
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        if path.startswith(NIGHTLY):
            item.add_marker("nightly")
        elif path.startswith(E2E) and path != SMOKE:
            item.add_marker("e2e")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches lie where pytest clears them away, not in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TOAST_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        quota = tmp_path_factory.mktemp("machine") / "cpu.max"
        quota.write_text("200000 100000")  # two cores, so that loaders have no workers on any machine
        patched.setattr("toast_cli.data.loaders.CPU_QUOTA", quota)
        yield


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test sees no data folder and no colours of whoever runs it."""
    for name in ("TOAST_DATA_DIR", "TOAST_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    yield


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRuns]:
    """Runs that are made once for all workers. A test that changes one copies it first."""
    base = tmp_path_factory.getbasetemp()
    runs = SharedRuns((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-runs")
    yield runs
    runs.assert_unchanged()


@pytest.fixture(scope="session")
def toast_run(shared_runs: SharedRuns) -> Path:
    """A finished run of TOAST on the demo, to be read."""
    return shared_runs.get("toast")


@pytest.fixture(scope="session")
def lite_run(shared_runs: SharedRuns) -> Path:
    """A finished run of TOAST-Lite on the demo, to be read."""
    return shared_runs.get("toast-lite")


@pytest.fixture(scope="session")
def linear_run(shared_runs: SharedRuns) -> Path:
    """A finished linear probe on the demo, to be read."""
    return shared_runs.get("linear")


@pytest.fixture(scope="session")
def text_run(shared_runs: SharedRuns) -> Path:
    """A finished run of TOAST-Lite on a tiny LLaMA, to be read."""
    return shared_runs.get("text")


@pytest.fixture(scope="session")
def pretuned_run(shared_runs: SharedRuns) -> Path:
    """A start for the demo's backbone by least squares, to be read."""
    return shared_runs.get("pretuned")
