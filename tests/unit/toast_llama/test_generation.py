"""Text by two passes: transformers' own generation, the same with two caches as recomputed from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tests import causal_models
from toast_cli import registry
from toast_cli.steering.steering import Steering, run_two_passes
from toast_llama.generation import TwoPassLanguageModel
from toast_llama.kv_cache import TwoPassCache

MODELS = Path(__file__).parent.parent.parent / "contract" / "language_models"
PROMPTS = torch.tensor([[0, 0, 5, 11, 2], [7, 8, 9, 10, 11]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def writer_of(kind: str, levels: range | None = None) -> TwoPassLanguageModel:
    torch.manual_seed(0)
    name = f"llama:{MODELS / kind}"
    if not (MODELS / kind).is_dir():
        causal_models.write_model_folder(kind)
        name = f"lm:{causal_models.get_model_folder(kind)}"
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none"))
    for parameter in backbone.module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # sharp enough that every token matters
    backbone.module.eval().requires_grad_(False)
    steering = Steering(backbone, levels)
    for parameter in steering.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    steering.requires_grad_(False)
    tokens = backbone.leave(backbone.run(backbone.enter({"input_ids": PROMPTS}))).compared
    steering.selection.xi.copy_(torch.nn.functional.normalize(tokens, dim=-1).mean(dim=(0, 1)))
    return backbone.generator(lambda inputs: run_two_passes(backbone, steering, inputs).last.pooled)


@pytest.fixture(params=["llama", "mistral", "qwen3", "gemma2", "mixtral"])
def writer(request: pytest.FixtureRequest) -> TwoPassLanguageModel:
    return writer_of(request.param)


def write(writer: TwoPassLanguageModel, **settings: Any) -> Tensor:
    torch.manual_seed(3)
    common: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    return writer.generate(PROMPTS, attention_mask=MASK, **common, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": False}, {"do_sample": True, "top_p": 0.9}, {"num_beams": 3, "do_sample": False}],
    ids=["greedy", "sampled", "beams"],
)
def test_two_caches_write_what_recomputing_from_scratch_writes(
    writer: TwoPassLanguageModel, settings: dict[str, Any]
) -> None:
    kept, recomputed = write(writer, **settings), write(writer, use_cache=False, **settings)
    assert torch.equal(kept, recomputed)


@pytest.mark.parametrize(
    "kind", ["bloom", "deepseek_v3", "gemma4_text", "gpt2", "jamba", "kimi_linear", "lfm2", "phi3", "qwen3_next"]
)
def test_steered_latents_and_shared_keys_and_hybrids_are_cached_as_they_are_computed(kind: str) -> None:
    writer = writer_of(kind)
    kept, recomputed = write(writer, do_sample=False), write(writer, use_cache=False, do_sample=False)
    assert torch.equal(kept, recomputed)
    assert not torch.equal(kept, write_plain(writer)), "the signals change the text"


def write_plain(writer: TwoPassLanguageModel) -> Tensor:
    common: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    return writer.stock.generate(PROMPTS, attention_mask=MASK, **common)


@pytest.mark.parametrize("levels", [range(1), range(1, 2)], ids=["early", "late"])
@pytest.mark.parametrize("settings", [{"do_sample": False}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_early_and_late_feedback_keep_their_caches_too(levels: range, settings: dict[str, Any]) -> None:
    writer = writer_of("llama", levels)
    assert torch.equal(write(writer, **settings), write(writer, use_cache=False, **settings))


def test_the_caches_of_both_passes_grow_together_and_hold_different_values(writer: TwoPassLanguageModel) -> None:
    caches, ids = TwoPassCache(writer.config), PROMPTS[1:]
    for _ in range(3):
        writer(ids[:, caches.first.get_seq_length() :], past_key_values=caches)
        ids = torch.cat([ids, torch.tensor([[4]])], dim=1)
    assert caches.first.get_seq_length() == caches.second.get_seq_length() == 7
    for first, second in zip(caches.first.layers, caches.second.layers, strict=True):
        assert first.values is not None and second.values is not None
        steered = (first.values - second.values).abs().amax(dim=(0, 1, 3)) > 0
        assert steered.sum() >= 4  # all but the tokens whose similarity to xi is clamped to zero


def test_tokens_are_streamed_as_they_come(writer: TwoPassLanguageModel) -> None:
    class Ear(BaseStreamer):
        def __init__(self) -> None:
            self.heard: list[Tensor] = []

        def put(self, value: Tensor) -> None:
            self.heard.append(value)

        def end(self) -> None: ...

    ear = Ear()
    whole = writer.generate(PROMPTS[1:], max_new_tokens=4, do_sample=False, pad_token_id=0, streamer=ear)
    assert len(ear.heard) == 5
    assert torch.equal(torch.cat([part.flatten() for part in ear.heard]), whole[0])


def test_a_stop_token_ends_it(writer: TwoPassLanguageModel) -> None:
    free = writer.generate(PROMPTS[1:], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    stop = int(free[0, 6])
    ended = writer.generate(PROMPTS[1:], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=stop)
    assert ended.shape[1] <= 7 and int(ended[0, -1]) == stop
