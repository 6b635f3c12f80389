"""Text from a tuned language model, or from a plain one: transformers' own generation over two passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from toast_cli.data.rendering import prompt_text
from toast_cli.data.text import Turn
from toast_cli.errors import UsageError
from toast_cli.model import Model


class Writer:
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
            raise UsageError(why, what_to_do="Name a run, or a --backbone, of a language model: llama:<model>.")
        self.tokenizer = backbone.tokenizer
        self.template = template
        self.notice = notice
        self._generator = generator
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def answer(self, turns: Sequence[Turn], on_text: Any = None, **settings: Any) -> str:
        """What comes next; `on_text(text)` hears it as it is written.

        Args:
            turns: what was said so far, the last by the user.
            on_text: called with every piece of finished text.
            settings: transformers' own generation settings.

        Raises:
            UsageError: what was said leaves no room for an answer in what the model can read at once.
        """
        text = turns[-1].whole if self.template is None else prompt_text(turns, self.tokenizer, self.template)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if "max_new_tokens" in settings:
            settings["max_new_tokens"] = self._room(len(ids), settings["max_new_tokens"])
        prompt = torch.tensor([ids], device=self._device)
        written = self._generator.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            streamer=None if on_text is None else _streamer(self.tokenizer, on_text),
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            **settings,
        )
        return self.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)

    def _room(self, prompt: int, wanted: int) -> int:
        """How many tokens an answer may have after a prompt of so many."""
        window = getattr(self._generator.config.get_text_config(), "max_position_embeddings", None)
        if window is None or prompt + wanted <= window:
            return wanted
        if prompt >= window:
            raise UsageError(
                f"The prompt is {prompt:,} tokens, and the model reads {window:,} at most, its answer included.",
                what_to_do="Shorten it.",
            )
        self.notice(
            f"The prompt is {prompt:,} tokens and the model reads {window:,} at most: the answer is cut at "
            f"{window - prompt:,} tokens, not {wanted:,}."
        )
        return window - prompt


def _streamer(tokenizer: Any, on_text: Any) -> Any:
    from transformers import TextStreamer

    class Heard(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Heard(tokenizer, skip_prompt=True, skip_special_tokens=True)
