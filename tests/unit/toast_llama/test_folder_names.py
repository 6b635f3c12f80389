"""The prefix `lm:`, and a folder as the name of a backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.language import make_model
from toast_cli import registry
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.utils.errors import UsageError


def write_config(folder: Path, *classes: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": classes}), encoding="utf-8")
    return folder


def test_lm_is_another_prefix_of_the_same_family() -> None:
    llama, lm = (registry.load_backbone_card(f"{prefix}:owner/model") for prefix in ("llama", "lm"))
    assert (lm.name, lm.family, lm.source, lm.options) == ("lm:owner/model", llama.family, llama.source, llama.options)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForConditionalGeneration"])
def test_a_folder_with_a_language_model_needs_no_prefix(tmp_path: Path, name: str) -> None:
    folder = write_config(tmp_path / "model", name)
    assert registry.expand_folder_name(str(folder)) == f"lm:{folder}"
    assert registry.load_backbone_card(str(folder)).name == f"lm:{folder}"


def test_a_folder_with_a_vision_model_is_recognized_by_its_preprocessing(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", "ViTForImageClassification")
    (folder / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    assert registry.expand_folder_name(str(folder)) == f"hf:{folder}"


def test_a_folder_of_an_unknown_kind_is_refused_with_the_prefixes(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", "Wav2Vec2Model")
    with pytest.raises(UsageError, match=f"lm:{folder}") as refused:
        registry.load_backbone_card(str(folder))
    assert refused.value.code == "backbone.unknown-folder"


def test_a_recipe_records_the_prefix_and_a_short_name_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "vit_b16").mkdir()
    (tmp_path / "vit_b16" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for choice in ("./model", "model"):
        recipe = resolve_recipe(backbone=choice, dataset="alpaca:a.json", method="lora").recipe
        assert recipe.backbone.name == f"lm:{choice}"
    assert registry.expand_folder_name("vit_b16") == "vit_b16"
