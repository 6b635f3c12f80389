"""Kept first passes change nothing but the time: a run that fills the cache and one that finds it full are the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.cli.conftest import TINY_DEMO, MakePictures, toast
from tests.language import instructions, make_model, write_json
from toast_cli.data.base import CACHED_KEY
from toast_cli.training import feature_cache
from toast_cli.training.feature_cache import FirstPassCache
from toast_cli.training.loop import TrainingLoop

CACHE = ["training.cache=true", "training.lr=0.01"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many inputs the first pass was run on in order to be kept, a batch an entry."""
    counted: list[int] = []
    outputs = feature_cache.compute_first_pass_outputs

    def count(model: Any, inputs: Any) -> dict[str, Tensor]:
        found = outputs(model, inputs)
        counted.append(len(found["z"]))
        return found

    monkeypatch.setattr(feature_cache, "compute_first_pass_outputs", count)
    return counted


def tuned(out: Path, *words: str | Path) -> dict[str, Tensor]:
    said = toast("tune", "--output-dir", out, *words)
    assert said.code == 0, said.err
    return load_file(out / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "method", ["toast method.feedback=late", pytest.param("toast", marks=SLOW), pytest.param("toast-lite", marks=SLOW)]
)
def test_a_full_cache_gives_the_very_weights_of_an_empty_one_and_nearly_those_without(
    here: Path, run_again: list[int], method: str
) -> None:
    words = ["--method", *method.split(), *TINY_DEMO, "training.epochs=3", "images.augment=none"]
    filled = tuned(here / "filled", *words, *CACHE)
    images = sum(run_again)
    assert images == 40 + 20 + 2  # once each, and one of each split to see how large a first pass is
    assert same(tuned(here / "found", *words, *CACHE), filled)
    assert sum(run_again) == images + 2
    without = tuned(here / "without", *words, "training.lr=0.01")
    assert not same(without, filled)  # half precision
    assert all(torch.allclose(without[name], filled[name], atol=0.02) for name in without)


def test_views_are_taken_in_turns(here: Path, run_again: list[int]) -> None:
    words = [*TINY_DEMO, "images.augment=flip", "training.epochs=4", *CACHE]
    tuned(here / "run", *words, "training.cache_views=2")
    assert sum(run_again) == 2 * 40 + 20 + 2  # two views of the training images


