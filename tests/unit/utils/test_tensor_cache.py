"""An entry gives back what was put there, or nothing: never something else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toast_cli.utils.errors import ToastError
from toast_cli.utils.tensor_cache import TensorCache

SHAPES = {"z": (5, 3), "hidden": (5, 4)}
COUNT, BYTES = 4, 2 * 5 * 7


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path))


def opened(**key: Any) -> TensorCache:
    return TensorCache("kind", {"backbone": "abc", **key}, COUNT, BYTES, "training.cache")


def tensors(seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}


def same(found: dict[str, Tensor] | None, kept: dict[str, Tensor]) -> bool:
    return found is not None and found.keys() == kept.keys() and all(torch.equal(found[n], kept[n]) for n in kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_what_was_kept_is_found_again_by_another_process(dtype: torch.dtype) -> None:
    opened().write("a", tensors(dtype=dtype))
    for verify in (True, False):
        assert same(opened().read("a", verify=verify), tensors(dtype=dtype))


def test_another_name_or_key_finds_nothing() -> None:
    cache = opened()
    cache.write("a", tensors())
    assert cache.read("b") is None and opened(split="val").read("a") is None
    cache.write("a", tensors(1))
    assert same(cache.read("a"), tensors(1))


def test_a_folder_that_is_deleted_meanwhile_is_made_anew_and_harms_no_one(tmp_path: Path) -> None:
    cache = opened()
    cache.write("a", tensors())
    shutil.rmtree(tmp_path)
    assert cache.read("a") is None and cache.read("a", verify=False) is None
    cache.write("b", tensors(1))
    assert same(opened().read("b"), tensors(1))


def test_no_bit_of_an_entry_can_change_unseen_and_no_other_entry_suffers() -> None:
    cache = opened()
    for seed in range(2):
        cache.write(str(seed), tensors(seed))
    file = cache.path / "0"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert cache.read("0") is None
    assert same(cache.read("1"), tensors(1))


@pytest.mark.parametrize("harm", [lambda content: content[:-9], lambda content: content[:3], lambda content: b""])
@pytest.mark.parametrize("verify", [True, False])
def test_an_entry_that_was_cut_short_is_not_there_until_it_is_written_again(
    harm: Callable[[bytes], bytes], verify: bool
) -> None:
    cache = opened()
    cache.write("a", tensors())
    file = cache.path / "a"
    file.write_bytes(harm(file.read_bytes()))
    assert cache.read("a", verify=verify) is None
    cache.write("a", tensors())
    assert same(cache.read("a", verify=verify), tensors())


def test_too_little_room_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 75))
    with pytest.raises(
        ToastError, match=r"(?s)It needs 280 B, and 75 B are free.*TOAST_CACHE_DIR.*training\.cache=false"
    ):
        opened()


def test_what_is_there_already_needs_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in range(COUNT - 1):
        opened().write(str(name), tensors())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 75))
    opened()


def test_room_that_is_gone_when_it_is_to_be_taken_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = opened()

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ToastError, match=r"(?s)No space left.*TOAST_CACHE_DIR") as refused:
        cache.write("a", tensors())
    assert refused.value.code == "cache.cannot-write"
    assert not list(cache.path.iterdir())
