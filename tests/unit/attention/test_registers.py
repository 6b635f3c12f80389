"""Register tokens: planted ones are found, what is looked at for its content is not, and removal keeps a map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.scenes import demo_model, scenes, viewer_of
from toast_cli.attention import registers
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.registers import find_norm_outliers, find_registers, find_share_outliers, remove_registers
from toast_cli.visualize.view import compute_image_view


def make_maps(**planted: float) -> Tensor:
    map = torch.full((1, 6, 6), 1.0) + 0.2 * torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    for place, times in planted.items():
        row, column = map_place(place)
        map[0, row, column] = times
    return map / map.sum()


def map_place(name: str) -> tuple[int, int]:
    return {"corner": (0, 5), "object": (2, 3), "background": (4, 1)}[name]


def cells(found: Tensor) -> set[tuple[int, ...]]:
    return {tuple(cell) for cell in found.nonzero().tolist()}


def find_in_planted(monkeypatch: pytest.MonkeyPatch, norms_at_background: float) -> set[tuple[int, ...]]:
    """A network with a register in a corner of any image, one in the background, and an object that moves."""
    seen = []

    def compute(recorder: object, images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(images)
        moved = len(seen) > 1  # the content is elsewhere
        norms = torch.ones(1, 6, 6)
        norms[0, 4, 1] = norms_at_background
        return make_maps(corner=30.0) if moved else make_maps(corner=30.0, object=20.0, background=25.0), norms

    monkeypatch.setattr(registers, "_compute_plain_maps", compute)
    found = find_registers(None, torch.rand(1, 3, 12, 12))  # type: ignore[arg-type]
    assert len(seen) == 4 and torch.equal(seen[3], seen[0].roll((6, 6), (-2, -1)))
    return cells(found[0])


def test_a_register_stays_where_it_is_when_the_content_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_in_planted(monkeypatch, norms_at_background=1.0) == {(0, 5)}


def test_a_token_with_attention_and_a_large_norm_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_in_planted(monkeypatch, norms_at_background=9.0) == {(0, 5), (4, 1)}


def test_outliers_are_counted_in_medians_and_not_in_shares() -> None:
    assert cells(find_share_outliers(make_maps(corner=30.0, object=6.0))[0]) == {(0, 5)}
    assert not find_share_outliers(torch.zeros(1, 4, 4)).any()
    norms = torch.ones(1, 3, 3)
    norms[0, 0, 0], norms[0, 1, 1] = 3.5, 2.5
    assert cells(find_norm_outliers(norms)[0]) == {(0, 0)}


def test_without_registers_a_map_sums_to_one_and_keeps_its_proportions() -> None:
    map = make_maps(corner=30.0, object=20.0)[0]
    found = find_share_outliers(map[None])[0] & (torch.arange(6) == 5)
    left = remove_registers(map, found)
    assert left[0, 5] == 0 and torch.isclose(left.sum(), torch.tensor(1.0))
    assert torch.isclose(left[2, 3] / left[0, 0], map[2, 3] / map[0, 0])
    assert torch.equal(remove_registers(map, torch.ones(6, 6, dtype=torch.bool)), map)


def test_a_network_with_a_position_that_every_query_matches_has_a_register_there() -> None:
    """Planted in a real network: a position whose key lies along what all queries share."""
    model = demo_model()
    backbone = model.backbone
    recorder = AttentionRecorder(model, checked=False)
    viewer = viewer_of(model, with_registers=True)
    sample = scenes(1)[0]
    before = compute_image_view(viewer, sample)
    block = backbone.module.blocks[-1].attn  # type: ignore[union-attr, index]
    width = backbone.width
    place = backbone.prefix_tokens + 3
    # Add a key at one position, whatever the content: a hook on the fused projection of q, k and v.
    images = viewer.transform(sample.image)[0][None]

    def plant(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, place, width : 2 * width] += 4.0 * output[:, 0, :width]
        return changed

    hook = block.qkv.register_forward_hook(plant)
    try:
        found = find_registers(recorder, images)[0]
        share = float(recorder.record(images).first[0].flatten()[3])
    finally:
        hook.remove()
    assert before.registers is not None and not before.registers.flatten()[3]
    assert found.flatten()[3] and share > 0.3
