"""OpenVINO's converter without its reports to a server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.contract.test_graph_contract import steered
from toast_cli.export.base import ExportRequest
from toast_cli.export.formats.openvino import reopen_openvino, write_openvino

openvino = pytest.importorskip("openvino")


@torch.no_grad()
def test_a_graph_has_its_metadata_and_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = pytest.importorskip("openvino_telemetry")
    reports: list[Any] = []
    for name in ("start_session", "send_event", "send_error"):
        monkeypatch.setattr(telemetry.Telemetry, name, lambda *given, **named: reports.append(given))
    monkeypatch.setattr("toast_cli.export.graph.build_graph_metadata", lambda *_: {"labels": '["a", "ü"]'})
    model = steered("vit_demo_3")
    model.objective.target = "class"
    loaded: Any = SimpleNamespace(model=model)
    write_openvino(loaded, ExportRequest("full"), tmp_path / "x.xml")
    assert not reports and {file.name for file in tmp_path.iterdir()} == {"x.xml", "x.bin", "infer.py"}
    opened = openvino.Core().read_model(tmp_path / "x.xml")
    assert opened.get_rt_info(["toast", "labels"]).astype(str) == '["a", "ü"]'
    images = model.backbone.example(3)
    found = reopen_openvino(ExportRequest("full"), tmp_path / "x.xml")({"image": images})
    assert torch.allclose(found["logits"], model(images), atol=1e-4)
