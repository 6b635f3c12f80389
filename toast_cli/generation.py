"""Text from a tuned language model, or from a plain one: transformers' own generation over two passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from toast_cli.data.rendering import prompt_text
from toast_cli.data.text import Turn
from toast_cli.errors import UsageError
from toast_cli.model import Model

LONGEST = 256
"""New tokens in an answer, unless its length is limited in another way."""

_LIMITS = frozenset({"max_new_tokens", "max_length", "max_time", "stopping_criteria", "generation_config"})
_SEVERAL = {"return_dict_in_generate": (None, False), "num_return_sequences": (None, 1)}
"""Settings with which transformers' `generate` gives something else than one text, and their values that do not."""


class Writer:
    """A model that answers.

    Args:
        model: with a backbone that writes.
        template: how turns are marked, as the run was trained on them; None gives a prompt to the model as it is.

    Raises:
        UsageError: the backbone writes no text, or has no tokenizer.
    """

    def __init__(self, model: Model, template: str | None) -> None:
        backbone = model.backbone
        generator = backbone.generator(lambda inputs: model.adapted(inputs).last.pooled)
        if generator is None or backbone.tokenizer is None:
            name = type(backbone.module).__name__
            why = f"A {name} writes no text." if generator is None else "There is no tokenizer beside the model."
            raise UsageError(why, what_to_do="Name a run, or a --backbone, of a language model: llama:<model>.")
        self.tokenizer = backbone.tokenizer
        self.template = template
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
            UsageError: there is nothing to answer, a setting asks for something else than one text, or beams would be
                streamed.
        """
        if not turns:
            raise UsageError("Nothing was said that could be answered.")
        for name, allowed in _SEVERAL.items():
            if settings.get(name) not in allowed:
                raise UsageError(
                    f"{name}={settings[name]} asks for something else than one text.",
                    what_to_do="Call several times, or export with --format hf and use transformers' generate.",
                )
        streamed = on_text is not None or settings.get("streamer") is not None
        if streamed and settings.get("num_beams", 1) > 1:
            raise UsageError("Beams cannot be streamed: the best is known at the end.", what_to_do="Use num_beams=1.")
        text = turns[-1].text if self.template is None else prompt_text(turns, self.tokenizer, self.template)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if not ids:
            raise UsageError("The prompt is empty.")
        prompt = torch.tensor([ids], device=self._device)
        chosen = dict(settings)
        if "generation_config" not in chosen:
            pad = self.tokenizer.pad_token_id
            chosen.setdefault("pad_token_id", self.tokenizer.eos_token_id if pad is None else pad)
        if not _LIMITS & chosen.keys():
            chosen["max_new_tokens"] = LONGEST
        if on_text is not None:
            chosen["streamer"] = _streamer(self.tokenizer, on_text)
        if chosen.get("stop_strings") is not None:
            chosen["tokenizer"] = self.tokenizer
        written = self._generator.generate(prompt, attention_mask=torch.ones_like(prompt), **chosen)
        return self.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)


def _streamer(tokenizer: Any, on_text: Any) -> Any:
    from transformers import TextStreamer

    class Heard(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return Heard(tokenizer, skip_prompt=True, skip_special_tokens=True)
