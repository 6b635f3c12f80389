"""Adapters of one backbone: saved, loaded, several in memory at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoModelForCausalLM

import toast_cli
from tests.language import make_model
from tests.layouts import photograph
from toast_cli.utils.errors import ToastError, UsageError

METHODS = ["toast", "toast-lite", "linear", "vpt", "lora", "full"]
CLASSES = {method: [f"{method} a", f"{method} b", "c"][: 2 + index % 2] for index, method in enumerate(METHODS)}


@pytest.fixture(scope="module")
def mine() -> Any:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=7, img_size=96)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return photograph(1)


def trained(mine: Any, method: str) -> toast_cli.Steered:
    """A model with an adapter whose tensors all differ from those that it starts with."""
    torch.manual_seed(len(method))
    steered = toast_cli.steer(mine, classes=CLASSES[method], method=method).eval()
    with torch.no_grad():
        for weight in steered.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    return steered


@pytest.fixture(scope="module")
def saved(mine: Any, image: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder of every method, and what its model predicts."""
    folder, made = tmp_path_factory.mktemp("adapters"), {}
    for method in METHODS:
        steered = trained(mine, method)
        steered.save(folder / method)
        made[method] = folder / method, steered.predict(image)[0].probabilities
    return made


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_is_loaded_onto_the_model_again(
    mine: Any, image: Image.Image, saved: dict[str, tuple[Path, Any]], method: str
) -> None:
    folder, expected = saved[method]
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    loaded = toast_cli.load(folder, backbone=mine)
    assert torch.equal(loaded.predict(image)[0].probabilities, expected)
    assert list(loaded.classes) == CLASSES[method]
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    shares = loaded.model.backbone.module.pos_embed is mine.pos_embed
    assert shares == (method != "full")
    again = folder.parent / f"{method} again"
    loaded.save(again)
    assert torch.equal(toast_cli.load(again, backbone=mine).predict(image)[0].probabilities, expected)


