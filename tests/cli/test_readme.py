"""The README: its length, its commands, its snippet, and that its transcript is what the demo prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.conftest import ROOT, toast
from tests.language import make_model
from tests.layouts import cub, put
from toast_cli.cli.output import console

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHORT = ["training.epochs=2", "training.warmup_epochs=1", "--device", "cpu"]
TINY_DEMO = ["dataset.train_images=10", "dataset.val_images=5", "dataset.test_images=6", *SHORT[:2]]


def list_block_commands() -> list[str]:
    """Return the commands of the README's blocks, in their order."""
    return [line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("toast ")]


def list_method_arguments() -> list[str]:
    """Return what the table of methods says to type: arguments of `toast tune`, or a whole command."""
    table = README.partition("## Which method when")[2].partition("##")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    texts = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    return [text for text in texts if not text.startswith("toast generate")]  # asks in a terminal, of a run


@pytest.fixture
def readers_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the README's commands name; a small ViT takes the place of `vit_b16`."""
    from toast_vit import cards

    monkeypatch.setattr(cards, "VIT_B16", cards._build_card("vit_b16", "test_vit"))
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), here / "small.safetensors")
    (here / "data").mkdir()
    cub(here / "data")
    for number in range(20):
        for name in ("daisy", "iris"):
            put(here / "photos" / name / f"{number}.jpg", 100 * (name == "iris") + number)
    put(here / "new-photos" / "img.jpg", 7)
    (here / "chats.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]})
            + "\n"
            for n in range(30)
        )
    )
    return here


def test_the_readme_has_at_most_1000_words() -> None:
    assert len([word for word in README.split() if re.search(r"\w", word)]) <= 1000


def test_the_commands_run_in_their_order(readers_folder: Path, quickly: None) -> None:
    commands = list_block_commands()
    assert len(commands) == 5
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "demo":
            arguments += TINY_DEMO
        if arguments[0] == "tune":
            arguments += ["--weights", "small.safetensors", *SHORT]
        said = toast(*arguments)
        assert said.code == 0, f"{command}\n{said.err}"
    assert (readers_folder / "labels.csv").read_text().count("\n") == 2
    assert toast("export", "--format", "safetensors").code == 0


def test_the_transcript_has_the_words_of_the_demo(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (transcript,) = (block for _, block in BLOCKS if block.startswith("$ toast demo"))
    monkeypatch.setattr(console.out, "width", 100)
    said = toast("demo", *TINY_DEMO)
    assert said.code == 0, said.err

    def words(text: str) -> set[str]:
        return set(re.findall(r"[A-Za-z]{2,}[\w.]*", text))

    assert words(transcript) - {"toast"} <= words(said.out + said.err)
    folder = README.partition("runs/demo-vit_demo-toast-seed0/")[2].partition("```")[0]
    run = here / "runs/demo-vit_demo-toast-seed0"
    named = {line.split()[0].rstrip("/") for line in folder.splitlines() if line}
    assert named == {path.name for path in run.iterdir()}


@pytest.mark.parametrize("text", list_method_arguments())
def test_every_choice_of_a_method_is_accepted(readers_folder: Path, text: str) -> None:
    model = f"lm:{make_model(readers_folder / 'model')}"
    texts = ["--backbone", model, "--dataset", "messages:chats.jsonl", "--method", "lora"]
    photographs = ["--backbone", "vit_b16", "--dataset", "folder:photos", "--weights", "small.safetensors"]
    if text.startswith("toast tune"):
        arguments = shlex.split(text.replace("qwen3_0_6b", model))[2:]
    elif text.startswith("backbone.quantize"):
        arguments = [*texts, text]
    elif text.startswith("--method"):
        arguments = [*photographs, *shlex.split(text)]
    else:
        arguments = [*photographs, "--method", text]
    said = toast("tune", *arguments, "--dry-run", "--device", "cpu")
    assert said.code == 0, said.err


def test_the_snippet_runs_as_it_stands(toast_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = (block for kind, block in BLOCKS if kind == "python")
    shutil.copytree(toast_run, "runs/mine")
    Image.new("RGB", (90, 70), "teal").save("img.jpg")
    create = timm.create_model
    # In place of a download, random weights: the rest is as it stands.
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["prediction"].label in names["model"].classes
    assert names["maps"].first.sum() == pytest.approx(1.0, abs=1e-5) and names["maps"].last is not None
    assert names["logits"].shape == (2, 10) and (here / "adapters/mine").is_dir()