def test_a_late_run_reads_no_image_twice_and_notices_one_that_changed(
    here: Path, pictures: MakePictures, run_again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from toast_cli.data.images.loader import ImageDataset

    folder = pictures(cat=12, dog=12)
    words = ["--backbone", "vit_demo", "--dataset", f"folder:{folder}", "method.feedback=late", "images.augment=none"]
    words += ["training.batch_size=6", "training.accumulate=1", "training.epochs=3", "dataset.val_fraction=0.25"]
    read: list[int] = []
    load = ImageDataset.__getitem__
    monkeypatch.setattr(ImageDataset, "__getitem__", lambda self, index: read.append(index) or load(self, index))
    tuned(here / "one", *words, *CACHE)
    first = len(read)
    tuned(here / "more", *words, *CACHE, "training.epochs=9")
    # Six epochs more, and no more reading: every image was looked at in the first epoch to see that it is the same.
    assert len(read) == 2 * first
    run_again.clear()
    changed = next(folder.rglob("*cat*/*"))
    with Image.open(changed) as picture:
        Image.new("RGB", picture.size, "red").save(changed)
    tuned(here / "changed", *words, *CACHE)
    assert sum(run_again) >= 1 and len(run_again) == 3  # two to see sizes, one batch with another image in it


def test_what_is_deleted_meanwhile_is_read_and_computed_again(
    here: Path, pictures: MakePictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--backbone",
        "vit_demo",
        "--dataset",
        f"folder:{pictures(cat=8, dog=8)}",
        "method.feedback=late",
        *CACHE,
    ]
    words += ["training.batch_size=6", "training.accumulate=1", "training.epochs=3", "dataset.val_fraction=0.25"]
    alone = tuned(here / "alone", *words)
    of, batches, known = FirstPassCache.get_batch_outputs, [], []

    def delete_and_run(self: FirstPassCache, batch: Any) -> dict[str, Tensor]:
        batches.append(batch)
        known.append(CACHED_KEY in batch)
        if self.model.training and len(batches) == 5:  # in the second epoch, which reads no image any more
            shutil.rmtree(self.cache.path)
        return of(self, batch)

    monkeypatch.setattr(FirstPassCache, "get_batch_outputs", delete_and_run)
    assert same(tuned(here / "emptied", *words), alone)
    assert known[4]


def test_two_folders_of_one_name_have_a_cache_each(here: Path, pictures: MakePictures, cache_folder: Path) -> None:
    made = pictures(cat=8, dog=8)
    words = ["--backbone", "vit_demo", "dataset.val_fraction=0.25", "training.epochs=1", *CACHE]
    caches: list[set[str]] = []
    for place, named in ((here / "a", "data"), (here / "b", "data"), (here, here / "b" / "data")):
        if not (place / "data").exists() and place != here:
            shutil.copytree(made, place / "data")
        with pytest.MonkeyPatch.context() as gone:
            gone.chdir(place)
            tuned(here / f"run-{len(caches)}", *words, "--dataset", f"folder:{named}", "--data-dir", here / "none")
        caches.append({path.name for path in (cache_folder / "first-pass").iterdir()})
    assert len(caches[0]) == 2 and len(caches[1]) == 4 and caches[2] == caches[1]


def test_texts_are_kept_as_well(here: Path, run_again: list[int]) -> None:
    data = write_json(here / "data.json", instructions(20))
    words = ["--backbone", f"llama:{make_model(here / 'model')}", "--dataset", f"alpaca:{data}", "training.epochs=3"]
    without = tuned(here / "without", *words, "training.lr=0.01")
    filled = tuned(here / "filled", *words, *CACHE)
    texts = sum(run_again)
    assert same(tuned(here / "found", *words, *CACHE), filled)
    assert sum(run_again) == texts + 2
    assert all(torch.allclose(without[name], filled[name], atol=0.02) for name in without)


def test_a_model_stored_in_half_precision_gets_back_what_it_hands_over(here: Path) -> None:
    model = make_model(here / "model")
    LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)
    words = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{write_json(here / 'data.json', instructions(20))}"]
    words += ["method.feedback=late", "training.lr=0.01", "--precision", "fp32"]
    cached = tuned(here / "cached", *words, "training.cache=true", "training.cache_dtype=float32")
    plain = tuned(here / "plain", *words)
    # torch 2.8 adds up a batch otherwise than parts of it; rounding to bf16 on the way would differ a hundredfold.
    assert plain.keys() == cached.keys()
    assert all(torch.allclose(plain[name], cached[name], atol=1e-3) for name in plain)


def test_an_interrupted_run_with_a_cache_goes_on_to_the_same_weights(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY_DEMO, "--device", "cpu", *CACHE]
    whole = tuned(here / "whole", *words)
    steps: list[bool] = []
    with monkeypatch.context() as watched:
        step = TrainingLoop.train_step
        watched.setattr(
            TrainingLoop, "train_step", lambda self, group: steps.append(step(self, group)) or len(steps) == 3
        )
        assert toast("tune", "--output-dir", here / "half", *words).code == 130
    said = toast("tune", "--resume", here / "half")
    assert said.code == 0 and "1 more batches" in said.err, said.err
    assert same(load_file(here / "half" / "adapter" / "adapter_model.safetensors"), whole)


def test_what_cannot_be_kept_is_refused(here: Path) -> None:
    toast("tune", "--method", "lora", *TINY_DEMO, *CACHE).fails(2, error="training.nothing-to-cache")
    toast("tune", *TINY_DEMO, *CACHE, "task.mixup=0.2").fails(2, "mixup", error="training.conflicting-options")
    toast("tune", *TINY_DEMO, *CACHE, "training.cache_gigabytes=0.0001").fails(
        1, "cache_gigabytes", error="cache.too-small"
    )
    toast("pretune", *TINY_DEMO[:0], *CACHE).fails(2, error="training.conflicting-options")
    assert not (here / "runs").exists() or not any((here / "runs").iterdir())


def test_the_size_is_said_beforehand_and_doctor_counts_it(here: Path, cache_folder: Path) -> None:
    said = toast("tune", "--output-dir", here / "run", *TINY_DEMO, *CACHE)
    assert "First passes are cached in" in said.err and "kB (float16)" in said.err
    held = sum(path.stat().st_size for path in cache_folder.rglob("*") if path.is_file())
    assert held > 5e5
    assert f"{cache_folder} (set, {held / 1e6:,.1f} MB)" in " ".join(toast("doctor").out.split())
