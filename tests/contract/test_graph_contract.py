"""The graphs of exports on a tiny model of every family: both passes, any batch size, the outputs of the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.conftest import TINY_MODELS, built
from toast_cli.export.base import ExportRequest
from toast_cli.export.graph import trace_model
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.steering.steering import Steering, run_one_pass
from toast_cli.tasks.classification import ClassificationOptions, build_classification

COUNTS = {"hf_vision": None, "torchvision_models": None}
"""How many models of a family are exported; None: all of them, as their networks have little in common."""


def steered(name: str) -> Model:
    torch.manual_seed(0)
    backbone = built(name)
    stock = BackboneSnapshot.from_backbone(backbone)
    steering = Steering(backbone)
    with torch.no_grad():
        for parameter in steering.feedback.parameters():
            nn.init.normal_(parameter, std=0.05)
        compared = run_one_pass(backbone, backbone.example(2)).first.compared.movedim(backbone.channel_dim, -1)
        steering.selection.xi.copy_(compared.flatten(0, -2).mean(0))
    objective = build_classification(ClassificationOptions(name="classification"), backbone, ("a", "b"))
    return Model(AdaptedModel(backbone, steering.parameters(), steering), objective, stock).eval()


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for key, names in TINY_MODELS.items() for name in names[: COUNTS.get(key, 1)]])
@torch.no_grad()
def test_graphs_compute_what_the_model_does_for_any_batch(name: str, tmp_path: Path) -> None:
    model = steered(name)
    loaded: Any = SimpleNamespace(model=model)
    images = model.backbone.example(3)
    expected = model(images)
    program = trace_model(loaded, ExportRequest("full"))
    assert torch.allclose(program.module()(image=images)["logits"], expected, atol=1e-4)

    runtime = pytest.importorskip("onnxruntime")
    converted: Any = torch.onnx.export(program, output_names=["logits"], dynamo=True, verbose=False, optimize=False)
    converted.save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-3)
