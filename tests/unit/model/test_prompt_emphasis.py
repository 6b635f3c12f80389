"""Answers under emphasis: the xi of each prompt, two caches against recomputation, batches, beams, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.serving import make_served
from toast_cli.data.text.turns import Turn
from toast_cli.model.generation import TextGenerator
from toast_cli.model.model import fold_model
from toast_cli.model.prompt_emphasis import compute_prompt_xi, emphasize_tokens
from toast_cli.steering.steering import run_two_passes
from toast_cli.utils.errors import UsageError
from toast_llama.kv_cache import CACHE_ARGUMENT, TwoPassCache

SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
PROMPTS = ["The hat is red. The hat is blue.", "A red car, and why?", "red"]
CONVERSATIONS = [[Turn("user", prompt)] for prompt in PROMPTS]


def make_generator(**options: Any) -> TextGenerator:
    generator = make_served(**options).chat
    generator._model.double()
    return generator


@pytest.fixture(params=["llama", "qwen3"])
def generator(request: pytest.FixtureRequest) -> Iterator[TextGenerator]:
    yield make_generator(kind=request.param)


def compute_logits(generator: TextGenerator, ids: list[int], xi: Tensor) -> Tensor:
    """Return the logits after the last token, from two passes over all tokens, with another trained xi."""
    model = generator._model
    steering = deepcopy(model.adapted.steering)
    with torch.no_grad():
        steering.selection.xi.copy_(xi)
        steering.selection.replaced_xi = None
        pooled = run_two_passes(model.backbone, steering, {"input_ids": torch.tensor([ids])}).last.pooled
        return model.backbone.output()(pooled)[0, -1]


def compute_xi(generator: TextGenerator, ids: list[int], marked: list[bool]) -> Tensor:
    """Return the normalized mean of the unit vectors of the marked tokens, after the plain layers."""
    backbone = generator._model.backbone
    with torch.no_grad():
        z = backbone.leave(backbone.run(backbone.enter({"input_ids": torch.tensor([ids])}))).compared[0]
    return F.normalize(F.normalize(z[torch.tensor(marked)], dim=-1).mean(0), dim=-1)


def test_each_token_is_written_as_recomputed_from_scratch_with_the_xi_of_the_prompt(generator: TextGenerator) -> None:
    turns = CONVERSATIONS[0]
    ids, marked = generator.encode_prompt(turns), generator.mark_tokens(turns, ["blue"])
    xi = compute_xi(generator, ids, marked)
    torch.testing.assert_close(compute_prompt_xi(generator._model, ids, marked), xi, rtol=1e-9, atol=1e-9)
    written: list[int] = []
    cache = TwoPassCache(generator._generator.config)
    with torch.no_grad(), emphasize_tokens(generator._model, [ids], [marked]):
        tokens = ids
        while len(written) < SETTINGS["max_new_tokens"]:
            read = len(ids) + len(written)
            positions = torch.arange(read - len(tokens), read)[None]
            mask = torch.ones(1, read, dtype=torch.long)
            inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": mask, "position_ids": positions}
            logits = generator._generator(**inputs, **{CACHE_ARGUMENT: cache}).logits[0, -1]
            expected = compute_logits(generator, [*ids, *written], xi)
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
            tokens = [int(expected.argmax())]
            written += tokens
    assert generator.answer(turns, emphasize=["blue"], **SETTINGS) == generator.tokenizer.decode(written)


def test_emphasis_changes_the_answer_and_leaves_the_model_as_it_was(generator: TextGenerator) -> None:
    turns = CONVERSATIONS[0]
    plain = generator.answer(turns, **SETTINGS)
    answers = {generator.answer(turns, emphasize=[text], **SETTINGS) for text in ("red", "blue")}
    assert plain not in answers
    assert generator.answer(turns, **SETTINGS) == plain


@pytest.mark.parametrize("beams", [1, 3])
def test_a_padded_batch_answers_each_prompt_as_alone(generator: TextGenerator, beams: int) -> None:
    settings = {**SETTINGS, "num_beams": beams}
    texts = [["blue"], ["car", "A"], ["red"]]
    together = generator.answer_all(CONVERSATIONS, 3, texts, **settings)
    alone = [
        generator.answer(turns, emphasize=marked, **settings)
        for turns, marked in zip(CONVERSATIONS, texts, strict=True)
    ]
    assert together == alone != generator.answer_all(CONVERSATIONS, 3, **settings)


def test_a_folded_model_answers_as_the_unfolded_one() -> None:
    generator = make_generator()
    folded = TextGenerator(fold_model(generator._model), generator.template)
    folded.stop_tokens = []
    ask = {"emphasize": ["blue"], **SETTINGS}
    assert folded.answer(CONVERSATIONS[0], **ask) == generator.answer(CONVERSATIONS[0], **ask)


def test_early_feedback_compares_the_tokens_that_it_selects() -> None:
    generator = make_generator(feedback="early")
    assert generator.answer(CONVERSATIONS[0], emphasize=["blue"], **SETTINGS)


@pytest.mark.parametrize(
    ("method", "texts", "code"),
    [
        ("lora", ["red"], "method.no-feedback-path"),
        ("toast", ["green"], "text.not-in-prompt"),
        ("toast", [""], "text.empty-emphasis"),
    ],
)
def test_what_cannot_be_emphasized_is_refused(method: str, texts: list[str], code: str) -> None:
    generator = make_generator(method=method)
    with pytest.raises(UsageError) as refused:
        generator.answer(CONVERSATIONS[0], emphasize=texts, **SETTINGS)
    assert refused.value.code == code
    with pytest.raises(UsageError) as refused:
        generator.answer_all(CONVERSATIONS, 2, [texts] * 3, **SETTINGS)
    assert refused.value.code == code
