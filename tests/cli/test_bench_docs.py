"""The cluster recipes of the pages on suites, dry: run with a `toast` that writes down how it was called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from toast_cli.bench.suite import parse_suite
from toast_cli.cli.app import app
from toast_cli.recipe.builtin import list_suites

PAGES = ("bench.md", "write-a-suite.md", "bench-workers.md")
DOCS = "\n".join((ROOT / "docs" / "how-to" / name).read_text(encoding="utf-8") for name in PAGES)


def block(language: str, word: str) -> str:
    """The code block in that language that holds the word."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL) if word in text]
    return found


@pytest.fixture
def calls(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for `toast` writes how it was called; `srun` runs what it is given, torchrun is the real one."""
    stand_ins = here / "bin"
    stand_ins.mkdir()
    log = here / "calls"
    (stand_ins / "toast").write_text(
        f'#!/bin/bash\necho "$* devices=${{CUDA_VISIBLE_DEVICES:-}} world=${{WORLD_SIZE:-}}" >> {log}\n'
    )
    (stand_ins / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (stand_ins / "torchrun").write_text(f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    for script in stand_ins.iterdir():
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_ins}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OUT", "shared")
    return log


def is_a_call(line: str) -> None:
    """The words are ones that `toast bench` takes."""
    from typer.testing import CliRunner

    words = line.partition(" devices=")[0].split()
    assert words[:4] == ["bench", "fgvc", "--join", "--out"] and words[4] == "shared"
    # The options are read before anything else; a dry run over no row at all is refused after them.
    done = CliRunner().invoke(app, [*words, "--row", "no-such-row"])
    assert "'no-such-row'" in " ".join(done.stderr.split()), done.stderr


def test_the_slurm_script_starts_a_worker(calls: Path) -> None:
    script = block("bash", "#SBATCH")
    assert subprocess.run(["bash", "-c", script], timeout=60).returncode == 0
    (line,) = calls.read_text().splitlines()
    is_a_call(line)
    assert all(line.startswith("#SBATCH --") for line in script.splitlines() if "SBATCH" in line)


def test_the_torchrun_line_starts_workers_apart_from_each_other(calls: Path) -> None:
    done = subprocess.run(["bash", "-c", block("bash", "torchrun")], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = sorted(calls.read_text().splitlines())
    assert [line.partition("devices=")[2] for line in lines] == ["0 world=", "1 world="]
    for line in lines:
        is_a_call(line)


def test_the_ray_script_starts_workers(calls: Path, here: Path) -> None:
    (here / "ray.py").write_text(
        "def init(address): pass\n"
        "def get(values): return values\n"
        "def remote(**options):\n"
        "    assert options['num_gpus'] == 1\n"
        "    def made(work):\n"
        "        work.remote = work\n"
        "        return work\n"
        "    return made\n"
    )
    (here / "work.py").write_text(block("python", "import ray"))
    done = subprocess.run([sys.executable, "work.py"], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 0, 0, 0]"
    lines = calls.read_text().splitlines()
    assert len(lines) == 4
    is_a_call(lines[0])


def test_the_example_suite_is_valid_and_every_built_in_one_is_described() -> None:
    assert parse_suite(block("yaml", "seeds:"), "docs").search is not None
    assert all(f"| `{name}` |" in DOCS for name in list_suites())
