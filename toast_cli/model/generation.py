"""Text from a tuned language model, or from a plain one: transformers' own generation over two passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from toast_cli.data.text.chat_templates import format_prompt, prepend_bos
from toast_cli.data.text.conversations import Turn
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError

DEFAULT_MAX_NEW_TOKENS = 256
"""New tokens in an answer, unless its length is limited in another way."""

_LENGTH_SETTINGS = frozenset({"max_new_tokens", "max_length", "max_time", "stopping_criteria", "generation_config"})
_SINGLE_TEXT_SETTINGS = {"return_dict_in_generate": (None, False), "num_return_sequences": (None, 1)}
"""Settings with which transformers' `generate` gives something else than one text, and their values that do not."""


class TextGenerator:
    """A model that answers.

    Args:
        model: with a backbone that writes.
        template: how turns are marked, as the run was trained on them; None gives a prompt to the model as it is.
        notice: hears what should be known before an answer.

    Raises:
        UsageError: the backbone writes no text, or has no tokenizer.
    """

    def __init__(self, model: Model, template: str | None, notice: Callable[[str], object] = warnings.warn) -> None:
        backbone = model.backbone
        generator = backbone.generator(lambda inputs: model.adapted(inputs).last.pooled)
        if generator is None or backbone.tokenizer is None:
            name = type(backbone.module).__name__
            why = f"A {name} writes no text." if generator is None else "There is no tokenizer beside the model."
            raise UsageError(
                why,
                what_to_do="Name a run, or a --backbone, of a language model: llama:<model>.",
                code="text.not-a-language-model",
            )
        self.tokenizer = backbone.tokenizer
        self.template = template
        self.notice = notice
        self._generator = generator
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def answer(self, turns: Sequence[Turn], on_text: Callable[[str], Any] | None = None, **settings: Any) -> str:
        """What comes next; `on_text(text)` hears it as it is written.

        Args:
            turns: what was said so far, the last by the user.
            on_text: called with every piece of finished text; not with beams, which are finished at the end alone.
            settings: transformers' own generation settings; at most 256 new tokens unless they limit it otherwise.

        Raises:
            UsageError: there is nothing to answer, no room for an answer in what the model can read at once, a setting
                asks for something else than one text, or beams would be streamed.
        """
        streamed = on_text is not None or settings.get("streamer") is not None
        if streamed and settings.get("num_beams", 1) > 1:
            raise UsageError(
                "Beams cannot be streamed: the best is known at the end.",
                what_to_do="Use num_beams=1.",
                code="text.cannot-stream",
            )
        if on_text is not None:
            settings["streamer"] = _build_streamer(self.tokenizer, on_text)
        return self._generate_texts([self._encode_prompt(turns)], settings)[0]

    @torch.no_grad()
    def answer_all(self, conversations: Sequence[Sequence[Turn]], batch_size: int = 8, **settings: Any) -> list[str]:
        """Return what comes next in each of several conversations, writing `batch_size` of them at a time.

        They are sorted by length, padded on the left, and given back in their own order. Without sampling each is
        answered as it would be alone, but for rounding.

        Args:
            conversations: each as `answer` takes it.
            batch_size: conversations that are written together.
            settings: as `answer` takes them.

        Raises:
            UsageError: as of `answer`; a streamer is given.
        """
        if settings.get("streamer") is not None:
            raise UsageError(
                "Several answers cannot be streamed.", what_to_do="Ask one after another.", code="text.cannot-stream"
            )
        prompts = [self._encode_prompt(turns) for turns in conversations]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        found: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            texts = self._generate_texts([prompts[number] for number in numbers], dict(settings))
            found |= dict(zip(numbers, texts, strict=True))
        return [found[number] for number in range(len(prompts))]

    def _encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of what was said so far, marked as the model was trained on it."""
        if not turns:
            raise UsageError("Nothing was said that could be answered.", code="text.empty-prompt")
        text = turns[-1].whole if self.template is None else format_prompt(turns, self.tokenizer, self.template)
        ids = prepend_bos(self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer)
        if not ids:
            raise UsageError("The prompt is empty.", code="text.empty-prompt")
        return ids

    def _generate_texts(self, prompts: Sequence[list[int]], chosen: dict[str, Any]) -> list[str]:
        """What is written after each of these tokens, all at a time."""
        for name, allowed in _SINGLE_TEXT_SETTINGS.items():
            if chosen.get(name) not in allowed:
                raise UsageError(
                    f"{name}={chosen[name]} asks for something else than one text.",
                    what_to_do="Call several times, or export with --format hf and use transformers' generate.",
                    code="text.unsupported-setting",
                )
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pad = next(number for number in known if number is not None)
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=self._device)
        real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        if "generation_config" not in chosen:
            chosen.setdefault("pad_token_id", pad)
        if not _LENGTH_SETTINGS & chosen.keys():
            chosen["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
        if "max_new_tokens" in chosen:
            chosen["max_new_tokens"] = self._limit_new_tokens(longest, chosen["max_new_tokens"])
        if chosen.get("stop_strings") is not None:
            chosen["tokenizer"] = self.tokenizer
        written = self._generator.generate(ids, attention_mask=real.to(self._device), **chosen)
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True) for row in written]

    def _limit_new_tokens(self, prompt: int, wanted: int) -> int:
        """How many tokens an answer may have after a prompt of so many."""
        window = getattr(self._generator.config.get_text_config(), "max_position_embeddings", None)
        if window is None or prompt + wanted <= window:
            return wanted
        if prompt >= window:
            raise UsageError(
                f"The prompt is {prompt:,} tokens, and the model reads {window:,} at most, its answer included.",
                what_to_do="Shorten it.",
                code="text.prompt-too-long",
            )
        self.notice(
            f"The prompt is {prompt:,} tokens and the model reads {window:,} at most: the answer is cut at "
            f"{window - prompt:,} tokens, not {wanted:,}."
        )
        return window - prompt


def _build_streamer(tokenizer: Any, on_text: Any) -> Any:
    from transformers import TextStreamer

    class CallbackStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return CallbackStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
