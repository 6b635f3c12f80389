"""A run that starts from a tuned model gives its answers for the classes that both have, whatever the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device

from tests.language import make_model
from toast_cli.data.identity import DataIdentity, SplitIdentity
from toast_cli.model.model import Model, build_model, fold_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_file
from toast_cli.training.continuation.earlier_data import describe_start_leaks
from toast_cli.training.continuation.head_rows import match_rows
from toast_cli.training.continuation.start import Start, initialize_model, is_tuned_model
from toast_cli.utils.errors import ToastError

COMPOSED, DECOMPOSED = "b\u00e4r", "ba\u0308r"
OLDER = {"from": "older", "kind": "pre-tuned", "dataset": "demo", "new": [], "dropped": []}
BEFORE, AFTER = ("cat", DECOMPOSED, "dog"), ("fox", "dog", COMPOSED)


def recipe_of(method: Any, task: Any = "classification", **fields: Any) -> Recipe:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": method, "task": task, "device": "cpu", **fields}
    if task != "classification":
        raw["dataset"] = "demo-segmentation"
    return build_recipe(raw, {}, origin="a test")


def tuned(path: Path, recipe: Recipe, classes: tuple[str, ...], whole: bool = False) -> Model:
    """Write a model as training would leave it: every trained tensor is away from its start."""
    model = build_model(recipe, classes).eval()
    with torch.no_grad():
        for weight in model.get_trained_parameters().values():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    config = build_adapter_config(model, recipe, classes, (OLDER,))
    save_adapter_file(path, model, config, with_backbone=whole)
    return model


def continued(path: Path, recipe: Recipe, classes: tuple[str, ...]) -> tuple[Model, Start]:
    recipe = recipe.model_copy(update={"init_from": str(path)})
    model = build_model(recipe, classes).eval()
    return model, initialize_model(model, recipe, classes)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "method",
    ["toast", "toast-lite", "lora", "vpt", "linear", "full", {"name": "peft", "kind": "ia3"}],
    ids=lambda method: method if isinstance(method, str) else method["kind"],
)
def test_it_gives_the_answers_of_its_start_for_the_classes_of_both(tmp_path: Path, method: Any, whole: bool) -> None:
    if isinstance(method, str) and method == "vpt":
        method = {"name": "vpt", "prompts": 3}
    earlier = tuned(tmp_path / "a.safetensors", recipe_of(method), BEFORE, whole)
    model, start = continued(tmp_path / "a.safetensors", recipe_of(method), AFTER)
    images = model.backbone.example(2)
    with torch.no_grad():
        there, here = earlier(images), model(images)
    torch.testing.assert_close(here[:, 1:], there[:, [2, 1]])
    assert not torch.allclose(here[:, :1], there[:, :1], atol=1e-3), "the new class has a row of its own"
    assert start.lineage[0] == OLDER and start.has_method
    assert (start.lineage[1]["new"], start.lineage[1]["dropped"]) == (["fox"], ["cat"])


@pytest.mark.parametrize(
    "task", [{"name": "segmentation", "width": 16}, {"name": "token-labels"}], ids=lambda t: t["name"]
)
def test_heads_of_pixels_keep_their_rows_too(tmp_path: Path, task: Any) -> None:
    earlier = tuned(tmp_path / "a.safetensors", recipe_of("linear", task), BEFORE)
    model, _ = continued(tmp_path / "a.safetensors", recipe_of("linear", task), AFTER)
    images = model.backbone.example(1)
    with torch.no_grad():
        there, here = earlier(images), model(images)
    rows = (here[:, 1:], there[:, [2, 1]]) if task["name"] == "segmentation" else (here[..., 1:], there[..., [2, 1]])
    torch.testing.assert_close(*rows)


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    tuned(tmp_path / "a.safetensors", recipe_of("linear", {"name": "segmentation", "width": 16}), BEFORE)
    with pytest.raises(ToastError, match=r"task.width is 32 here and 16 there") as refused:
        continued(tmp_path / "a.safetensors", recipe_of("linear", {"name": "segmentation", "width": 32}), BEFORE)
    assert refused.value.code == "adapter.wrong-head"


def test_a_language_model_goes_on(tmp_path: Path) -> None:
    raw = {"backbone": f"llama:{make_model(tmp_path / 'm')}", "dataset": "text:x", "method": "lora", "task": "language"}
    recipe = build_recipe(raw, {}, origin="a test")
    earlier = tuned(tmp_path / "a.safetensors", recipe, ())
    model, start = continued(tmp_path / "a.safetensors", recipe, ())
    tokens = send_to_device(model.backbone.example(1), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), earlier(tokens))
    assert len(start.messages) == 1


REFUSED = {
    "another method": ("toast", "lora", {}, "adapter.wrong-method"),
    "another rank": ("lora", {"name": "lora", "rank": 2}, {}, "adapter.wrong-method"),
    "other levels of the same number": (
        {"name": "toast", "feedback": "early", "feedback_level": 1},
        {"name": "toast", "feedback": "late", "feedback_level": 2},
        {},
        "adapter.wrong-method",
    ),
    "another backbone": ("linear", "linear", {"backbone": "vit_demo"}, "adapter.wrong-backbone"),
    "other weights": (
        "toast",
        "toast",
        {"backbone": {"name": "vit_demo_3", "weights": "none"}},
        "weights.wrong-fingerprint",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    before, now, fields, code = REFUSED[case]
    tuned(tmp_path / "a.safetensors", recipe_of(before), BEFORE)
    with pytest.raises(ToastError) as refused:
        continued(tmp_path / "a.safetensors", recipe_of(now, **fields), BEFORE)
    assert refused.value.code == code


def test_a_folded_export_is_refused_and_pre_tuning_starts_from_no_tuned_model(tmp_path: Path) -> None:
    path, recipe = tmp_path / "a.safetensors", recipe_of("toast")
    tuned(path, recipe, BEFORE)
    with pytest.raises(ToastError) as refused:
        continued(path, recipe_of("toast", pretuning={}), BEFORE)
    assert refused.value.code == "artifact.missing"
    model = fold_model(build_model(recipe, BEFORE))
    config = build_adapter_config(model, recipe, BEFORE)
    object.__setattr__(config, "folded", True)
    save_adapter_file(path, model, config)
    with pytest.raises(ToastError) as refused:
        continued(path, recipe, BEFORE)
    assert refused.value.code == "adapter.folded"


@pytest.mark.parametrize("method", ["full", "toast"])
def test_a_linear_probe_starts_the_head_of_any_method(tmp_path: Path, method: str) -> None:
    earlier = tuned(tmp_path / "a.safetensors", recipe_of("linear"), BEFORE)
    model, start = continued(tmp_path / "a.safetensors", recipe_of(method), BEFORE)
    assert torch.equal(model.head.weight, earlier.head.weight) and not start.has_method  # type: ignore[arg-type]


def test_lite_continues_on_the_path_of_toast(tmp_path: Path) -> None:
    earlier = tuned(tmp_path / "a.safetensors", recipe_of("toast"), BEFORE)
    model, start = continued(tmp_path / "a.safetensors", recipe_of("toast-lite"), BEFORE)
    images = model.backbone.example(1)
    with torch.no_grad():
        torch.testing.assert_close(model(images), earlier(images))
    assert start.has_method


def test_other_image_sizes_are_taken(tmp_path: Path) -> None:
    tuned(tmp_path / "a.safetensors", recipe_of("toast"), BEFORE)
    larger = recipe_of("toast", backbone={"name": "vit_demo_3", "image_size": 96})
    assert continued(tmp_path / "a.safetensors", larger, BEFORE)[1].has_method


def test_rows_of_one_name_are_matched_once() -> None:
    assert match_rows((COMPOSED, "a"), ("a", DECOMPOSED)) == [(0, 1), (1, 0)]
    assert match_rows((COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)) == [(0, 1), (1, 0)]
    assert match_rows((COMPOSED, DECOMPOSED), (DECOMPOSED,)) == [(1, 0)]


def test_a_run_is_told_from_an_artifact_and_from_nothing(tmp_path: Path, linear_run: Path, pretuned_run: Path) -> None:
    assert is_tuned_model(linear_run) and is_tuned_model(linear_run / "adapter")
    assert not any(map(is_tuned_model, (pretuned_run, pretuned_run / "artifact", tmp_path, tmp_path / "none")))


def identity(**splits: list[tuple[str, int | None]]) -> DataIdentity:
    listed = {name: tuple((each, 0, stamp) for each, stamp in samples) for name, samples in splits.items()}
    return DataIdentity(("a",), {name: SplitIdentity(len(of), str(of), str(of), of) for name, of in listed.items()})


def leaks(before: DataIdentity | None, now: DataIdentity) -> list[str]:
    return describe_start_leaks(Start(({"from": "runs/a", "kind": "tuned"},), (), data=before), now)


def test_test_images_that_the_start_was_trained_on_are_a_leak() -> None:
    before = identity(train=[("1", 11), ("2", 12), ("3", None)], test=[("4", 14)])
    (leak,) = leaks(before, identity(train=[("x", 11)], test=[("other name", 12), ("3", 99), ("y", 15)]))
    assert leak.startswith("LEAK: 1 sample of test is in the training split of runs/a (other name).")
    (warning,) = leaks(before, identity(train=[("x", 1)], val=[("v", 11)], test=[("t", 14)]))
    assert warning.startswith("Warning: 1 sample of val is")
    assert leaks(before, before) == [], "the same splits are apart"
    assert leaks(before, identity(train=[("1", 11)], test=[("5", 15)])) == []


def test_data_without_hashes_of_content_is_compared_as_a_whole_or_said_not_to_be() -> None:
    before = identity(train=[("1", None)], test=[("2", None)])
    swapped = DataIdentity(("a",), {"train": before.splits["test"], "test": before.splits["train"]})
    assert leaks(before, swapped)[0].startswith("LEAK: 1 sample of test is")
    assert leaks(before, identity(train=[("3", None)], test=[("4", None)]))[0].startswith("Not compared")
    assert leaks(None, before)[0].startswith("Not compared")
