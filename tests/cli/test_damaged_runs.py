"""A run whose files are damaged, or that somebody made to do harm, and `--resume`: it says so, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.cli.conftest import TINY_DEMO, toast
from tests.language import make_model
from tests.slow.kills import explained, forked
from toast_cli.storage.checkpoint import STATE_FILE
from toast_cli.storage.run_folder import LOCK_FILE
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import CHECKSUM_KEY, hash_json


@pytest.fixture
def run(linear_run: Path, tmp_path: Path) -> Path:
    """A run that stopped before its end, with its last two checkpoints."""
    run = shutil.copytree(linear_run, tmp_path / "run")
    (run / "results.json").unlink()
    shutil.rmtree(run / "adapter")
    return run


def files(run: Path) -> dict[Path, bytes]:
    return {file.relative_to(run): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_in_silence(run: Path) -> None:
    for name in ("last", ".last.old"):
        with (run / "checkpoints" / name / "model.safetensors").open("ab") as file:
            file.write(b"x")
    before = files(run)
    toast("tune", "--resume", run).fails(1, "--recipe", error="checkpoint.damaged")
    assert files(run) == before


def test_two_processes_do_not_go_on_with_one_run(run: Path) -> None:
    before = files(run)
    with FileLock(run / "checkpoints" / LOCK_FILE):
        said = forked(run.parent, "tune", "--resume", run)
    assert said.code == 1 and "Another process is using the run" in said.said
    assert files(run) == before
    assert toast("tune", "--resume", run).code == 0, "the lock goes with who held it"


def test_a_changed_recipe_is_taken_where_it_is_given_and_said(run: Path) -> None:
    recipe = run / "recipe.yaml"
    assert "was written by a run and has been edited" not in toast("recipes", "validate", recipe).err
    recipe.write_text(recipe.read_text().replace("log_every: 1", "log_every: 3"))
    toast("tune", "--resume", run).fails(1, "recipe.yaml", error="run.changed-recipe")
    for words in (("recipes", "validate", recipe), ("tune", "--recipe", recipe, "--dry-run")):
        said = toast(*words)
        assert said.code == 0 and "recipe.yaml was written by a run and has been edited" in " ".join(
            said.err.split()
        ), said.err


def test_a_damaged_adapter_comes_back_from_the_checkpoints_as_the_error_says(linear_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(linear_run, tmp_path / "run")
    adapter = run / "adapter" / "adapter_model.safetensors"
    whole, took = adapter.read_bytes(), json.loads((run / "results.json").read_text())["seconds"]
    adapter.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    toast("eval", "--run", run).fails(1, "adapter_model.safetensors", "remove RUN/adapter", error="adapter.damaged")
    shutil.rmtree(run / "adapter")
    (run / "results.json").unlink()
    assert toast("tune", "--resume", run).code == 0
    assert adapter.read_bytes() == whole
    assert json.loads((run / "results.json").read_text())["seconds"] > took / 2, "what it took before is counted"


def test_a_disk_that_was_full_is_told_with_how_the_run_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ToastError("a could not be written.") from OSError("No space left on device")

    monkeypatch.setattr("toast_cli.training.tune.TrainingLoop.fit", full)
    said = toast("tune", "--resume", run)
    said.fails(1, "could not be written")
    assert f"resume with: toast tune --resume {run}" in " ".join(said.err.split())


def test_what_is_not_there_is_no_run(tmp_path: Path) -> None:
    toast("tune", "--resume", tmp_path / "none").fails(2, "none", error="run.not-a-run-folder")


def resealed(state: dict[str, Any], **others: str) -> str:
    plain = {name: value for name, value in state.items() if name != CHECKSUM_KEY}
    return json.dumps({**plain, CHECKSUM_KEY: {**state.get(CHECKSUM_KEY, {}), **others, STATE_FILE: hash_json(plain)}})


STATES: dict[str, Callable[[dict[str, Any]], str]] = {
    "nested deeply": lambda state: "[" * 100_000,
    "a list": lambda state: "[]",
    "digests that are none": lambda state: json.dumps({**state, CHECKSUM_KEY: []}),
    "nothing but a seal": lambda state: resealed({}),
    "a device among its files": lambda state: resealed(state, **{"/dev/zero": "0"}),
    "a file outside among its files": lambda state: resealed(state, **{"../../recipe.yaml": "0"}),
    "without what was best": lambda state: resealed({name: state[name] for name in state if name != "best"}),
    "with another optimizer's": lambda state: resealed({**state, "training": {"optimizer": 3, "groups": []}}),
    "another version's": lambda state: resealed({name: state[name] for name in state if name != "processes"}),
}


@pytest.mark.parametrize("made_up", STATES)
def test_a_state_that_is_damaged_or_made_up_is_refused_soon(run: Path, made_up: str) -> None:
    shutil.rmtree(run / "checkpoints" / ".last.old")
    state = run / "checkpoints" / "last" / STATE_FILE
    state.write_text(STATES[made_up](json.loads(state.read_text())))
    said = forked(run.parent, "tune", "--resume", run, killed_after=60)
    explained(said)
    assert said.code == 1 and "checkpoints" in said.said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "words",
    [
        ("import", "a.safetensors", "--backbone", "vit_demo"),
        ("import", "a.pth", "--backbone", "vit_demo"),
        ("export", "--run", "a.safetensors"),
        ("tune", *TINY_DEMO, "--init-from", "a.safetensors"),
        ("tune", *TINY_DEMO, "--init-from", "start"),
        ("tune", "--resume", "run"),
        ("tune", "--backbone", "llama:model", "--dataset", "text:a.txt", "--weights", "a.safetensors"),
    ],
    ids=" ".join,
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Path, words: tuple[str, ...]) -> None:
    shutil.rmtree(run / "checkpoints" / ".last.old")
    (run.parent / "start").mkdir()
    (run.parent / "start" / "artifact.json").write_text("{}")
    make_model(run.parent / "model")
    (run.parent / "a.txt").write_text("One line.\n" * 50)
    parts = ("start/feedback.safetensors", "run/checkpoints/last/state.json")
    for pipe in ("a.safetensors", "a.pth", *parts):
        (run.parent / pipe).unlink(missing_ok=True)
        os.mkfifo(run.parent / pipe)
    said = forked(run.parent, *words, killed_after=60)
    explained(said)
    assert said.code in (1, 2)
