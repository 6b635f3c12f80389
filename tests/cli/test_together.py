"""Disks that are full or may not be written, and two of anything at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import TINY_DEMO, MakePictures, Said, toast
from tests.slow.kills import explained, forked
from toast_cli.export import verification_worker
from toast_cli.storage.run_folder import LOCK_FILE

ONE = [*TINY_DEMO, "training.epochs=1", "--device", "cpu"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`mounted("size=300k")`: a file system in memory, of its own."""
    made = []

    def mount(how: str) -> Path:
        place = tmp_path / f"mounted{len(made)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", place], check=True)


def failed(said: Said) -> None:
    said.fails(1, "Error: ", "could not be")


@pytest.mark.skipif(os.name != "posix", reason="mounts are of Unix")
def test_a_disk_that_fills_up_is_told_and_nothing_finished_is_lost(
    here: Path, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, toast_run: Path
) -> None:
    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
    shutil.copytree(toast_run, "run")
    disk = mounted("size=300k")
    failed(toast("tune", *ONE, "--output-dir", disk / "run"))
    again = toast("tune", "--resume", disk / "run")
    assert again.code in (1, 2) and "Traceback" not in again.err and "Internal error" not in again.err, again.err
    assert toast("eval", "--run", disk / "run").code == 2
    failed(toast("export", "--run", "run", "--out", disk / "a.safetensors"))
    failed(toast("pretune", "--least-squares", *TINY_DEMO, "--output-dir", disk / "pre"))
    monkeypatch.setenv("TOAST_CACHE_DIR", str(disk / "cache"))
    said = toast("tune", *TINY_DEMO, "training.epochs=1", "training.cache=true", "--output-dir", "cached")
    said.fails(1, "Error: ")
    assert {path.name for path in disk.rglob(".*") if path.is_file()} <= {LOCK_FILE}, "nothing half-written"
    assert toast("eval", "--run", "run").code == 0


@pytest.mark.skipif(os.name != "posix", reason="mounts are of Unix")
def test_a_folder_that_may_not_be_written_is_told(here: Path, mounted: Callable[[str], Path], toast_run: Path) -> None:
    disk = mounted("ro")
    failed(toast("tune", *ONE, "--output-dir", disk / "run"))
    failed(toast("export", "--run", toast_run, "--out", disk / "a"))
    said = toast("visualize-attention", "--test-image", "0", "--run", toast_run, "--out", disk / "x")
    said.fails(1, "Error: ")


def at_once(folder: Path, *commands: list[str | Path]) -> list[Said]:
    with ThreadPoolExecutor(len(commands)) as pool:
        ended = list(pool.map(lambda words: forked(folder, *words), commands))
    for each in ended:
        explained(each)
    return [Said(each.code or 0, "", each.said) for each in ended]


def test_two_runs_on_one_folder_name_never_share_it(here: Path) -> None:
    words = ["tune", *ONE, "--method", "linear"]
    assert [said.code for said in at_once(here, words, words)] == [0, 0]
    assert len(list((here / "runs").iterdir())) == 2


@pytest.mark.parametrize("filled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_on_one_cache_come_to_what_one_comes_to(
    here: Path, monkeypatch: pytest.MonkeyPatch, filled: bool
) -> None:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(here / "cache"))
    words = ["tune", *ONE, "training.cache=true", "--output-dir"]
    if filled:
        assert forked(here, *words, "first").code == 0
    assert [said.code for said in at_once(here, [*words, "a"], [*words, "b"])] == [0, 0]
    monkeypatch.setenv("TOAST_CACHE_DIR", str(here / "other"))
    assert forked(here, *words, "alone").code == 0
    alone = load_file(here / "alone" / "adapter" / "adapter_model.safetensors")
    for name in ("a", "b"):
        found = load_file(here / name / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(found[key], alone[key]) for key in alone)


def test_the_same_weights_come_out_with_no_and_with_four_data_workers(here: Path, pictures: MakePictures) -> None:
    root = pictures(cat=16, dog=16)
    words = ["tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}", "--device", "cpu", "training.epochs=2"]
    words += ["images.augment=crop-flip", "training.batch_size=8", "method.start=random"]
    weights = []
    for workers in (0, 4):
        said = toast(*words, f"training.workers={workers}", "--output-dir", f"run{workers}")
        assert said.code == 0, said.err
        weights.append(load_file(here / f"run{workers}" / "adapter" / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
