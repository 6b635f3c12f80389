"""Backbones' own conventions: without steering, a backbone sees and computes what it does in its own library.

Reports of this kind: epheterson/immich-apple-silicon #122, huggingface/pytorch-image-models #1383.
A new timm kind joins by a line in `KINDS`, a new family of language models by a folder that the contract suite reads.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import toast_cli
from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.transforms import build_transform
from toast_cli.export.formats.hf import build_image_processor_config
from toast_cli.storage.load_model import load_model
from toast_cli.utils.errors import ToastError, UsageError
from toast_timm.loading import get_preprocessing

KINDS = [
    *("aimv2_large_patch14_224", "beit3_base_patch16_224", "deit3_small_patch16_224", "deit_tiny_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "flexivit_small", "test_vit", "test_vit2", "test_vit3", "test_vit4"),
    *("vit_tiny_patch16_224", "vit_base_patch16_18x2_224", "vit_base_patch16_clip_384", "vit_base_patch16_gap_224"),
    *("vit_base_patch16_radio_v3", "vit_base_patch16_reg4_gap_256", "vit_base_patch16_rpn_224"),
    *("vit_base_patch16_siglip_224", "vit_base_patch16_224_miil", "vit_small_patch14_reg4_dinov2"),
    *("vit_tiny_r_s16_p8_224", "vit_so150m_patch16_reg4_map_256", "vit_giant_patch14_reg4_dinov2"),
    *("convnext_atto", "convnext_atto_ols", "convnext_atto_rms", "convnext_base.fb_in22k_ft_in1k_384"),
    *("convnext_tiny_hnf", "convnext_zepto_rms_ols", "convnextv2_atto", "convnextv2_tiny"),
]
"""A timm model of every kind: tokens, registers, pooling, norms, stems, blocks and heads."""

MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "convnext")
LANGUAGE_MODELS = Path(__file__).parent.parent / "contract" / "language_models"
PHOTOS = {"wide": (160, 90), "tall": (70, 150)}


def build_small(name: str, classes: int = 5) -> nn.Module:
    """The model with few and narrow layers, with weights large enough that every part matters."""
    small: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    if "convnext" in name:
        small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, on old names
        model: nn.Module = timm.create_model(name, num_classes=classes, **small).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += 0.1 * torch.randn_like(weight)
    return model


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def assert_same_as_timm(name: str) -> None:
    model = build_small(name)
    steered = toast_cli.steer(model, 5, method="linear")
    own = create_transform(**resolve_model_data_config(model), is_training=False)
    for photo in map(noise, PHOTOS.values()):
        torch.testing.assert_close(steered.prepare(photo)[0], own(photo), rtol=0, atol=1e-6, msg=name)
    images = torch.stack([own(noise(size)) for size in PHOTOS.values()])
    classifier: Any = model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        pooled = steered.model.forward_passes(images)[1].last.pooled
        assert torch.equal(pooled, model.forward_head(model.forward_features(images), pre_logits=True))  # type: ignore[operator]
        if isinstance(classifier, nn.Linear):
            torch.testing.assert_close(classifier(pooled), model(images), rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", KINDS)
def test_a_backbone_sees_and_computes_what_timm_does(name: str) -> None:
    assert_same_as_timm(name)


@pytest.mark.nightly
def test_every_model_of_timm_that_can_be_steered_sees_and_computes_what_timm_does() -> None:
    compared = 0
    for name in timm.list_models():
        if timm.models.is_model_in_modules(name, MODULES):
            try:
                toast_cli.steer(build_small(name), 5, method="linear")
            except (ToastError, AssertionError):  # cannot be steered, or not be built small
                continue
            assert_same_as_timm(name)
            compared += 1
    assert compared > 180


def test_every_published_configuration_of_timm_is_followed() -> None:
    """Weights of one model differ in their input size, crop and interpolation."""
    seen = set()
    photo = noise(PHOTOS["wide"])
    for name in timm.list_pretrained(["vit*", "deit*", "flexivit*", "convnext*"]):
        published = timm.get_pretrained_cfg(name).to_dict()
        config = resolve_data_config(pretrained_cfg=published)
        key = tuple(config[part] for part in ("input_size", "interpolation", "crop_pct", "crop_mode"))
        if key in seen or max(config["input_size"]) > 512:
            continue
        seen.add(key)
        found = get_preprocessing(SimpleNamespace(pretrained_cfg=published))  # type: ignore[arg-type]
        ours, _ = build_transform(ImageOptions(), found, train=False)(photo)
        torch.testing.assert_close(
            ours, create_transform(**config, is_training=False)(photo), rtol=0, atol=1e-6, msg=name
        )
    assert {key[-1] for key in seen} == {"center", "squash"} and len(seen) > 20


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(48, 48), (40, 56)])
def test_every_crop_mode_and_interpolation_is_that_of_timm(
    mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    config: dict[str, Any] = {
        "input_size": (3, *size), "interpolation": interpolation, "crop_mode": mode, "mean": (0.3, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
    }  # fmt: skip
    for crop_pct in (1.0, 0.8):
        config["crop_pct"] = crop_pct
        found = get_preprocessing(SimpleNamespace(pretrained_cfg=config))  # type: ignore[arg-type]
        own = create_transform(**config, is_training=False)
        for photo in (noise(PHOTOS["wide"]), noise(PHOTOS["tall"]), noise((33, 31))):
            shown, mask = build_transform(ImageOptions(), found, train=False)(photo, np.ones(photo.size[::-1], bool))
            torch.testing.assert_close(shown, own(photo), rtol=0, atol=1e-6)
            inside = own(Image.new("RGB", photo.size, "white"))[0] > 1  # and not in the padding
            assert mask is not None and torch.equal(mask, inside)


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_training_without_crops_sees_what_evaluation_sees_and_random_crops_keep_the_aspect_ratio(mode: Any) -> None:
    seen = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, crop_mode=mode)
    photo = noise((96, 48))
    evaluated, _ = build_transform(ImageOptions(), seen, train=False)(photo)
    trained, _ = build_transform(ImageOptions(), seen, train=True)(photo)
    assert torch.equal(trained, evaluated)
    crop = build_transform(ImageOptions(augment="crop-flip"), seen, train=True)
    torch.manual_seed(0)
    whole = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 127.5 - 1
    windows = whole.unfold(2, 48, 1).permute(2, 0, 1, 3)
    starts = set()
    for _ in range(8):
        shown, _ = crop(photo)
        (found,) = torch.nonzero(
            torch.stack([(windows - each).abs().amax((1, 2, 3)) for each in (shown, shown.flip(-1))]).amin(0) < 1e-5
        )
        starts.add(int(found))
    assert len(starts) > 1


def test_the_recipe_overrides_the_crop_mode() -> None:
    photo = noise(PHOTOS["wide"])
    squashing = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, crop_mode="squash")
    cropping = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, crop_pct=0.75)
    asked, _ = build_transform(ImageOptions(resize=64), squashing, train=False)(photo)
    assert torch.equal(asked, build_transform(ImageOptions(), cropping, train=False)(photo)[0])


def test_a_run_of_a_version_that_cropped_the_centre_still_does(
    linear_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toast_cli.storage import load_model as loading
    from toast_cli.storage.adapter import read_adapter

    def read(path: Path, recorded: bool) -> Any:
        config, tensors = read_adapter(path)
        assert config.preprocessing is not None
        if not recorded:
            del config.preprocessing["crop_mode"]
        return config, tensors

    def squash(*arguments: Any, **named: Any) -> Any:
        model, recipe = rebuilt(*arguments, **named)
        before = model.backbone.preprocessing
        model.backbone.preprocessing = Preprocessing(before.image_size, before.mean, before.std, crop_mode="squash")
        return model, recipe

    rebuilt = loading.rebuild_model
    monkeypatch.setattr(loading, "rebuild_model", squash)
    for recorded, mode in ((True, "squash"), (False, "center")):
        monkeypatch.setattr(loading, "read_adapter", lambda path, recorded=recorded: read(path, recorded))
        assert load_model(linear_run).model.backbone.require_preprocessing().crop_mode == mode


def test_an_exported_image_processor_squashes_and_refuses_what_it_cannot_do() -> None:
    from transformers import CLIPImageProcessor

    photo = noise((180, 120))
    seen = Preprocessing((64, 64), (0.5,) * 3, (0.2,) * 3, crop_pct=0.8, crop_mode="squash")
    spelled = build_image_processor_config(seen, ImageOptions(), whole=False)
    theirs = CLIPImageProcessor(**spelled)(photo, return_tensors="pt")["pixel_values"][0]
    ours, _ = build_transform(ImageOptions(), seen, train=False)(photo)
    assert (theirs - ours).abs().mean() < 0.02
    padding = Preprocessing((64, 64), (0.5,) * 3, (0.2,) * 3, crop_mode="border")
    with pytest.raises(ToastError) as refused:
        build_image_processor_config(padding, ImageOptions(), whole=False)
    assert refused.value.code == "export.unsupported-crop"
    assert build_image_processor_config(padding, ImageOptions(squash=True), whole=False)["do_center_crop"] is False


@pytest.mark.parametrize("kind", sorted(folder.name for folder in LANGUAGE_MODELS.iterdir()))
def test_a_language_model_computes_the_logits_of_transformers(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(LANGUAGE_MODELS / kind)).eval()
    backbone = toast_cli.steer(model, method="toast-lite").model.backbone
    tokens = backbone.example(2)
    with torch.no_grad():
        expected = model(**tokens).logits
        pooled = backbone.leave(backbone.run(backbone.enter(tokens))).pooled
        head = backbone.output()
        assert head is not None
        torch.testing.assert_close(head(pooled), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_r_s16_p8_224", "convnext_atto", "convnext_atto_ols"])
def test_a_model_that_does_not_read_rgb_is_refused_before_it_is_steered(name: str, channels: int) -> None:
    with pytest.raises(UsageError, match=rf"{channels} channel") as refused:
        toast_cli.steer(timm.create_model(name, in_chans=channels), 3)
    assert refused.value.code == "backbone.wrong-channels" and "in_chans=3" in refused.value.what_to_do
