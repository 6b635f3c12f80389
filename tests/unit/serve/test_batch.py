"""Continuous batching: texts that join and leave a running batch are those that each would be alone."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch

from tests.serving import generate_alone, make_sequence, make_served
from toast_cli.serve.batch import DecodingBatch
from toast_cli.serve.sequence import AnswerEnd, AnswerFailure, Sequence
from toast_cli.serve.served_model import ServedModel

PROMPTS = ["Hi", "A much longer prompt than the others", "short one", "x", "middle length"]
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_p": 0.95}


@torch.no_grad()
def run_staggered(sequences: list[Sequence], served: ServedModel) -> None:
    """Let two texts begin together, and one more join after every third step."""
    batch, waiting = DecodingBatch(served.chat), sequences[2:]
    batch.join(sequences[:2])
    for step in count(1):
        if waiting and step % 3 == 0:
            batch.join([waiting.pop(0)])
        batch.step()
        if not batch.sequences and not waiting:
            return


@pytest.mark.parametrize(
    "kind",
    ["llama", "gemma2", *(pytest.param(k, marks=pytest.mark.e2e) for k in ("mistral", "qwen3", "mixtral", "phi"))],
)
@pytest.mark.parametrize("settings", [{}, SAMPLED, {"repetition_penalty": 1.5}], ids=["greedy", "sampled", "penalty"])
def test_texts_that_join_and_leave_are_those_that_each_would_be_alone(kind: str, settings: dict[str, Any]) -> None:
    served, lengths = make_served(kind), [14, 9, 5, 17, 11]
    sequences = [
        make_sequence(served, prompt, length, seed, **settings)
        for seed, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]
    run_staggered(sequences, served)
    for seed, (sequence, prompt, length) in enumerate(zip(sequences, PROMPTS, lengths, strict=True)):
        assert sequence.tokens == generate_alone(served, prompt, length, seed, **settings)
        assert sequence.finished and isinstance(sequence.events[-1], AnswerEnd)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "options"),
    [("toast", {"feedback": "late"}), ("toast", {"feedback": "early"}), ("toast-lite", {}), ("lora", {})],
    ids=["late", "early", "lite", "lora"],
)
def test_every_method_has_the_caches_that_it_needs(method: str, options: dict[str, Any]) -> None:
    served = make_served(method=method, **options)
    sequences = [make_sequence(served, prompt, 8) for prompt in PROMPTS]
    run_staggered(sequences, served)
    assert [sequence.tokens for sequence in sequences] == [generate_alone(served, prompt, 8) for prompt in PROMPTS]


@torch.no_grad()
def test_a_cancelled_text_leaves_and_the_others_go_on() -> None:
    served = make_served()
    kept, left = make_sequence(served, PROMPTS[0], 10), make_sequence(served, PROMPTS[1], 10)
    batch = DecodingBatch(served.chat)
    batch.join([kept, left])
    batch.step()
    left.cancelled = True
    while batch.sequences:
        batch.step()
    assert kept.tokens == generate_alone(served, PROMPTS[0], 10)
    assert batch._cache is None and kept.plan.cache is None, "keys and values do not outlive the batch"
    assert len(left.tokens) == 2


@torch.no_grad()
def test_columns_that_only_a_finished_text_needed_are_dropped() -> None:
    served = make_served()
    short, long = make_sequence(served, "x", 8), make_sequence(served, PROMPTS[1], 2)
    batch = DecodingBatch(served.chat)
    batch.join([short, long])
    batch.step()
    assert long.finished and batch.sequences == [short]
    assert {layer.keys.shape[-2] for layer in batch._cache.layers} == {short.cached_tokens}


@torch.no_grad()
def test_scores_that_are_not_finite_fail_one_text_alone() -> None:
    served = make_served()
    broken, sound = make_sequence(served, "x", 4, 0, **SAMPLED), make_sequence(served, "y", 4)
    broken.plan.processors.append(lambda ids, scores: scores * float("nan"))
    batch = DecodingBatch(served.chat)
    batch.join([broken, sound])
    while batch.sequences:
        batch.step()
    assert isinstance(broken.events[-1], AnswerFailure)  # type: ignore[attr-defined]
    assert sound.tokens == generate_alone(served, "y", 4)


def test_a_text_that_changes_the_rotary_frequencies_of_its_batch_is_generated_alone() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 24}
    served = make_served(changes={"rope_parameters": rope})
    assert served.common_length == 24
    long, short = make_sequence(served, "x" * 20, 10), make_sequence(served, "x", 10)
    batch = DecodingBatch(served.chat)
    assert batch.can_join(short, [make_sequence(served, "y", 4)])
    assert not batch.can_join(long, [short]) and not batch.can_join(short, [long]) and batch.can_join(long)
