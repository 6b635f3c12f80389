"""`toast backbones --search` and `--check`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from toast_cli.backbones import steering_check
from toast_cli.backbones.base import Card
from toast_cli.cli.app import app
from toast_cli.utils.errors import ToastError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on every connection."""

    def connect(*_: object) -> None:
        raise AssertionError("a search or a check needs no network")

    monkeypatch.setattr("socket.socket.connect", connect)


def toast(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ("backbones", *arguments))
    return result.exit_code, result.stdout, result.stderr


def test_a_search_finds_short_names_entry_points_and_prefixes() -> None:
    code, out, err = toast("--search", "dinov3")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert next(line for line in lines if line[0] == "dinov3_convnext_t")[1:6] == [
        *("convnext", "27.8M", "224", "yes", "dinov3-license"),
    ]
    assert "timm:vit_small_patch16_dinov3.lvd1689m" in out
    code, out, _ = toast("--search", "transformers")
    assert code == 0 and "llama:<...>" in out


def test_a_search_shows_the_first_and_counts_the_rest() -> None:
    _, out, _ = toast("--search", "vit", "--limit", "5")
    listing = json.loads(toast("--search", "vit", "--json")[1])
    assert listing["found"] == len(listing["backbones"]) > 300
    assert out.splitlines()[-1].startswith(f"{listing['found'] - 5} more.")
    assert out.count("timm, ") == 5, "a row names its source once"


def test_a_search_that_finds_nothing_offers_the_nearest_name() -> None:
    code, _, err = toast("--search", "vit_bsae_patch16_224")
    assert code == 2
    assert "vit_base_patch16_224" in err


def test_a_check_says_where_the_signals_enter_without_the_weights() -> None:
    code, out, err = toast("--check", "timm:vit_giant_patch14_dinov2")  # 4.5 GB of weights
    assert (code, err) == (0, "")
    assert "family: vit (VisionTransformer)" in out
    assert "levels 1-40: 1536 to 1536 channels, undone by a linear layer" in out
    assert "signals enter: the input of the value projection" in out
    assert "maps: attention" in out and "licence: apache-2.0" in out and "parameters: 1136.5M" in out


def test_a_check_is_json_for_machines() -> None:
    found = json.loads(toast("--check", "convnext_t", "--json")[1])
    assert found["steered"] and found["maps"] == "feature energy" and found["licence"] == "apache-2.0"
    assert [(level["width_in"], level["stride"], level["undo"]) for level in found["levels"]] == [
        *[(3, 4, "deconvolution"), (96, 2, "deconvolution"), (192, 2, "deconvolution"), (384, 2, "deconvolution")]
    ]
    assert found["preprocessing"]["crop_pct"] == 0.875


def test_a_check_of_what_cannot_be_steered_gives_the_reason() -> None:
    code, _, err = toast("--check", "timm:mixer_s16_224")
    assert code == 1
    assert "no attention whose values could carry a signal" in err
    code, out, _ = toast("--check", "timm:mixer_s16_224", "--json")
    assert code == 1 and json.loads(out)["error"]["code"] == "backbone.cannot-steer"
    assert toast("--check", "timm:no_such_model")[0] == 2


def test_a_model_that_needs_values_to_be_built_is_built_only_if_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def build(_: object) -> object:
        layer = torch.nn.Linear(20, 20)
        return layer, float(layer.weight.sum())

    card = Card("needs_values", "house", None, "the house", build)  # type: ignore[arg-type]
    assert steering_check.build_without_weights(card, "needs_values")[1] != 0  # type: ignore[index]
    monkeypatch.setattr(steering_check, "LARGEST_RANDOM_BUILD", 100)
    with pytest.raises(ToastError, match="too large"):
        steering_check.build_without_weights(card, "needs_values")
