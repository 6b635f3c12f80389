"""A tiny served model with large random weights, and what transformers' own loop generates with it."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.language import make_tokenizer
from toast_cli.api import steer
from toast_cli.model.generation import TextGenerator
from toast_cli.serve.sequence import Sequence
from toast_cli.serve.served_model import ServedModel, _find_common_length

MODELS = Path(__file__).parent / "contract" / "language_models"


def make_served(
    kind: str = "llama", method: str = "toast", changes: dict[str, Any] | None = None, **options: Any
) -> ServedModel:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MODELS / kind)
    config.update({"vocab_size": 262, "max_position_embeddings": 128, **(changes or {})})
    module = AutoModelForCausalLM.from_config(config).eval()
    steered = steer(module, method=method, **options)
    with torch.no_grad():
        for parameter in steered.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # sharp enough that every token matters
        if (steering := steered.model.adapted.steering) is not None:
            ids = {"input_ids": torch.arange(6, 40)[None]}
            backbone = steered.model.backbone
            tokens = backbone.leave(backbone.run(backbone.enter(ids))).compared
            steering.selection.xi.copy_(torch.nn.functional.normalize(tokens, dim=-1).mean(dim=(0, 1)))
    steered.model.backbone.tokenizer = make_tokenizer()
    generator = TextGenerator(steered.model, "plain")
    generator.stop_tokens = []
    window = _find_common_length(steered.model.backbone.module)
    return ServedModel("run", generator, generator, generator.tokenizer, Lock(), window)


def make_sequence(served: ServedModel, prompt: str, tokens: int, seed: int | None = None, **settings: Any) -> Sequence:
    ids = served.tokenizer(prompt).input_ids
    events: list[Any] = []
    chosen = {"max_new_tokens": tokens, "do_sample": False, **settings}
    sequence = Sequence(served, served.chat, ids, chosen, (), seed, events.append)
    sequence.prepare()
    sequence.events = events  # type: ignore[attr-defined]
    return sequence


def generate_alone(
    served: ServedModel, prompt: str | list[int], tokens: int, seed: int = 0, **settings: Any
) -> list[int]:
    """Generate with transformers' own loop."""
    ids = torch.tensor([served.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt])
    torch.manual_seed(seed)
    chosen = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    generated = served.chat._generator.generate(ids, attention_mask=torch.ones_like(ids), **chosen)
    return generated[0, ids.shape[1] :].tolist()
