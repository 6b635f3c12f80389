"""What toast wrote as JSON, with one value changed into any other, unsealed or sealed anew: it works, or is refused.

Bytes that change at random (`test_fuzz`) rarely leave JSON that can be read; whoever means harm does.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.slow.test_fuzz import ANY, for_inputs, works_or_says_why
from toast_cli.storage.checkpoint import (
    STATE_FILE,
    find_checkpoint,
    load_checkpoint_state,
    load_extra_tensors,
)
from toast_cli.storage.checksums import add_checksum, read_checksummed_json
from toast_cli.storage.load_model import load_model
from toast_cli.storage.pretuned import read_artifact
from toast_cli.storage.run_folder import ANSWERS_FILE
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import CHECKSUM_KEY, hash_json

VALUES = ANY | st.sampled_from([10**400, -1, 2**63, 1e308, "../../x", "/dev/zero", "none", [[]], {"": None}])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lite_run: Path, pretuned_run: Path) -> Path:
    here = tmp_path_factory.mktemp("made")
    shutil.copytree(lite_run, here / "run")
    shutil.copytree(pretuned_run, here / "pre")
    shutil.rmtree(here / "run" / "checkpoints" / ".last.old", ignore_errors=True)
    return here


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in plain values something stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, part in inner for place in places(part, (*path, key))]


@st.composite
def changed(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """One to three values changed, taken away, or put in besides."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *way, key = draw(st.sampled_from(places(value) or [("x",)]))
        at: Any = value
        for step in way:
            at = at[step]
        kind = draw(st.sampled_from(["change", "change", "take", "put"]))
        if kind == "take":
            del at[key]
        elif kind == "put" and isinstance(at, dict):
            at[draw(st.text(max_size=8))] = copy.deepcopy(draw(VALUES))  # it may be changed in turn
        else:
            at[key] = copy.deepcopy(draw(VALUES))  # it may be changed in turn
    return value


def checkpoint(folder: Path) -> None:
    if find_checkpoint(folder, "last") is None:
        raise ToastError("damaged")
    load_checkpoint_state(folder, "last")
    load_extra_tensors(folder, "last")


def state_sealed(state: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in state.items() if name != CHECKSUM_KEY}
    digests = state.get(CHECKSUM_KEY)
    return {**plain, CHECKSUM_KEY: {**digests, STATE_FILE: hash_json(plain)} if isinstance(digests, dict) else digests}


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "run/adapter/adapter_config.json": ("run", load_model),
    "pre/artifact/artifact.json": ("pre", read_artifact),
    "run/results.json": ("run/results.json", read_checksummed_json),
    f"run/{ANSWERS_FILE}": (f"run/{ANSWERS_FILE}", read_checksummed_json),
    "run/checkpoints/last/state.json": ("run/checkpoints", checkpoint),
}


@pytest.mark.parametrize("times", [20, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_any_value_in_any_place_works_or_is_refused(made: Path, tmp_path: Path, name: str, times: int) -> None:
    place, read = FILES[name]
    shutil.copytree(made, tmp_path / "made")
    file = tmp_path / "made" / name
    whole = json.loads(file.read_text())
    plain = whole if name.endswith(STATE_FILE) else {key: value for key, value in whole.items() if key != CHECKSUM_KEY}
    read(tmp_path / "made" / place)

    @given(value=changed(plain), seal=st.booleans())
    def one(value: dict[str, Any], seal: bool) -> None:
        if name.endswith(STATE_FILE):
            value = state_sealed(value) if seal else value
        elif seal and CHECKSUM_KEY not in value:
            value = add_checksum(value)
        file.write_text(json.dumps(value))
        works_or_says_why(lambda: read(tmp_path / "made" / place))

    for_inputs(times, one)
