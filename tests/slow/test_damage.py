"""Every file that a run leaves and toast reads again, cut short or with a bit flipped anywhere: no wrong number ever.

Either what is read is what was written, or the error says in a line what is damaged.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import toast
from toast_cli.export import verification_worker
from toast_cli.storage.checkpoint import find_checkpoint, load_checkpoint_state, load_extra_tensors
from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.storage.load_model import load_model
from toast_cli.storage.model_card import format_transformers_card
from toast_cli.storage.pretuned import read_artifact
from toast_cli.storage.run_folder import ANSWERS_FILE, RunFolder
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import CHECKSUM_KEY

TIMES = [pytest.param(6), pytest.param(60, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lite_run: Path, pretuned_run: Path) -> Path:
    """A finished run of Lite, a pre-tuned start, and each as an exported file."""
    here = tmp_path_factory.mktemp("made")
    shutil.copytree(lite_run, here / "run")
    shutil.copytree(pretuned_run, here / "pre")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
        for run, name in (("run", "one.safetensors"), ("pre", "start.safetensors")):
            assert toast("export", "--run", here / run, "--out", here / name).code == 0
    return here


def model(path: Path) -> Any:
    loaded = load_model(path)
    tensors = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    return tensors, loaded.classes, loaded.recipe


def start(path: Path) -> Any:
    lineage, tensors = read_artifact(path)
    return tensors, lineage


def checkpoint(run: Path) -> Any:
    """What a run would go on from: the damaged checkpoint never, the one before it or none."""
    folder = run / "checkpoints"
    found = find_checkpoint(folder, "last")
    if found is None:
        raise ToastError("damaged")
    return {} if found.name != "last" else (load_extra_tensors(folder, "last"), load_checkpoint_state(folder, "last"))


def begun(run: Path) -> Any:
    (run / "results.json").unlink(missing_ok=True)
    RunFolder.reopen(run)
    return (run / "recipe.yaml").read_text()


READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "run/adapter/adapter_model.safetensors": ("run", model),
    "run/adapter/frozen_start.safetensors": ("run", model),
    "run/adapter/adapter_config.json": ("run", model),
    "one.safetensors": ("one.safetensors", model),
    "pre/artifact/feedback.safetensors": ("pre", start),
    "pre/artifact/artifact.json": ("pre", start),
    "start.safetensors": ("start.safetensors", start),
    "run/checkpoints/last/model.safetensors": ("run", checkpoint),
    "run/checkpoints/last/training.safetensors": ("run", checkpoint),
    "run/checkpoints/last/state.json": ("run", checkpoint),
    "run/recipe.yaml": ("run", begun),
    "run/results.json": ("run/results.json", read_checksummed_json),
    f"run/{ANSWERS_FILE}": (f"run/{ANSWERS_FILE}", read_checksummed_json),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with one bit flipped: in its first part as often as anywhere, for it is what all else hangs on."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    place = rng.randrange(min(200, len(content))) if rng.random() < 0.4 else rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("file", READ)
def test_what_is_damaged_is_named_and_never_read_as_something_else(
    made: Path, tmp_path: Path, file: str, times: int
) -> None:
    place, read = READ[file]
    shutil.copytree(made, tmp_path / "made")
    target, rng = tmp_path / "made" / file, random.Random(file)
    whole = target.read_bytes()
    expected = read(tmp_path / "made" / place)
    assert expected
    for _ in range(times):
        spoiled = damaged(whole, rng)
        if len(spoiled) == len(whole) and spoiled.count(CHECKSUM_KEY.encode()) < whole.count(CHECKSUM_KEY.encode()):
            continue  # a checksum whose name is damaged is none, and a record without one is taken as it is
        target.write_bytes(spoiled)
        try:
            found = read(tmp_path / "made" / place)
        except ToastError as error:
            assert error.what
            continue
        assert found == {} or same(found, expected), (file, len(spoiled), len(whole))


def test_a_card_never_tells_numbers_of_damaged_results(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    results = tmp_path / "run" / "results.json"
    told = json.loads(results.read_text())
    told["test"]["accuracy"] = 0.99
    results.write_text(json.dumps(told))
    with pytest.raises(ToastError, match=r"results\.json is damaged"):
        loaded = load_model(tmp_path / "run")
        format_transformers_card(loaded, loaded.config, "float32")


def test_a_changed_recipe_is_not_gone_on_with(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("batch_size: 20", "batch_size: 21"))
    toast("tune", "--resume", tmp_path / "run").fails(1, "--recipe", error="run.changed-recipe")
