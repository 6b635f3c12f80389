"""A slot gives back what was put there, or nothing: never something else."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toast_cli.storage.tensor_cache import TensorCache
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import hash_bytes

SHAPES = {"z": (5, 3), "hidden": (5, 4)}
ONE, OTHER = hash_bytes(b"one"), hash_bytes(b"other")


def opened(folder: Path, dtype: torch.dtype = torch.float16, **key: Any) -> TensorCache:
    return TensorCache(folder, {"backbone": "abc", **key}, 4, SHAPES, dtype)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_was_kept_is_found_again_by_another_process_in_the_precision_asked_for(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    opened(tmp_path, dtype).write(2, tensors(), ONE)
    found = opened(tmp_path, dtype).read(2, ONE)
    assert found is not None
    assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in tensors().items())
    assert opened(tmp_path, dtype).full(range(4)) == [False, False, True, False]


def test_another_input_or_key_finds_nothing(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    slots.write(2, tensors(), ONE)
    assert slots.read(2, OTHER) is None and slots.read(1, ONE) is None
    assert opened(tmp_path, split="val").read(2, ONE) is None
    slots.write(2, tensors(1), OTHER)
    assert slots.read(2, ONE) is None
    found = slots.read(2, OTHER)
    assert found is not None and torch.equal(found["z"], tensors(1)["z"].half())


def test_a_shorter_text_is_followed_by_zeros(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    slots.write(0, tensors(), ONE)
    slots.write(0, {name: tensor[:2] for name, tensor in tensors().items()}, ONE)
    found = slots.recall(0)
    assert found is not None and found["z"][:2].any() and not found["z"][2:].any()


def test_only_what_was_read_or_written_here_is_recalled_and_only_while_it_is_there(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    slots.write(0, tensors(), ONE)
    again, other = opened(tmp_path), opened(tmp_path)
    assert again.recall(0) is None  # it has not seen yet what it was made from
    assert again.read(0, ONE) is not None and again.recall(0) is not None
    for seed, digest in ((1, OTHER), (1, ONE)):  # of another input, of the same one by another network
        other.write(0, tensors(seed), digest)
        assert slots.recall(0) is None and again.recall(0) is None
    found = other.recall(0)
    assert found is not None and torch.equal(found["z"], tensors(1)["z"].half())


def test_a_folder_that_is_deleted_meanwhile_is_made_anew_by_the_next_and_harms_no_one(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    slots.write(0, tensors(), ONE)
    shutil.rmtree(tmp_path)
    slots.write(1, tensors(1), OTHER)
    assert slots.recall(0) is not None and slots.read(1, OTHER) is not None
    assert opened(tmp_path).full(range(4)) == [False] * 4


def test_a_slot_that_is_being_written_is_not_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots, other = opened(tmp_path), opened(tmp_path)
    slots.write(0, tensors(), ONE)
    copied = slots._copied

    def meanwhile(slot: int) -> Any:
        found = copied(slot)
        other.write(slot, tensors(1), OTHER)
        return found

    monkeypatch.setattr(slots, "_copied", meanwhile)
    assert slots.recall(0) is None


@pytest.mark.parametrize("file", ["z.bin", "hidden.bin", "marks.bin"])
def test_one_flipped_bit_makes_a_slot_empty_and_no_other(tmp_path: Path, file: str) -> None:
    slots = opened(tmp_path)
    for slot in range(4):
        slots.write(slot, tensors(slot), ONE)
    path = slots.path / file
    del slots
    flip(path, path.stat().st_size // 4 + 1)  # within the second slot
    again = opened(tmp_path)
    assert [again.read(slot, ONE) is None for slot in range(4)] == [False, True, False, False]


@pytest.mark.parametrize("file", ["z.bin", "marks.bin", "key.json"])
def test_a_file_that_is_cut_or_gone_empties_the_whole(tmp_path: Path, file: str) -> None:
    for harm in (lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink):
        slots = opened(tmp_path)
        slots.write(0, tensors(), ONE)
        path = slots.path / file
        del slots
        harm(path)
        again = opened(tmp_path)
        assert again.full(range(4)) == [False] * 4
        again.write(0, tensors(), ONE)
        assert again.read(0, ONE) is not None


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 3))
    with pytest.raises(ToastError, match=r"(?s)It needs 364 B, and 3 B are free.*TOAST_CACHE_DIR"):
        opened(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))


def large(folder: Path) -> TensorCache:
    return TensorCache(folder, {"backbone": "abc"}, 64, {"z": (1024,)}, torch.float32)


def holes(slots: TensorCache) -> bool:
    found = (slots.path / "z.bin").stat()
    return found.st_blocks * 512 < found.st_size


def test_all_its_room_is_taken_before_anything_is_written(tmp_path: Path) -> None:
    assert not holes(large(tmp_path))


def test_room_that_is_gone_when_it_is_to_be_taken_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, begin: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "posix_fallocate", full)
        with pytest.raises(ToastError, match=r"(?s)could not be written.*No space left.*TOAST_CACHE_DIR"):
            large(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.json"))
    assert not holes(large(tmp_path))


def test_holes_of_an_earlier_cache_are_filled_and_what_is_in_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = large(tmp_path)
    path = slots.path / "z.bin"
    del slots
    path.write_bytes(b"")
    os.truncate(path, 64 * 1024 * 4)
    with monkeypatch.context() as earlier:
        earlier.setattr(os, "posix_fallocate", lambda *room: None)
        slots = large(tmp_path)
        slots.write(60, {"z": torch.ones(1024)}, ONE)
    assert holes(slots)
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 3))
        with pytest.raises(ToastError, match=r"It needs 2.. kB, and 3 B are free"):
            large(tmp_path)
    again = large(tmp_path)
    assert not holes(again) and again.read(60, ONE) is not None


def test_a_system_that_reserves_nothing_has_the_room_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    slots = large(tmp_path)
    slots.write(63, {"z": torch.ones(1024)}, ONE)
    assert not holes(slots) and slots.read(63, ONE) is not None
    assert large(tmp_path).full([63]) == [True]
