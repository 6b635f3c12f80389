"""What is known about published weights before anything is built: catalogue, licences, short names."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm

from toast_cli import registry
from toast_cli.backbones.licences import announce_licence
from toast_cli.backbones.search import find_listed_card, search_cards
from toast_cli.utils.errors import ToastError
from toast_timm import loading


def list_timm_cards() -> list[Any]:
    return list(registry.load_entry(registry.FAMILIES, "timm").catalogue())


def short_cards() -> list[Any]:
    return [registry.load_backbone_card(name) for name in registry.list_names(registry.BACKBONES)]


@pytest.mark.parametrize("card", [c for c in short_cards() if c.source.startswith("timm, ")], ids=lambda c: c.name)
def test_a_short_name_says_what_timm_records_of_its_weights(card: Any) -> None:
    config = timm.get_pretrained_cfg(card.source.removeprefix("timm, "), allow_unregistered=False)
    assert config is not None and config.has_weights
    height, width = config.input_size[-2:]
    assert (card.licence, card.image_size) == (config.license, height if height == width else (height, width))


def test_the_catalogue_of_torchvision_has_sizes_and_every_classifier() -> None:
    family = registry.load_entry(registry.FAMILIES, "torchvision")
    found = {card.name: card for card in family.catalogue()}
    card = found["torchvision:resnet50"]
    assert (card.parameters, card.image_size, card.published, card.licence) == (25_557_032, 224, True, None)
    assert len(found) >= 80


def test_every_short_name_has_a_licence() -> None:
    assert [card.name for card in short_cards() if not card.licence and card.family != "example"] == []


def test_the_catalogue_has_every_entry_point_and_tag() -> None:
    names = {card.name.removeprefix("timm:"): card for card in list_timm_cards()}
    assert set(timm.list_pretrained()) <= set(names)
    assert {name.partition(".")[0] for name in names} == set(timm.list_models())
    assert names["vit_small_patch16_dinov3.lvd1689m"].licence == "dinov3-license"


def test_a_search_puts_short_names_first_and_the_name_itself_before_others() -> None:
    found = [card.name for card in search_cards("resnet50", [], list_timm_cards())]
    assert all(name.startswith("timm:resnet50.") for name in found[:3])
    assert "timm:seresnet50.a1_in1k" in found and "timm:resnet18.a1_in1k" not in found
    assert search_cards("DinoV2 vit", short_cards(), [])[0].name == "vit_s14_dinov2"


def test_a_name_without_a_tag_is_that_of_the_default_weights() -> None:
    card = find_listed_card("vit_base_patch16_224", list_timm_cards())
    default = timm.get_pretrained_cfg("vit_base_patch16_224")
    assert card is not None and default is not None and card.name == f"timm:vit_base_patch16_224.{default.tag}"


@pytest.mark.parametrize(
    ("model", "notice"),
    [
        (
            "vit_small_patch16_dinov3",
            "dinov3-license: https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        ),
        ("convnextv2_tiny.fcmae_ft_in1k", "cc-by-nc-4.0: https://creativecommons.org/licenses/by-nc/4.0/"),
        ("resnet50.a1_in1k", ""),
    ],
)
def test_a_licence_that_is_not_permissive_is_shown_once_and_before_the_download(
    model: str, notice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(*_: object, **__: object) -> None:
        assert (notice in caplog.text) if notice else not caplog.records
        raise OSError("no network")

    announce_licence.cache_clear()
    monkeypatch.setattr(loading, "is_cached", lambda _: False)
    monkeypatch.setattr(loading, "_create_model", download)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(ToastError, match="could not be downloaded"):
                loading.build_module(model, None, {}, "a model", ())
    assert len(caplog.records) == bool(notice)


def test_weights_in_the_cache_are_loaded_without_a_notice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    announce_licence.cache_clear()
    monkeypatch.setattr(loading, "is_cached", lambda _: True)
    monkeypatch.setattr(loading, "_create_model", lambda *_, **__: "the model")
    assert loading.build_module("vit_small_patch16_dinov3", None, {}, "a model", ()) == "the model"
    assert not caplog.records
