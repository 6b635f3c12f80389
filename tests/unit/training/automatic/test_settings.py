"""The batch size and the learning rate that toast chooses: the rules, and that nothing else of the run changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from toast_cli.recipe.parse import build_recipe, load_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training.automatic import batch_size
from toast_cli.training.automatic.batch_size import double_while_fitting, find_batch_size
from toast_cli.training.automatic.lr_range import BASELINE_STEPS, LRRange, measure_lr_range
from toast_cli.training.automatic.placeholders import fill_placeholders
from toast_cli.training.automatic.settings import choose_automatic_settings
from toast_cli.training.plan.memory import MemoryByBatchSize
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session, prepare_session
from toast_cli.training.step import TrainingStep
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError, UsageError


def recipe_of(train_images: int = 40, method: Any = "linear", **training: Any) -> Recipe:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": {"name": "demo", "train_images": train_images, "val_images": 10, "test_images": 10},
        "method": method,
        "training": {"epochs": 1, "optimizer": "adamw", **training},
        "device": "cpu",
    }
    return build_recipe(raw, {}, origin="a test")


def make_step(session: Session, _: Any) -> TrainingStep:
    return TrainingStep(session.model)


def test_the_size_is_doubled_until_it_does_not_fit() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 24

    assert double_while_fitting(fits, 1, 1024) == 16 and tried == [1, 2, 4, 8, 16, 32]
    assert double_while_fitting(fits, 1, 9) == 8
    assert double_while_fitting(fits, 4, 2) == 4, "the smallest is tried even if there are fewer samples"
    assert double_while_fitting(lambda size: False, 2, 1024) == 0


@pytest.mark.parametrize(("samples", "fitting", "size"), [(40, 10**6, 32), (150, 10**6, 64), (150, 11, 8), (150, 1, 1)])
def test_on_a_cpu_the_size_is_bounded_by_samples_memory_and_use(
    samples: int, fitting: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryByBatchSize, "find_largest_batch_size", lambda self, memory: fitting)
    session = prepare_session(fill_placeholders(recipe_of(samples, batch_size="auto")), place=False)
    assert find_batch_size(session, make_step) == size


def test_an_image_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "get_free_memory", lambda device: 1000)
    with pytest.raises(ToastError) as raised:
        choose_automatic_settings(recipe_of(batch_size="auto"), make_step, Reporter(), None)
    assert raised.value.code == "training.out-of-memory"


def test_a_trial_trains_and_survives_a_lack_of_memory() -> None:
    session, seen = prepare_session(recipe_of()), []

    class Limited(TrainingStep):
        def forward(self, batch: Any) -> Any:
            seen.append(len(batch["label"]))
            if seen[-1] > 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(batch)

    before = {name: weight.clone() for name, weight in session.model.get_trained_parameters().items()}
    batch = next(iter(session.make_loader("train", train=True)))
    trial = batch_size._make_trial(session, Limited(session.model), batch)
    assert double_while_fitting(trial, 2, 64) == 8 and seen == [2, 2, 4, 4, 8, 8, 16]
    after = session.model.get_trained_parameters()
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())
    assert all(weight.grad is None for weight in after.values())

    def fail(batch: Any) -> Any:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        batch_size._make_trial(session, fail, batch)(1)  # type: ignore[arg-type]


def make_range(smoothed: list[float]) -> LRRange:
    rates = [1e-6 * 10 ** (number / 10) for number in range(len(smoothed))]
    return LRRange(rates, smoothed, smoothed)


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss() -> None:
    flat = [2.0] * BASELINE_STEPS
    falling = [*flat, *[2.0] * 20, 1.5, 1.0, 0.5, 0.9, 4.0]
    assert make_range(falling).suggestion == pytest.approx(1e-6 * 10**3.2 / 10, rel=0.05)
    lucky = [0.1, *flat[1:], *[2.0] * 20, 1.5]
    assert make_range(lucky).suggestion == pytest.approx(1e-6 * 10**3 / 10, rel=0.05), (
        "the first losses are the baseline"
    )
    for hopeless in ([*flat, 2.0, 3.0, 9.0], [2.0, 1.0], []):
        with pytest.raises(ToastError) as raised:
            _ = make_range(hopeless).suggestion
        assert raised.value.code == "training.no-learning-rate"


def test_the_sweep_rises_ends_at_divergence_and_is_the_same_again() -> None:
    recipe = recipe_of(12, batch_size=4, accumulate=2, lr=0.5)

    def measure() -> LRRange:
        session = prepare_session(recipe)
        return measure_lr_range(
            session, TrainingStep(session.model), session.make_loader("train", train=True), Reporter()
        )

    found = measure()
    assert found == measure()
    assert found.rates == sorted(found.rates) and found.rates[0] == 1e-6
    assert found.smoothed[-1] > 4 * min(found.smoothed) or len(found.rates) == 70
    assert min(found.smoothed) < found.smoothed[0]


def test_the_head_has_the_rate_of_the_sweep_whatever_its_own_is() -> None:
    session = prepare_session(recipe_of(method="lora", batch_size=4, head_lr=0.003))
    rates: set[float] = set()
    others: set[float] = set()

    class Watched(TrainingStep):
        def forward(self, batch: Any) -> Any:
            for group in optimizers[-1].param_groups:
                (rates if "lr_scale" in group else others).add(group["lr"])
            return super().forward(batch)

    optimizers: list[Any] = []
    prepare = session.accelerator.prepare

    def keep(what: Any) -> Any:
        prepared = prepare(what)
        if hasattr(prepared, "param_groups"):
            optimizers.append(prepared)
        return prepared

    session.accelerator.prepare = keep
    measure_lr_range(session, Watched(session.model), session.make_loader("train", train=True), Reporter())
    assert len(rates) > 10 and rates == others


@pytest.fixture(scope="module")
def chosen_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run whose batch size and learning rate were chosen, and what was reported."""

    class Notes(Reporter):
        def report_message(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    run = tmp_path_factory.mktemp("chosen") / "run"
    method = {"name": "toast", "start": "least-squares", "start_images": 10}
    tune_model(recipe_of(12, method=method, batch_size="auto", lr="auto"), run, Notes())
    return run, notes


def test_the_numbers_are_reported_and_recorded(chosen_run: tuple[Path, list[str]]) -> None:
    run, notes = chosen_run
    training = load_recipe(run / "recipe.yaml").training
    assert training.batch_size == 8 and 1e-6 < training.lr < 1 and training.workers == 0
    recorded = json.loads((run / "environment.json").read_text())["automatic"]
    assert recorded == {"workers": 0, "batch_size": 8, "lr": training.lr}
    assert "# training.lr was chosen automatically." in (run / "recipe.yaml").read_text().splitlines()
    assert any("batch_size=auto: 8" in note and "not scaled" in note for note in notes)
    rows = (run / "lr_range.csv").read_text().splitlines()
    assert rows[0] == "lr,loss,smoothed_loss" and len(rows) > BASELINE_STEPS


def test_a_run_with_these_numbers_typed_is_the_same_bit_for_bit(
    chosen_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, _ = chosen_run
    tune_model(load_recipe(run / "recipe.yaml"), tmp_path / "typed", Reporter())
    for name in ("adapter/adapter_model.safetensors", "checkpoints/last/training.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "typed" / name).read_bytes()
    assert not (tmp_path / "typed" / "lr_range.csv").exists()


def test_nothing_is_tried_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def try_it(*_: Any) -> Any:
        raise AssertionError("tried")

    monkeypatch.setattr("toast_cli.training.automatic.settings.find_batch_size", try_it)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    recipe = recipe_of(batch_size="auto")
    for change, folder, code in (
        ({}, "taken", "disk.already-exists"),
        ({"shard": True}, "new", "training.conflicting-options"),
    ):
        changed = recipe.model_copy(update={"training": recipe.training.model_copy(update=change)})
        with pytest.raises(UsageError) as raised:
            choose_automatic_settings(changed, make_step, Reporter(), tmp_path / folder)
        assert raised.value.code == code
    with pytest.raises(UsageError) as raised:
        prepare_session(recipe)
    assert raised.value.code == "training.automatic-setting"
