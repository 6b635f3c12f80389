"""What the card of an export tells about prompting and loading."""

from __future__ import annotations

import ast

import pytest

from toast_cli.backbones.base import Preprocessing
from toast_cli.storage.card_usage import (
    PromptFormat,
    format_merged_usage,
    format_peft_image_usage,
    format_peft_text_usage,
    format_two_pass_usage,
)

FORMATS = [PromptFormat("<user>Hi", False), PromptFormat("<user>Hi", True), PromptFormat(None, False)]


@pytest.mark.parametrize("prompt", FORMATS, ids=str)
def test_every_snippet_is_valid_python_and_stops_where_answers_end(prompt: PromptFormat) -> None:
    cards = [
        format_merged_usage(prompt),
        format_peft_text_usage("owner/name", prompt),
        format_two_pass_usage("AutoModelForCausalLM", prompt, has_maps=False),
    ]
    for card in cards:
        code = card.split("```python\n")[1].split("```")[0]
        ast.parse(code)
        assert ("tokenizer=tokenizer" in code) == prompt.has_stop_text  # transformers needs it to stop at a text
        assert ("apply_chat_template" in code) == (prompt.example is not None)
        assert ("knows no questions" in card) == (prompt.example is None)
    assert [("toast serve" in card) for card in cards] == [False, False, True]
    assert "generation_config=settings" in cards[1] and 'from_pretrained("owner/name")' in cards[1]


def test_a_prompt_cannot_end_its_fence() -> None:
    card = format_merged_usage(PromptFormat("```\nHi", False))
    assert "````\n```\nHi\n````" in card


def test_images_are_described_for_timm() -> None:
    preprocessing = Preprocessing((64, 96), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", 0.8)
    card = format_peft_image_usage("test_vit.x", 7, ", pretrained=True", preprocessing)
    ast.parse(card.split("```python\n")[1].split("```")[0])
    assert 'create_model("test_vit.x", num_classes=7, pretrained=True)' in card
    assert "64 × 96 pixels" in card and "mean 0.5, 0.4, 0.3" in card and "deviation 0.2, 0.3, 0.4" in card
