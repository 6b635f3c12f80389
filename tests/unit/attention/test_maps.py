"""What is shown as attention is what the stock block attends with, of the token and the pass it is named after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toast_cli import registry
from toast_cli.attention.maps import AttentionOutput, AttentionRecorder, compute_attention_map
from toast_cli.attention.metrics import share_inside
from toast_cli.attention.table import AttentionShare
from toast_cli.backbones.base import Backbone, Trace
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.steering.steering import PassOutputs, run_one_pass

SMALL = ["vit_demo_3", "vit:test_vit", "vit:test_vit2", "vit:test_vit3", "vit:test_vit4"]


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none"))
    backbone.module.eval().requires_grad_(False)
    return backbone


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_map_times_values_is_what_the_fused_attention_puts_out(name: str) -> None:
    backbone = backbone_of(name)
    block = len(backbone.levels) - 1
    attention = backbone.projections[block][0].attention  # type: ignore[attr-defined]
    seen: dict[str, Tensor] = {}
    handles = [
        attention.qkv.register_forward_hook(lambda module, given, out: seen.update(qkv=out)),
        attention.proj.register_forward_pre_hook(lambda module, given: seen.update(mixed=given[0])),
    ]
    trace = Trace(attention_of=frozenset({block}))
    backbone.run(backbone.enter(backbone.example(2)), trace=trace)
    for handle in handles:
        handle.remove()
    B, N, _ = seen["qkv"].shape
    values = seen["qkv"].reshape(B, N, 3, attention.num_heads, -1)[:, :, 2].transpose(1, 2)
    mixed = (trace.attention[block] @ values).transpose(1, 2).reshape(B, N, -1)
    assert torch.allclose(attention.norm(mixed), seen["mixed"], atol=1e-5)
    # Sharp enough that a missing scale would show.
    assert trace.attention[block].std() > 0


def test_the_class_tokens_row_is_shown_and_every_tokens_where_there_is_none() -> None:
    with_class = backbone_of("vit_demo_3")
    attention = torch.rand(1, 4, 65, 65)
    expected = attention[:, :, 0, 1:].mean(dim=1)
    found = compute_attention_map(attention, with_class, (8, 8))
    assert torch.allclose(found.flatten(1), expected / expected.sum(-1, keepdim=True))
    without = backbone_of("vit:test_vit2")  # registers, no class token
    prefix = without.prefix_tokens
    rows, columns = without.grid(without.example(1))
    attention = torch.rand(1, 2, rows * columns + prefix, rows * columns + prefix)
    first = slice(0, 1) if without.query_tokens() == slice(0, 1) else slice(prefix, None)
    expected = attention[:, :, first, prefix:].mean(dim=(1, 2))
    found = compute_attention_map(attention, without, (rows, columns))
    assert torch.allclose(found.flatten(1), expected / expected.sum(-1, keepdim=True))


def test_a_share_is_what_lies_inside() -> None:
    attention = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 2:, 2:] = True  # the lower right cell
    assert share_inside(attention, mask).item() == pytest.approx(0.4)
    mask[0, 2:, 0] = True  # and half of the lower left one
    assert share_inside(attention, mask).item() == pytest.approx(0.4 + 0.15)


def look_of(first: Tensor, last: Tensor, similarity: Tensor) -> AttentionOutput:
    nothing: PassOutputs = None  # type: ignore[assignment]
    return AttentionOutput(logits=torch.zeros(1, 2), passes=nothing, first=first, last=last, similarity=similarity)


def test_each_pass_is_reported_under_its_own_name() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, :2] = True
    corner, elsewhere = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    corner[0, 0, 0] = elsewhere[0, 1, 1] = 1.0
    share = AttentionShare()
    share.add(look_of(elsewhere, corner, torch.full((1, 2, 2), 0.5)), mask)
    share.add(look_of(elsewhere, corner, torch.full((1, 2, 2), 0.5)), torch.zeros_like(mask))
    result = share.result()
    assert (result["pass_one"], result["pass_two"], result["similarity"]) == (0.0, 1.0, 0.25)
    assert (result["object_area"], result["images"], result["images_without_object"]) == (0.25, 1, 1)


def test_the_recorder_gives_the_first_pass_as_first() -> None:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": {"name": "toast", "start": "random"}}
    model: Model = build_model(build_recipe(raw, {}, origin="a test"), ("a", "b")).eval()
    assert model.adapted.steering is not None
    for parameter in model.adapted.steering.feedback.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = model.backbone.example(2)
    plain = Trace(attention_of=frozenset({2}))
    with torch.no_grad():
        model.backbone.run(model.backbone.enter(images), trace=plain)
    look = AttentionRecorder(model).record(images)
    assert look.last is not None
    expected = compute_attention_map(plain.attention[2], model.backbone, (8, 8))
    assert torch.equal(look.first, expected) and not torch.allclose(look.last, expected, atol=1e-4)
    patches = run_one_pass(model.backbone, images).first.compared[:, 1:]  # the class token is no place in the image
    cosine = (patches @ model.adapted.steering.selection.xi) / patches.norm(dim=-1)
    assert look.similarity is not None
    found = look.similarity.flatten(1) * model.adapted.steering.selection.xi.norm()
    assert torch.allclose(found, cosine.clamp_min(0), atol=1e-6) and found.std() > 1e-3
