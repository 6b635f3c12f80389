"""Text generation with a tuned or plain language model, through `generate` of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from toast_cli.data.text.chat_templates import format_prompt, prepend_bos
from toast_cli.data.text.conversation_split import Turn
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError

DEFAULT_MAX_NEW_TOKENS = 256
"""Largest number of new tokens, unless the settings limit the length in another way."""

_LENGTH_SETTINGS = frozenset({"max_new_tokens", "max_length", "max_time", "stopping_criteria", "generation_config"})
_SINGLE_TEXT_SETTINGS = {"return_dict_in_generate": (None, False), "num_return_sequences": (None, 1)}
"""Settings that can make `generate` return something other than one text, with the values that are allowed."""


class TextGenerator:
    """A language model that answers prompts and conversations.

    Args:
        model: a model whose backbone is a language model.
        template: the chat template of the run; None passes the prompt to the model unchanged.
        notice: called with each notice for the user, before the answer.

    Raises:
        UsageError: the backbone is not a language model, or has no tokenizer.
    """

    def __init__(self, model: Model, template: str | None, notice: Callable[[str], object] = warnings.warn) -> None:
        backbone = model.backbone
        generator = backbone.generator(lambda inputs: model.adapted(inputs).last.pooled)
        if generator is None or backbone.tokenizer is None:
            name = type(backbone.module).__name__
            reason = f"A {name} is not a language model." if generator is None else "The model has no tokenizer files."
            raise UsageError(
                reason,
                what_to_do="Give a --run or a --backbone of a language model with its tokenizer: llama:<model>.",
                code="task.not-a-language-model",
            )
        self.tokenizer = backbone.tokenizer
        self.template = template
        self.notice = notice
        self._generator = generator
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def answer(self, turns: Sequence[Turn], on_text: Callable[[str], Any] | None = None, **settings: Any) -> str:
        """Return the answer to a conversation.

        Args:
            turns: the conversation so far; the last turn is the user's.
            on_text: called with each piece of text as it is generated. Not available with beam search, which selects
                the text at the end.
            settings: generation settings of transformers. By default, an answer has at most 256 new tokens.

        Raises:
            UsageError: the prompt is empty or too long, a setting would return something other than one text, or
                beam search would be streamed.
        """
        streamed = on_text is not None or settings.get("streamer") is not None
        if streamed and settings.get("num_beams", 1) > 1:
            raise UsageError(
                "Beam search cannot be streamed: it selects the text at the end.",
                what_to_do="Use num_beams=1.",
                code="text.cannot-stream",
            )
        if on_text is not None:
            settings["streamer"] = _build_streamer(self.tokenizer, on_text)
        return self._generate_texts([self._encode_prompt(turns)], settings)[0]

    @torch.no_grad()
    def answer_all(self, conversations: Sequence[Sequence[Turn]], batch_size: int = 8, **settings: Any) -> list[str]:
        """Return the answers to several conversations, in their order, generated in batches.

        Prompts are sorted by length and padded on the left. Without sampling, an answer is the same as from `answer`,
        up to rounding.

        Args:
            conversations: the conversations, each as in `answer`.
            batch_size: the number of answers to generate together.
            settings: generation settings, as in `answer`.

        Raises:
            UsageError: see `answer`; also if a streamer is given.
        """
        if settings.get("streamer") is not None:
            raise UsageError(
                "Several answers cannot be streamed.",
                what_to_do="Generate them one at a time.",
                code="text.cannot-stream",
            )
        prompts = [self._encode_prompt(turns) for turns in conversations]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        answers: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            texts = self._generate_texts([prompts[number] for number in numbers], dict(settings))
            answers |= dict(zip(numbers, texts, strict=True))
        return [answers[number] for number in range(len(prompts))]

    def _encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the token ids of a conversation, formatted with the run's chat template."""
        if not turns:
            raise UsageError("The conversation is empty.", code="text.empty-prompt")
        text = turns[-1].whole if self.template is None else format_prompt(turns, self.tokenizer, self.template)
        ids = prepend_bos(self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer)
        if not ids:
            raise UsageError("The prompt is empty.", code="text.empty-prompt")
        return ids

    def _generate_texts(self, prompts: Sequence[list[int]], chosen: dict[str, Any]) -> list[str]:
        """Return the text generated after each prompt, in one batch."""
        for name, allowed in _SINGLE_TEXT_SETTINGS.items():
            if chosen.get(name) not in allowed:
                raise UsageError(
                    f"The setting {name}={chosen[name]} is not supported: it does not return a single text.",
                    what_to_do="Generate several times, or export with --format hf and use generate of transformers.",
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
        generated = self._generator.generate(ids, attention_mask=real.to(self._device), **chosen)
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True) for row in generated]

    def _limit_new_tokens(self, prompt: int, limit: int) -> int:
        """Return the largest number of new tokens after a prompt of `prompt` tokens: `limit`, or what fits."""
        window = getattr(self._generator.config.get_text_config(), "max_position_embeddings", None)
        if window is None or prompt + limit <= window:
            return limit
        if prompt >= window:
            raise UsageError(
                f"The prompt has {prompt:,} tokens, and the model accepts {window:,} at most, including the answer.",
                what_to_do="Shorten the prompt.",
                code="text.prompt-too-long",
            )
        self.notice(
            f"The prompt has {prompt:,} tokens and the model accepts {window:,} at most: the answer is limited to "
            f"{window - prompt:,} tokens instead of {limit:,}."
        )
        return window - prompt


def _build_streamer(tokenizer: Any, on_text: Any) -> Any:
    from transformers import TextStreamer

    class CallbackStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return CallbackStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
