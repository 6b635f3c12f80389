"""Exported folders as transformers opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.conftest import TINY_DEMO, toast
from tests.cli.export.conftest import logits, top_down_parts
from toast_cli import registry
from toast_cli.backbones.base import Backbone, Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.transforms import build_transform
from toast_cli.export import verification_worker
from toast_cli.export.formats.hf import build_image_processor_config
from toast_cli.storage.load_model import load_model
from toast_cli.storage.model_card import format_transformers_card
from toast_cli.utils.errors import ToastError


def test_transformers_loads_an_exported_classifier(here: Path, run: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    import toast_cli

    said = toast("export", "--run", run, "--format", "hf", "--out", here / "hf")
    assert said.code == 0, said.err
    toast_cli.register()
    model = AutoModelForImageClassification.from_pretrained(here / "hf")
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=image).logits, logits(run, image))
    assert [model.config.id2label[i] for i in range(len(load_model(run).classes))] == list(load_model(run).classes)
    assert tuple(AutoImageProcessor.from_pretrained(here / "hf").image_std) == (0.25, 0.25, 0.25)
    card = (here / "hf" / "README.md").read_text()
    for words in ("toast on vit_demo", "Test: accuracy", "fingerprint", "Licence", "AutoModelForImageClassification"):
        assert words in card
    assert 'toast_cli.load("THIS_FOLDER").attention("image.jpg")' in card
    opened = toast_cli.load(here / "hf")
    with torch.no_grad():
        assert torch.equal(opened(image), logits(run, image))
    assert opened.attention(Image.new("RGB", (80, 90))).last is not None and opened.classes == load_model(run).classes
    config = (here / "hf" / "config.json").read_text()
    assert "auto_map" not in config
    model.save_pretrained(here / "again")
    again = AutoModelForImageClassification.from_pretrained(here / "again")
    with torch.no_grad():
        assert torch.equal(again(pixel_values=image).logits, logits(run, image))
    first, second = (model.config.id2label[i] for i in range(2))
    swapped = {**json.loads(config), "id2label": {**model.config.id2label, 0: second, 1: first}}
    (here / "again" / "config.json").write_text(json.dumps(swapped))
    with pytest.raises(ToastError) as refused:
        AutoModelForImageClassification.from_pretrained(here / "again")
    assert refused.value.code == "export.class-order"


@pytest.mark.usefixtures("quickly")
def test_a_folder_for_transformers_loads_in_half_precision_and_not_with_other_classes(here: Path, run: Path) -> None:
    from transformers import AutoModelForImageClassification

    import toast_cli

    assert toast("export", "--run", run, "--format", "hf", "--out", here / "hf").code == 0
    toast_cli.register()
    half = AutoModelForImageClassification.from_pretrained(here / "hf", dtype="bfloat16")
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    config = json.loads((here / "hf" / "config.json").read_text())
    turned = config["toast"]["classes"][::-1]
    named = {"id2label": dict(enumerate(turned)), "label2id": {name: index for index, name in enumerate(turned)}}
    changed = {**config, **named, "toast": {**config["toast"], "classes": turned}}
    (here / "hf" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ToastError) as refused:
        AutoModelForImageClassification.from_pretrained(here / "hf")
    assert refused.value.code == "export.class-mismatch"
    (here / "hf" / "config.json").write_text(json.dumps({**config, "toast": [1]}))
    with pytest.raises(ToastError) as refused:
        AutoModelForImageClassification.from_pretrained(here / "hf")
    assert refused.value.code == "export.damaged-config"


@pytest.mark.usefixtures("quickly")
def test_the_card_of_an_import_tells_that_it_is_one(here: Path) -> None:
    head = {"head.weight": torch.randn(3, 128), "head.bias": torch.zeros(3)}
    torch.save({"model": top_down_parts() | head}, here / "theirs.pth")
    assert toast("import", "theirs.pth", "--backbone", "vit_demo_3", "--output-dir", "run").code == 0
    assert toast("export", "--run", "run", "--format", "hf", "--out", "hf").code == 0
    told = (here / "hf" / "README.md").read_text()
    assert "Imported from: theirs.pth (SHA-256 `" in told and "backbone.value_bias=twice" in told
    assert "Feedback path from" not in told


@pytest.mark.parametrize(
    "how", [{}, {"resize": 96}, {"squash": True}, {"normalize": "imagenet", "resize": 80}], ids=str
)
def test_an_exported_image_processor_prepares_images_as_the_run_does(how: dict[str, Any]) -> None:
    preprocessing = Preprocessing((64, 64), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", 0.8)
    images = ImageOptions(**how)
    from transformers import CLIPImageProcessor

    spelled = build_image_processor_config(preprocessing, images, whole=False)
    noise = np.random.default_rng(0).integers(0, 255, (12, 17, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((180, 120))  # even margins: odd ones are rounded to the other side
    ours = build_transform(images, preprocessing, train=False)(picture)[0]
    theirs = CLIPImageProcessor(**spelled)(picture, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == ours.shape and (theirs - ours).abs().mean() < 0.02


@pytest.mark.usefixtures("quickly")
def test_transformers_loads_an_exported_language_model_and_lets_it_write(here: Path, text_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import toast_cli

    said = toast("export", "--run", text_run, "--format", "hf", "--fold", "--out", here / "hf")
    assert said.code == 0, said.err
    toast_cli.register()
    model = AutoModelForCausalLM.from_pretrained(here / "hf")
    prompt = AutoTokenizer.from_pretrained(here / "hf")("Say yes.", return_tensors="pt").input_ids
    written = model.generate(prompt, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        step = logits(text_run, {"input_ids": written[:, :-1], "attention_mask": torch.ones_like(written[:, :-1])})
    assert torch.equal(step[:, prompt.shape[1] - 1 :].argmax(-1), written[:, prompt.shape[1] :])


def test_a_card_tells_the_licence_of_published_weights_and_of_no_others(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)  # in place of a download
    words = ["--backbone", "vit:test_vit", "--method", "linear", "training.epochs=1"]
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), here / "own.safetensors")
    published = build_of("vit:test_vit", None)
    assert published.licence == "apache-2.0"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert build_of("vit:test_vit", str(here / "own.safetensors")).licence is None
    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
    assert toast("tune", *TINY_DEMO, *words, "--weights", "own.safetensors", "--output-dir", "run").code == 0
    assert toast("export", "--run", "run", "--format", "hf", "--out", "hf").code == 0
    assert "license:" not in (here / "hf" / "README.md").read_text()
    assert "Licence of the backbone: not recorded" in (here / "hf" / "README.md").read_text()
    loaded = load_model(here / "run")
    monkeypatch.setattr(type(loaded.model.backbone), "licence", published.licence)
    told = format_transformers_card(loaded, loaded.config, "float32")
    assert "\nlicense: apache-2.0\n" in told and "Licence of the backbone: apache-2.0" in told


def build_of(name: str, weights: str | None) -> Backbone:
    made = registry.load_backbone_card(name)
    return made.build(made.options(name=name, weights=weights))
