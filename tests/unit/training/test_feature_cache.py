"""Where first passes are kept is told by all that they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from tests.language import make_model
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training import feature_cache
from toast_cli.training.feature_cache import FirstPassCache, build_cached_step
from toast_cli.training.step import TrainingStep
from toast_cli.utils.constants import IGNORE_INDEX


class Few:
    """Four samples."""

    samples = 4

    def __init__(self, batch: dict[str, Tensor], longest: int | None = None) -> None:
        self.batch, self.longest = batch, longest

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield self.batch


IMAGES = Few({"image": torch.zeros(1, 3, 64, 64), "label": torch.zeros(1, dtype=torch.int64)})
TEXTS = Few({"input_ids": torch.ones(1, 5, dtype=torch.int64), "attention_mask": torch.ones(1, 5)}, longest=5)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path / "cache"))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def recipe_of(backbone: Any = "vit_demo_3", dataset: Any = "demo", **more: Any) -> Recipe:
    raw = {"backbone": backbone, "dataset": dataset, "method": {"name": "toast", "feedback": "late"}, **more}
    return build_recipe(raw, {}, origin="a test")


@pytest.fixture(scope="module")
def shared() -> Model:
    return build_model(recipe_of(), ("a", "b"))


@pytest.fixture
def model(shared: Model) -> Model:
    return deepcopy(shared)


def passes(
    recipe: Recipe, model: Model, data: Few = IMAGES, split: str = "train", precision: str = "no"
) -> FirstPassCache:
    step, _ = build_cached_step(recipe, model, {"train": data, "val": data}, accelerator(precision))
    found = step.train_passes if split == "train" else step.validation_passes
    assert found is not None
    return found


def accelerator(precision: str = "no") -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision=precision)


def folder(*asked: Any, **more: Any) -> Path:
    return passes(*asked, **more).cache.path


def other_epsilon(model: Model) -> None:
    model.backbone.module.blocks[0].norm1.eps = 0.1


def other_heads(model: Model) -> None:
    attention = model.backbone.module.blocks[0].attn
    attention.num_heads, attention.head_dim = 1, attention.num_heads * attention.head_dim


def other_activation(model: Model) -> None:
    model.backbone.module.blocks[0].mlp.act = torch.nn.ReLU()


def other_weights(model: Model) -> None:
    model.backbone_fingerprint = "of others"


def other_files(model: Model) -> None:
    model.backbone.files = lambda: {"config.json": "other"}


def other_levels(model: Model) -> None:
    steering = model.adapted.steering
    steering.levels = range(steering.levels.start + 1, steering.levels.stop)


CHANGES = [other_epsilon, other_heads, other_activation, other_weights, other_files, other_levels]


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_has_another_folder(model: Model, change: Callable[[Model], None]) -> None:
    before = folder(recipe_of(), model)
    assert folder(recipe_of(), model) == before
    change(model)
    assert folder(recipe_of(), model) != before


@pytest.mark.parametrize(
    "other",
    [
        {"backbone": {"name": "vit_demo_3", "image_size": 96}},
        {"dataset": {"name": "demo", "train_images": 50}},
        {"images": {"augment": "flip"}},
        {"data_dir": "elsewhere"},
        {"training": {"cache_dtype": "float32"}},
    ],
    ids=str,
)
def test_another_recipe_has_another_folder(model: Model, other: dict[str, Any]) -> None:
    assert folder(recipe_of(**other), model) != folder(recipe_of(), model)


def test_the_seed_matters_to_what_is_augmented_alone(model: Model) -> None:
    plain = {"images": {"augment": "none"}}
    assert folder(recipe_of(**plain), model) == folder(recipe_of(**plain, seed=1), model)
    flipped = [recipe_of(images={"augment": "flip"}, seed=seed) for seed in (0, 1)]
    assert len({folder(recipe, model) for recipe in flipped}) == 2
    assert passes(flipped[0], model, split="val").cache.path == passes(flipped[1], model, split="val").cache.path


def test_what_computes_and_the_split_have_folders_of_their_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, before = recipe_of(), folder(recipe_of(), model)
    assert folder(recipe, model, split="val") != before
    assert folder(recipe, model, precision="bf16") != before
    assert folder(recipe, deepcopy(model).to("meta")) != before
    found = feature_cache.get_package_versions()
    for name in ("toast", "torch", "timm", "transformers"):
        monkeypatch.setattr(feature_cache, "get_package_versions", lambda name=name: {**found, name: "0"})
        assert folder(recipe, model) != before


@pytest.mark.parametrize("setting", ["rms_norm_eps", "rope", "hidden_act"])
def test_a_language_model_whose_configuration_was_edited_has_another_folder(tmp_path: Path, setting: str) -> None:
    place = make_model(tmp_path / "model")
    recipe = recipe_of(f"llama:{place}", "alpaca:none.json")
    before = folder(recipe, build_model(recipe, ()), TEXTS)
    config = json.loads((place / "config.json").read_text())
    rope = {"rope_parameters": {**config["rope_parameters"], "rope_theta": 5.0}}
    config |= {"rms_norm_eps": {"rms_norm_eps": 0.1}, "hidden_act": {"hidden_act": "gelu"}, "rope": rope}[setting]
    (place / "config.json").write_text(json.dumps(config))
    assert folder(recipe, build_model(recipe, ()), TEXTS) != before


def test_what_stands_in_for_an_unreadable_image_is_not_kept(model: Model) -> None:
    batch = {"index": torch.tensor([2]), "view": torch.tensor([0]), "image": torch.rand(1, 3, 64, 64)}
    black = {**batch, "image": torch.zeros(1, 3, 64, 64), "label": torch.tensor([IGNORE_INDEX])}
    image = {**batch, "label": torch.tensor([1])}
    right, of = (
        passes(recipe_of(), model, split="val").get_batch_outputs(image),
        passes(recipe_of(), model).get_batch_outputs,
    )
    assert not torch.equal(of(black)["z"], right["z"])
    assert torch.equal(of(image)["z"], right["z"])
    assert torch.equal(of(black)["z"], right["z"])  # what is known of the image, by now; its label is ignored


def test_an_image_that_was_never_read_is_not_left_out(model: Model) -> None:
    found = passes(recipe_of(), model)
    images = {"image": torch.rand(2, 3, 64, 64), "label": torch.tensor([IGNORE_INDEX, 1])}
    found.get_batch_outputs({"index": torch.tensor([2, 3]), "view": torch.tensor([0, 0]), **images})
    assert found.seen.slots.tolist() == [False, False, False, True]
    assert len(list(found.cache.path.iterdir())) == 1


FAMILIES = {"vit": "vit_demo_3", "convnext": "convnext:convnext_atto", "llama": "llama"}


@pytest.mark.parametrize("feedback", ["full", "late", "early"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_from_the_cache_is_the_step_without(tmp_path: Path, family: str, feedback: str) -> None:
    model, recipe, batch = small(tmp_path, family, feedback)
    longest = batch["input_ids"].shape[1] if family == "llama" else None
    cached, _ = build_cached_step(recipe, model, {"train": Few(batch, longest)}, accelerator())
    plain = loss_and_gradients(TrainingStep(model), batch)
    for _ in ("filled", "found"):
        for name, value in loss_and_gradients(cached, batch).items():
            close = 1e-5 * float(plain[name].abs().max())
            torch.testing.assert_close(value, plain[name], atol=close, rtol=0)
    assert len(list(cached.train_passes.cache.path.iterdir())) == 2


def small(tmp_path: Path, family: str, feedback: str) -> tuple[Model, Recipe, dict[str, Tensor]]:
    """A model with nothing at zero, its recipe, and a batch of two."""
    name = f"llama:{make_model(tmp_path / 'model')}" if family == "llama" else FAMILIES[family]
    recipe = recipe_of(
        {"name": name, **({"weights": "none"} if family == "convnext" else {})},
        "alpaca:none.json" if family == "llama" else "demo",
        method={"name": "toast", "feedback": feedback},
        training={"cache_dtype": "float32"},
    )
    model = build_model(recipe, () if family == "llama" else ("a", "b")).train()
    torch.manual_seed(0)
    for weight in model.get_trained_parameters().values():
        torch.nn.init.normal_(weight, std=0.1)
    batch = {"index": torch.arange(2), "view": torch.zeros(2, dtype=torch.int64)}
    if family == "llama":
        ids, mask = torch.randint(6, 200, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
        mask[0, 7:] = 0
        return model, recipe, {**batch, "input_ids": ids, "attention_mask": mask, "labels": ids}
    return model, recipe, {**batch, "image": torch.randn(2, 3, 64, 64), "label": torch.tensor([0, 1])}


def loss_and_gradients(step: TrainingStep, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    step.model.zero_grad()
    loss = step(batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: weight.grad.clone() for name, weight in step.model.get_trained_parameters().items()
    }
