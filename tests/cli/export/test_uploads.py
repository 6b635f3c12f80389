"""`toast export --push` and reading what it pushed, with a hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import toast_cli
from tests.cli.conftest import TINY_DEMO, toast
from tests.hub import TOKEN, LocalHub, serve_hub
from toast_cli.storage.load_model import load_model
from toast_cli.utils.hub import is_repository_id


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """`online(address)`: that is where the hub is from now on, with an empty cache."""
    from huggingface_hub import constants

    def at(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # LFS alone, as most endpoints other than the hub
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    return at


@pytest.fixture
def hub(online: Callable[[str], None]) -> Iterator[LocalHub]:
    """A hub on loopback, which the hub's client speaks to."""
    with serve_hub() as hub:
        online(hub.address)
        yield hub


def push(run: Path, *options: str, to: str = "me/mine") -> None:
    """Export a run and upload it."""
    said = toast("export", "--run", run, *options, "--push", to)
    assert said.code == 0, said.err
    assert "Uploaded: " in said.out and to in said.out and TOKEN not in said.out + said.err


def read_front_matter(hub: LocalHub, name: str = "me/mine") -> dict[str, Any]:
    """Return the metadata of a model card."""
    card = hub.files[name]["README.md"].decode()
    assert "THIS_FOLDER" not in card
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def predict_ones(model: Any, run: Path) -> torch.Tensor:
    """Return the logits of an image of ones at the size of a run's input."""
    size = load_model(run).model.backbone.require_preprocessing().image_size
    with torch.no_grad():
        logits: torch.Tensor = model(torch.ones(1, 3, *size))
    return logits


@pytest.mark.usefixtures("quickly")
def test_a_pushed_adapter_is_a_run_a_start_and_a_model(here: Path, run: Path, hub: LocalHub) -> None:
    push(run, "--out", str(here / "a.safetensors"))
    assert hub.files["me/mine"]["a.safetensors"] == (here / "a.safetensors").read_bytes()
    assert "a.safetensors" in hub.by_lfs and hub.authorized
    metadata = read_front_matter(hub)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("toast-tune", "image-classification")
    assert metadata["tags"] == ["toast", "toast"] or "toast" in metadata["tags"]
    assert "datasets" not in metadata and metadata["inference"] is False
    assert 'toast_cli.load("me/mine")' in hub.files["me/mine"]["README.md"].decode()
    opened = toast_cli.load("me/mine")
    assert torch.equal(predict_ones(opened, run), predict_ones(load_model(run).model, run))
    said = toast("eval", "--run", "me/mine", "--json")
    assert said.code == 0, said.err
    measured = json.loads((run / "results.json").read_text())["test"]["accuracy"]
    assert json.loads(said.out)["test"]["accuracy"] == pytest.approx(measured)
    said = toast("tune", *TINY_DEMO, "--init-from", "me/mine", "training.epochs=1", "--output-dir", "further")
    assert said.code == 0, said.err
    lineage = json.loads((here / "further" / "adapter" / "adapter_config.json").read_text())["lineage"]
    assert lineage[-1]["from"] == "me/mine"
    before = sorted((here / "hub-cache").rglob("*"))
    said = toast("export", "--run", "me/mine", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["file"] == str(Path("export", "me--mine-adapter.safetensors"))
    assert sorted((here / "hub-cache").rglob("*")) == before
    assert TOKEN not in "".join(file.read_text(errors="ignore") for file in here.rglob("*.json"))


@pytest.mark.usefixtures("quickly")
def test_pushed_weights_are_the_weights_of_another_run(here: Path, run: Path, hub: LocalHub) -> None:
    push(run, "--what", "backbone", "--out", str(here / "b.safetensors"), to="me/weights")
    assert read_front_matter(hub, "me/weights")["pipeline_tag"] == "image-feature-extraction"
    words = ["--backbone", "vit_demo", "--weights", "me/weights", "--method", "linear", "training.epochs=1"]
    said = toast("tune", *TINY_DEMO, *words, "--output-dir", "probe")
    assert said.code == 0, said.err
    assert toast("export", "--run", "probe", "--out", here / "probe.safetensors").code == 0
    assert load_model(here / "probe.safetensors").recipe.backbone.weights == "me/weights"


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("form", "library", "files"),
    [
        ("onnx", "onnx", {"x.onnx", "infer.py"}),
        ("openvino", "openvino", {"x.xml", "x.bin", "infer.py"}),
        ("torch-export", "pytorch", {"x.pt2"}),
        ("hf", "transformers", {"config.json", "model.safetensors"}),
    ],
)
def test_every_kind_of_export_has_a_card(
    here: Path, run: Path, hub: LocalHub, form: str, library: str, files: set[str]
) -> None:
    if form in ("onnx", "openvino"):
        pytest.importorskip(form)
    push(run, "--format", form, "--out", "hf" if form == "hf" else "x")
    assert files | {"README.md"} <= hub.files["me/mine"].keys()
    metadata = read_front_matter(hub)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == (library, "image-classification")
    if form == "hf":
        local = {path.name: path.read_bytes() for path in (here / "hf").iterdir() if path.name != "README.md"}
        assert {name: data for name, data in hub.files["me/mine"].items() if name != "README.md"} == local
        assert torch.equal(
            predict_ones(toast_cli.load("me/mine"), run), predict_ones(load_model(here / "hf").model, run)
        )


@pytest.mark.usefixtures("quickly")
def test_a_repository_that_is_not_there_is_an_error_in_one_request(here: Path, hub: LocalHub) -> None:
    toast("eval", "--run", "me/nothing").fails(1, "no repository of that name", error="hub.missing-repository")
    assert len(hub.asked) == 1
    (here / "runs").mkdir()
    assert not is_repository_id("runs/mistyped") and is_repository_id("me/mine")
    assert not any(map(is_repository_id, ("a/b/c", "me/mine.safetensors", "/me/mine", "./mine", "mine", "~/mine")))
    toast("eval", "--run", "runs/mistyped").fails(2, error="adapter.missing")


@pytest.mark.usefixtures("quickly")
def test_an_upload_that_fails_keeps_the_export(here: Path, run: Path, online: Callable[[str], None]) -> None:
    online("http://127.0.0.1:9")
    said = toast("export", "--run", run, "--out", here / "a.safetensors", "--push", "me/mine")
    said.fails(1, error="export.upload-failed")
    assert (here / "a.safetensors").is_file()