def test_a_backbone_is_built_from_its_name_where_its_weights_are_those_of_the_name(
    image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: dict[str, tuple[Path, Any]]
) -> None:
    create = timm.create_model

    def published(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        """In place of a download, weights that follow from a seed."""
        torch.manual_seed(5)
        model = create(name, **{**arguments, "num_classes": 7})
        if "num_classes" in arguments:
            model.reset_classifier(arguments["num_classes"])
        return model

    monkeypatch.setattr(timm, "create_model", published)
    for name in ("test_vit", "test_convnext"):
        steered = trained(published(name, pretrained=True), "toast")
        steered.save(tmp_path / name)
        loaded = toast_cli.load(tmp_path / name)
        assert torch.equal(loaded.predict(image)[0].probabilities, steered.predict(image)[0].probabilities)
    with pytest.raises(ToastError, match=r"backbone=MODEL") as refused:
        toast_cli.load(saved["toast"][0])
    assert refused.value.code == "weights.wrong-fingerprint"


def test_a_language_model_is_built_from_its_folder(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    steered = toast_cli.steer(model, method="toast-lite").eval()
    steered.save(tmp_path / "adapter")
    ids = torch.randint(6, 100, (2, 7))
    loaded = toast_cli.load(tmp_path / "adapter")
    assert torch.equal(loaded(ids), steered(ids))


def test_a_model_without_a_name_is_passed_again(tmp_path: Path, image: Image.Image) -> None:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = VisionTransformer(**shape)
    steered = toast_cli.steer(model, classes=2)
    steered.save(tmp_path / "adapter")
    with pytest.raises(UsageError) as refused:
        toast_cli.load(tmp_path / "adapter")
    assert refused.value.code == "backbone.unnamed"
    assert toast_cli.load(tmp_path / "adapter", backbone=model).predict(image) == steered.predict(image)
    with pytest.raises(ToastError) as other:
        toast_cli.load(tmp_path / "adapter", backbone=VisionTransformer(**shape))
    assert other.value.code == "weights.wrong-fingerprint"


def test_a_folder_is_overwritten_only_where_asked_and_only_if_it_is_an_adapter(mine: Any, tmp_path: Path) -> None:
    steered = trained(mine, "linear")
    steered.save(tmp_path / "a")
    with pytest.raises(UsageError) as refused:
        steered.save(tmp_path / "a")
    assert refused.value.code == "disk.already-exists"
    other = trained(mine, "vpt")
    other.save(tmp_path / "a", overwrite=True)
    assert list(toast_cli.load(tmp_path / "a", backbone=mine).classes) == CLASSES["vpt"]
    (tmp_path / "a" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        steered.save(tmp_path / "a", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_adapters_of_all_methods_share_the_backbone_and_stay_what_they_are(
    mine: Any, image: Image.Image, saved: dict[str, tuple[Path, Any]]
) -> None:
    folder, _ = saved["lora"]
    model = toast_cli.load(folder, backbone=mine)  # first the one that adds layers to the network
    names = [method for method in METHODS if method != "full"]
    for method in names:
        model.add_adapter(method, saved[method][0])
    assert model.adapters == ("default", *names) and model.active_adapter == "default"
    for method in [*names, *reversed(names)]:
        model.set_adapter(method)
        assert model.active_adapter == method and list(model.classes) == CLASSES[method]
        assert torch.equal(model.predict(image)[0].probabilities, saved[method][1]), method
    backbone = {id(weight) for weight in mine.parameters()}
    for adapter in model._adapters.values():
        own = [*adapter.model.get_trained_parameters(), *adapter.model.get_frozen_additions()]
        held = {name: id(weight) for name, weight in adapter.model.named_parameters()}
        assert backbone <= set(held.values()) and {name for name in held if held[name] not in backbone} == set(own)
    model.set_adapter("linear")
    model.delete_adapter("toast")
    assert "toast" not in model.adapters
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]  # of the active adapter alone


def test_adapters_that_cannot_share_a_backbone_are_refused(
    mine: Any, saved: dict[str, tuple[Path, Any]], linear_run: Path
) -> None:
    model = toast_cli.load(saved["linear"][0], backbone=mine)
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    refusals = [
        (lambda: model.add_adapter("full", saved["full"][0]), "adapter.own-backbone"),
        (lambda: model.add_adapter("other", linear_run), "weights.wrong-fingerprint"),
        (lambda: model.add_adapter("default", saved["toast"][0]), "adapter.duplicate-name"),
        (lambda: model.set_adapter("toats"), "adapter.unknown-name"),
        (lambda: model.delete_adapter("default"), "adapter.active"),
        (
            lambda: toast_cli.load(saved["full"][0], backbone=mine).add_adapter("a", saved["toast"][0]),
            "adapter.own-backbone",
        ),
    ]
    for refuse, code in refusals:
        with pytest.raises(ToastError) as refused:
            refuse()
        assert refused.value.code == code
    assert model.adapters == ("default",)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_features_are_those_of_the_head_and_of_the_plain_backbone(mine: Any, image: Image.Image) -> None:
    steered = trained(mine, "toast")
    images = [image, photograph(2), photograph(3)]
    sizes: list[int] = []
    hook = mine.patch_embed.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    last = steered.features(iter(images), batch_size=2)
    hook.remove()
    assert set(sizes) == {1, 2} and last.shape == (3, 64)
    assert torch.allclose(steered.model.head(last), steered(steered.prepare(images)), atol=1e-5)
    first = steered.features(images, passes="first")
    plain: Any = mine.forward_head(mine.forward_features(steered.prepare(images)), pre_logits=True)
    assert torch.allclose(first, plain, atol=1e-5) and not torch.allclose(first, last, atol=1e-3)
    linear = trained(mine, "linear")
    assert torch.allclose(linear.features(images), linear.features(images, "first"), atol=1e-5)
    with pytest.raises(UsageError):
        steered.features(images, passes="second")  # type: ignore[arg-type]
