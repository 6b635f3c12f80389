from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.test_ema import linear_model
from toast_cli.storage.checkpoint import load_checkpoint, load_checkpoint_state, save_checkpoint
from toast_cli.utils.errors import ToastError


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, file: str, part: float) -> None:
    model = linear_model()
    save_checkpoint(
        tmp_path, "best", model.get_trained_parameters(), {"epoch": 12345, "score": [0.123456789, 1], "kind": None}
    )
    damaged = tmp_path / "best" / file
    content = bytearray(damaged.read_bytes())
    content[int(len(content) * part)] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ToastError) as refused:
        load_checkpoint(tmp_path, "best", model)
    assert refused.value.code == "checkpoint.damaged"


def test_the_last_whole_checkpoint_outlives_any_number_of_damaged_ones(tmp_path: Path) -> None:
    model = linear_model()
    for step in range(1, 5):
        save_checkpoint(tmp_path, "last", model.get_trained_parameters(), {"step": step})
        if step > 1:
            (tmp_path / "last" / "model.safetensors").write_bytes(b"")
        state = load_checkpoint_state(tmp_path, "last")
        assert state is not None and state["step"] == 1
    save_checkpoint(tmp_path, "last", model.get_trained_parameters(), {"step": 5})
    state = load_checkpoint_state(tmp_path, "last")
    assert state is not None and state["step"] == 5
    assert sorted(each.name for each in tmp_path.iterdir()) == [".last.old", "last"]
