"""Maps of a ConvNeXt as they are written, against timm's own network listened to by hooks, and plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cli.conftest import toast
from tests.scenes import demo_model, kept
from toast_cli.data.demo.scenes import DemoOptions, open_demo

NAME, SIDE = "test_convnext2", 64


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's network, a run with a feedback path on them, and one test scene with its exact mask."""
    home = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(3)
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), home / "w.safetensors")
    backbone = {"name": f"convnext:{NAME}", "weights": str(home / "w.safetensors"), "image_size": SIDE}
    kept(demo_model(backbone=backbone), home / "run", backbone=backbone)
    return home


@pytest.fixture(scope="module")
def network(home: Path) -> nn.Module:
    module = timm.create_model(NAME, num_classes=0).eval()
    module.load_state_dict(load_file(home / "w.safetensors"))
    return module


def shown(module: nn.Module) -> Tensor:
    """The first test scene as timm prepares it, `[1, 3, 64, 64]`."""
    config = {**timm.data.resolve_data_config({}, model=module), "input_size": (3, SIDE, SIDE)}
    scene = open_demo(DemoOptions(), None).splits["test"].load(0)
    return timm.data.create_transform(**config)(scene.image)[None]


def heard(module: nn.Module, images: Tensor, signals: list[Tensor] | None = None) -> list[Tensor]:
    """What each stage puts out in a stock forward pass; a signal is added to the input of what it is for."""
    outputs: list[Tensor] = []
    doors = [module.stem, *module.stages[1:]]
    handles = [stage.register_forward_hook(lambda *call: outputs.append(call[-1])) for stage in module.stages]
    if signals is not None:
        handles += [
            door.register_forward_pre_hook(lambda _, given, signal=signal: (given[0] + signal,))
            for door, signal in zip(doors, signals, strict=True)
        ]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    return outputs


def strength(stage: Tensor) -> Tensor:
    """Squared norms over channels `[rows, columns]`, as shares."""
    squared = torch.linalg.vector_norm(stage[0], dim=0) ** 2
    return squared / squared.sum()


def sent_back(module: nn.Module, z: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The similarity `[rows, columns]` and every level's signal, by the formulas of section 3 and torch alone."""
    channels_last = module.head.norm(z).movedim(1, -1)
    xi = weights["selection.xi"]
    m = ((channels_last @ xi) / (channels_last.norm(dim=-1) * xi.norm())).clamp(0, 1)
    u = torch.einsum("oc,bchw->bohw", weights["selection.P"], m[:, None] * z)
    signals = []
    for level, stride in zip((3, 2, 1, 0), (2, 2, 2, 4), strict=True):
        matrix = weights[f"feedback.A.{level}.patch.weight"][:, :, 0, 0]  # [C' r r, C]
        u = F.conv_transpose2d(u, matrix.T.unflatten(1, (-1, stride, stride)), stride=stride)
        signals.append(F.conv2d(u, weights[f"feedback.B.{level}.weight"]))
    return m[0], signals[::-1]


@pytest.mark.parametrize("layer", [0, 2, 3])
@torch.no_grad()
def test_energy_of_both_passes_is_what_timms_own_stages_put_out(
    layer: int, home: Path, network: nn.Module, here: Path
) -> None:
    said = toast(
        "visualize-attention", "--test-image", "0", "--run", home / "run", "--layer", str(layer), "--out", "seen"
    )
    assert said.code == 0, said.err
    assert "Feature energy on the object" in said.out and "ttention on" not in said.out
    (file,) = (here / "seen").glob("*.safetensors")
    maps, images = load_file(file), shown(network)
    weights = load_file(home / "run/adapter_model.safetensors")
    first = heard(network, images)
    similarity, signals = sent_back(network, first[-1], {key.split("steering.")[-1]: w for key, w in weights.items()})
    second = heard(network, images, signals)
    expected = {"pass_one": strength(first[layer]), "similarity": similarity, "pass_two": strength(second[layer])}
    for name, map in expected.items():
        assert torch.allclose(maps[name], map, atol=1e-6, rtol=0), name
    assert (maps["pass_two"] - maps["pass_one"]).abs().max() > 1e-4, "the passes differ, so mistaking one would show"
    assert torch.equal(maps["difference"], maps["pass_two"] - maps["pass_one"])


def test_the_share_on_the_object_is_that_of_the_map_enlarged_to_pixels(home: Path, here: Path) -> None:
    """Of a run that sees the whole scene, pixel for pixel, so that the demo's exact mask needs no resizing."""
    backbone = {"name": f"convnext:{NAME}", "weights": str(home / "w.safetensors"), "image_size": SIDE}
    run = kept(demo_model(backbone=backbone), here / "run", backbone=backbone, images={"resize": SIDE})
    assert toast("visualize-attention", "--test-image", "0", "--run", run, "--out", "seen").code == 0
    maps, record = load_file("seen/test-0.safetensors"), json.loads((here / "seen/test-0.json").read_text())
    mask = open_demo(DemoOptions(), None).splits["test"].load(0).mask
    for name in ("pass_one", "similarity", "pass_two"):
        fine = np.kron(maps[name].numpy(), np.ones((SIDE // len(maps[name]),) * 2))
        share = record["views"][0]["share_inside"][name]
        assert share == pytest.approx(fine[mask].sum() / fine.sum(), abs=1e-6), name
