"""Attention of a language model over a text: a number per token in both passes, and the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.data.text.chat_templates import encode_prompt
from toast_cli.data.text.token_limits import require_known_tokens, require_room
from toast_cli.data.text.turn_formats import format_prompt
from toast_cli.data.text.turns import Turn
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.map_color_scales import ColorScale, build_diverging_scale, build_sequential_scale
from toast_cli.visualize.view import AttentionViewer, TopPrediction

TEXT_MAP_DESCRIPTIONS = {
    "similarity": "similarity to ξ: the share of each token that selection keeps",
    "pass_one": "attention of the last token, pass one",
    "pass_two": "attention of the last token, pass two",
    "difference": "pass two less pass one",
}
"""Descriptions of the maps of a text, in display order."""


class ColoredText(Protocol):
    """A text with maps: its tokens as text, and `maps` `[tokens]` by name."""

    @property
    def tokens(self) -> list[str]:
        """The text of each token."""
        ...

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps by name."""
        ...


@dataclass(frozen=True)
class TextView:
    """The maps of a text for one viewer: the tokens as text, and `maps` `[tokens]` by name.

    `first` and `last` are the most likely next tokens of the passes; `last` is None with a single pass.
    """

    viewer: AttentionViewer
    tokens: list[str]
    maps: dict[str, Tensor]
    first: TopPrediction
    last: TopPrediction | None
    checks: AttentionChecks | None


@torch.no_grad()
def compute_text_view(viewer: AttentionViewer, prompt: str, template: str | None) -> TextView:
    """Run a language model on a text, formatted with a chat template; None leaves the text unchanged.

    Raises:
        UsageError: the model is not a language model, the prompt is too long, or the level or head does not exist.
        ToastError: the model has no tokenizer, or a map differs from the attention that the model uses.
    """
    model, backbone = viewer.model, viewer.model.backbone
    if backbone.preprocessing is not None:
        raise UsageError(
            f"A {type(backbone.module).__name__} is not a language model.",
            what_to_do="Give a --run or a --backbone of a language model with its tokenizer.",
            code="task.not-a-language-model",
        )
    tokenizer, turns = backbone.require_tokenizer(), [Turn("user", prompt)]
    text = prompt if template is None else format_prompt(turns, tokenizer, template)
    ids = encode_prompt(turns, tokenizer, template)
    require_known_tokens(ids, tokenizer, backbone.text_limits, "The prompt")
    require_room(ids, backbone.text_limits, answer=False)
    batch = torch.tensor([ids], device=next(model.parameters()).device)
    inputs = {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
    recorder = viewer.recorder
    assert isinstance(recorder, AttentionRecorder)
    recorded = recorder.record(inputs)
    maps = {name: map[0, 0].float().cpu() for name, map in recorded.get_maps().items()}
    if "pass_two" in maps:
        maps["difference"] = maps["pass_two"] - maps["pass_one"]
    output = backbone.output()
    assert output is not None
    assert recorded.passes.plain is not None  # recorders run the first pass to its end
    first = predict_next_token(output(recorded.passes.plain.pooled), tokenizer)
    last = None if recorded.last is None else predict_next_token(output(recorded.passes.last.pooled), tokenizer)
    ordered = {name: maps[name] for name in TEXT_MAP_DESCRIPTIONS if name in maps}
    return TextView(viewer, align_tokens_to_text(ids, text, tokenizer), ordered, first, last, recorded.checks)


def predict_next_token(logits: Tensor, tokenizer: Any) -> TopPrediction:
    """Return the most likely next token, given logits `[1, N, vocabulary]`."""
    probability, index = logits[0, -1].float().softmax(-1).max(-1)
    # A token that only marks the start of a word decodes to an empty string.
    # The output layer of some models has more rows than the tokenizer has tokens.
    name = tokenizer.decode([int(index)]) or tokenizer.convert_ids_to_tokens(int(index)) or f"token {int(index)}"
    return TopPrediction(name, float(probability))


def align_tokens_to_text(ids: list[int], text: str, tokenizer: Any) -> list[str]:
    """Return the part of the text of each token, or the token's own name if it has no part of the text.

    A character that consists of several tokens appears at the last of them; the others are shown as dots.
    """
    names: list[str] = tokenizer.convert_ids_to_tokens(ids)
    if not tokenizer.is_fast:
        return names
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded.offset_mapping
    if encoded.input_ids != ids[len(ids) - len(offsets) :]:  # the text spells control tokens
        return names
    offsets = [(0, 0)] * (len(ids) - len(offsets)) + offsets
    parts, covered = [], len(text)
    for name, (start, end) in reversed(list(zip(names, offsets, strict=True))):
        if start == end:
            parts.append(name)
            continue
        parts.append(text[start:end] if end <= covered else "·")
        covered = min(covered, start)
    return parts[::-1]


def build_text_scales(
    views: Sequence[ColoredText], label: str = "attention of the last token"
) -> dict[str, ColorScale]:
    """Return the colour scale of each map by name, shared by all views; both passes share the scale of attention.

    `label` is the label of that scale.
    """

    def collect(*names: str) -> list[np.ndarray]:
        return [view.maps[name].numpy() for view in views for name in names if name in view.maps]

    attention = build_sequential_scale(label, "Oranges", collect("pass_one", "pass_two"))
    scales = {"pass_one": attention, "pass_two": attention}
    if collect("similarity"):
        scales["similarity"] = build_sequential_scale("similarity to ξ", "Greens", collect("similarity"))
    if collect("difference"):
        scales["difference"] = build_diverging_scale("pass two less pass one, points", "RdBu_r", collect("difference"))
    return scales


def choose_text_color(colour: str) -> str:
    """Return black or white, whichever has more contrast to a colour (relative luminance of WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def get_top_tokens(view: ColoredText, name: str, count: int = 5) -> list[tuple[str, float]]:
    """Return the names and values of the tokens with the largest absolute values."""
    values = view.maps[name]
    order = values.abs().argsort(descending=True, stable=True)[:count].tolist()
    return [(format_token_name(view.tokens, index), float(values[index])) for index in order]


def format_token_name(tokens: Sequence[str], index: int) -> str:
    """Return a quoted token; a blank token also names the one before it, because there are many blanks."""
    blank = not tokens[index].strip()
    return quote_token(tokens[index]) + (f" after {quote_token(tokens[index - 1])}" if blank and index else "")


def quote_token(token: str) -> str:
    """Return a token in quotation marks, without surrounding blanks."""
    return repr(token.strip() or token)


def mark_line_breaks(token: str) -> str:
    """Return a token with a visible mark for each line break, which would have no colour otherwise."""
    return token.replace("\n", "↵\n")
