"""Exported graphs as a user types and opens them: ONNX and torch.export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import TINY_DEMO, toast, toast_from_the_shell
from tests.cli.export.conftest import logits
from toast_cli.export.formats import onnx as onnx_file
from toast_cli.storage.load_model import load_model


def test_an_onnx_file_runs_without_torch_and_proves_it_in_another_process(here: Path, run: Path) -> None:
    import onnxruntime

    target = here / "model.onnx"
    said = toast_from_the_shell(
        "export", "--run", run, "--format", "onnx", "--maps", "--normalize", "--out", target, "--json"
    )
    assert said.code == 0, said.err
    report = json.loads((here / "export_report.json").read_text())["model.onnx"]
    assert {"random.logits", "real.logits", "real.attention_last", "random.similarity"} <= report["differences"].keys()
    assert json.loads(said.out)["largest_difference"] == max(report["differences"].values()) < 1e-4
    assert report["fold"] and report["seconds"] > 0 and report["seconds_pytorch"] > 0
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    pixels = torch.rand(5, 3, 64, 64)
    found = session.run(["logits"], {"image": pixels.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), logits(run, (pixels - 0.5) / 0.25), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == list(load_model(run).classes)
    # Folded: nothing of the feedback path is left but one matrix a level.
    assert not any(".feedback." in name for name in weights_in(target))
    assert sorted(path.name for path in here.iterdir()) == ["export_report.json", "infer.py", "model.onnx"]


AXES = {"image": ["batch", 3, "height", "width"], "input_ids": ["batch", "sequence"]}


def axes_of(path: Path) -> dict[str, list[Any]]:
    import onnx

    return {
        each.name: [side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in onnx.load(path).graph.input
    }


@pytest.fixture(scope="module")
def convolutional_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST on a tiny ConvNeXt."""
    run = tmp_path_factory.mktemp("convolutional") / "run"
    chosen = ["--backbone", "convnext:test_convnext", "--weights", "none", "method.start=random"]
    said = toast("tune", *TINY_DEMO, *chosen, "training.epochs=1", "--output-dir", run)
    assert said.code == 0, said.err
    return run


@pytest.mark.usefixtures("quickly")
def test_an_onnx_file_of_a_convnext_takes_images_of_any_size(here: Path, convolutional_run: Path) -> None:
    import onnxruntime

    target = here / "model.onnx"
    said = toast("export", "--run", convolutional_run, "--format", "onnx", "--out", target)
    assert said.code == 0, said.err
    assert axes_of(target)["image"] == AXES["image"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for image in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 128, 96)):
        (found,) = session.run(["logits"], {"image": image.numpy()})
        assert torch.allclose(torch.from_numpy(found), logits(convolutional_run, image), atol=1e-4)


@pytest.mark.usefixtures("quickly")
def test_an_onnx_file_of_a_language_model_takes_texts_of_any_length(here: Path, text_run: Path) -> None:
    import onnxruntime

    target = here / "model.onnx"
    said = toast("export", "--run", text_run, "--format", "onnx", "--out", target)
    assert said.code == 0, said.err
    assert axes_of(target)["input_ids"] == axes_of(target)["attention_mask"] == AXES["input_ids"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for shape in ((2, 5), (3, 41)):
        ids = torch.randint(6, 100, shape)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        (found,) = session.run(["logits"], {name: each.numpy() for name, each in inputs.items()})
        assert torch.allclose(torch.from_numpy(found), logits(text_run, inputs), atol=1e-4)


def weights_in(path: Path) -> list[str]:
    import onnx

    return [tensor.name for tensor in onnx.load(path).graph.initializer]


@pytest.mark.slow
def test_a_torch_program_takes_any_batch_and_carries_its_labels(here: Path, run: Path) -> None:
    target = here / "model.pt2"
    said = toast("export", "--run", run, "--format", "torch-export", "--out", target)
    assert said.code == 0, said.err
    assert "torch.export.load" in said.out and "8 real and 3 random" in said.out and "Speed:" in said.out
    extra = {"labels": ""}
    program = torch.export.load(target, extra_files=extra).module()
    image = torch.randn(7, 3, 64, 64)
    assert torch.allclose(program(image=image)["logits"], logits(run, image), atol=1e-4)
    assert json.loads(extra["labels"]) == list(load_model(run).classes)


@pytest.mark.usefixtures("quickly")
def test_a_language_models_graph_takes_any_number_of_tokens(here: Path, text_run: Path) -> None:
    target = here / "model.pt2"
    said = toast("export", "--run", text_run, "--format", "torch-export", "--out", target)
    assert said.code == 0, said.err
    ids = torch.randint(6, 100, (3, 29))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    found = torch.export.load(target).module()(input_ids=ids, attention_mask=mask)["logits"]
    expected = logits(text_run, {"input_ids": ids, "attention_mask": mask})
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-4)


@pytest.mark.usefixtures("quickly")
def test_the_weights_of_a_large_onnx_file_lie_beside_it(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocol buffers end at two gigabytes; here the limit is set low."""
    import onnxruntime

    monkeypatch.setattr(onnx_file, "MAX_INLINE_BYTES", 1000)
    words = ["export", "--run", run, "--format", "onnx", "--out", here / "model.onnx"]
    said = toast(*words, "--json")
    assert said.code == 0, said.err
    assert sorted(path.name for path in here.iterdir()) == [
        *("export_report.json", "infer.py", "model.onnx", "model.onnx.data")
    ]
    graph, weights, script = here / "model.onnx", here / "model.onnx.data", here / "infer.py"
    assert graph.stat().st_size < weights.stat().st_size
    assert json.loads(said.out)["bytes"] == sum(file.stat().st_size for file in (graph, weights, script))
    image = torch.randn(2, 3, 64, 64)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": image.numpy()})
    assert torch.allclose(torch.from_numpy(found), logits(run, image), atol=1e-4)
