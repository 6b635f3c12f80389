"""Text generation with a tuned or plain language model, through `generate` of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Sequence
from contextlib import nullcontext
from copy import deepcopy
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toast_cli.data.text import chat_templates
from toast_cli.data.text.chat_templates import find_end_text, find_end_tokens
from toast_cli.data.text.token_limits import get_padding_token, require_known_tokens, require_room
from toast_cli.data.text.turns import Turn
from toast_cli.model.decoding import DecodingPlan, build_decoding_plan
from toast_cli.model.model import Model
from toast_cli.model.occurrences import mark_occurrences
from toast_cli.model.prompt_emphasis import emphasize_tokens, require_feedback_path
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.recipe.schema import Recipe

DEFAULT_MAX_NEW_TOKENS = 256
"""Largest number of new tokens, unless the settings limit the length in another way."""

_LENGTH_SETTINGS = frozenset({"max_new_tokens", "max_length", "max_time", "stopping_criteria", "generation_config"})
_SINGLE_TEXT_SETTINGS = {"return_dict_in_generate": (None, False), "num_return_sequences": (None, 1)}
"""Settings that can make `generate` return something other than one text, with the values that are allowed."""


def choose_template(recipe: Recipe, tokenizer: Any) -> str | None:
    """Return the format of the prompts of a model: that of its run, or the chat template of an untuned model.

    None means that prompts are continued as they are: the model was trained on documents, or has no chat template.
    """
    if recipe.task.name == "language":
        return getattr(recipe.dataset, "template", None)
    return "chat" if getattr(tokenizer, "chat_template", None) else None


def make_generation_settings(
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    beams: int,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
) -> dict[str, Any]:
    """Return settings of transformers. A temperature of 0 selects greedy decoding, or beam search.

    Args:
        max_new_tokens: largest number of new tokens.
        temperature: the temperature of sampling, or 0.
        top_p: share of the probability that the most likely tokens, from which one is sampled, add up to.
        beams: number of beams.
        top_k: number of the most likely tokens from which one is sampled; 0 for all, None for the model's own setting.
        repetition_penalty: divisor of the scores of tokens that occur already (CTRL, Keskar et al., 2019); 1 for none,
            None for the model's own setting.
    """
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams, "do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": top_p}
        settings |= {} if top_k is None else {"top_k": top_k}
    return settings | ({} if repetition_penalty is None else {"repetition_penalty": repetition_penalty})


def find_stop_tokens(tokenizer: Any, template: str | None, known: int | Sequence[int] | None) -> list[int]:
    """Return the tokens at which generation stops.

    They are those that end an answer in training, the end token of the tokenizer, and the `known` ones of the model's
    generation settings.
    """
    ends = find_end_tokens(tokenizer, template or "auto")
    return sorted({*ends, *to_token_list(tokenizer.eos_token_id), *to_token_list(known)})


def to_token_list(tokens: int | Sequence[int] | None) -> list[int]:
    """Return the tokens of a setting of transformers, which is a token, several or None."""
    return [] if tokens is None else [tokens] if isinstance(tokens, int) else [*map(int, tokens)]


class TextGenerator:
    """A language model that answers prompts and conversations.

    Args:
        model: a model whose backbone is a language model.
        template: the chat template of the run; None passes the prompt to the model unchanged.
        notice: called with each notice for the user, before the answer.

    `cut_answers` counts the answers of the last call that the limit of new tokens ended.

    Raises:
        UsageError: the backbone is not a language model.
        ToastError: the backbone has no tokenizer.
    """

    def __init__(self, model: Model, template: str | None, notice: Callable[[str], object] = warnings.warn) -> None:
        backbone = model.backbone
        generator = backbone.generator(lambda inputs: model.adapted(inputs).last.pooled)
        if generator is None:
            raise UsageError(
                f"A {type(backbone.module).__name__} is not a language model.",
                what_to_do="Give a --run or a --backbone of a language model with its tokenizer: lm:MODEL.",
                code="task.not-a-language-model",
            )
        self.tokenizer = backbone.require_tokenizer()
        self.limits = backbone.text_limits
        self.stop_tokens = find_stop_tokens(self.tokenizer, template, generator.generation_config.eos_token_id)
        self.stop_text = find_end_text(self.tokenizer, template)
        self.template = template
        self.notice = notice
        self.cut_answers = 0
        self._model, self._generator = model, generator
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def answer(
        self,
        turns: Sequence[Turn],
        on_text: Callable[[str], Any] | None = None,
        emphasize: Sequence[str] = (),
        **settings: Any,
    ) -> str:
        """Return the answer to a conversation.

        Args:
            turns: the conversation so far; the last turn is the user's.
            on_text: called with each piece of text as it is generated. Not available with beam search, which selects
                the text at the end.
            emphasize: texts of the conversation whose tokens set xi for this answer (see `prompt_emphasis`).
            settings: generation settings of transformers. By default, an answer has at most 256 new tokens.

        Raises:
            UsageError: the prompt is empty or too long, a setting would return something other than one text, beam
                search would be streamed, or a text to emphasize does not occur or has no feedback path.
        """
        streamed = on_text is not None or settings.get("streamer") is not None
        if streamed and settings.get("num_beams", 1) > 1:
            raise UsageError(
                "Beam search cannot be streamed: it selects the text at the end.",
                what_to_do="Use num_beams=1.",
                code="text.cannot-stream",
            )
        self.cut_answers = 0
        prompt = self.encode_prompt(turns)
        marked = [self.mark_tokens(turns, emphasize)] if emphasize else None
        return self._generate_texts([prompt], settings, on_text, marked)[0]

    @torch.no_grad()
    def answer_all(
        self,
        conversations: Sequence[Sequence[Turn]],
        batch_size: int = 8,
        emphasize: Sequence[Sequence[str]] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Return the answers to several conversations, in their order, generated in batches.

        Prompts are sorted by length and padded on the left. Without sampling, an answer is the same as from `answer`,
        up to rounding.

        Args:
            conversations: the conversations, each as in `answer`.
            batch_size: the number of answers to generate together.
            emphasize: the texts to emphasize of each conversation, as in `answer`; at least one each. None for none.
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
        prompts = [self.encode_prompt(turns, f"Prompt {number}") for number, turns in enumerate(conversations, start=1)]
        marked = None
        if emphasize is not None:
            each = enumerate(zip(conversations, emphasize, strict=True), start=1)
            marked = [self.mark_tokens(turns, texts, f"Prompt {number}") for number, (turns, texts) in each]
        self.cut_answers = 0
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        answers: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            tokens = None if marked is None else [marked[number] for number in numbers]
            texts = self._generate_texts([prompts[number] for number in numbers], dict(settings), marked=tokens)
            answers |= dict(zip(numbers, texts, strict=True))
        return [answers[number] for number in range(len(prompts))]

    def encode_prompt(self, turns: Sequence[Turn], name: str = "The prompt") -> list[int]:
        """Return the token ids of a conversation, formatted with the run's chat template; they fit into the window.

        Raises:
            UsageError: the conversation is empty or too long, or has a token that the model does not know.
        """
        if not turns:
            raise UsageError("The conversation is empty.", code="text.empty-prompt")
        ids = chat_templates.encode_prompt(turns, self.tokenizer, self.template)
        if not ids:
            raise UsageError(f"{name} is empty.", code="text.empty-prompt")
        require_known_tokens(ids, self.tokenizer, self.limits, name)
        require_room(ids, self.limits, name)
        return ids

    def mark_tokens(self, turns: Sequence[Turn], texts: Sequence[str], name: str = "The prompt") -> list[bool]:
        """Return whether each token of `encode_prompt` belongs to an occurrence of one of the texts.

        Raises:
            UsageError: the model has no feedback path, or a text is empty or does not occur.
        """
        require_feedback_path(self._model)
        return mark_occurrences(turns, self.tokenizer, self.template, texts, name)

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self._device

    @torch.no_grad()
    def plan_decoding(self, prompt: Sequence[int], stop_texts: Sequence[str] = (), **settings: Any) -> DecodingPlan:
        """Return how `answer` would continue the token ids of a prompt, for a loop over tokens of the caller's own.

        Args:
            prompt: token ids from `encode_prompt`.
            stop_texts: further texts that end the answer.
            settings: generation settings, as in `answer`, of a single text without beam search.

        Raises:
            ValueError: a setting is invalid.
        """
        chosen = {"pad_token_id": get_padding_token(self.tokenizer, self.limits), **settings}
        ends, _ = self._set_stops(chosen)
        stops = chosen.pop("stop_strings", None) or self._generator.generation_config.stop_strings or ()
        limit = chosen.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        chosen["max_new_tokens"] = self._limit_new_tokens(len(prompt), limit)
        both = [*((stops,) if isinstance(stops, str) else stops), *stop_texts]
        return build_decoding_plan(self._generator, prompt, chosen, ends, both)

    @torch.no_grad()
    def compute_next_scores(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any, cache_argument: str
    ) -> Tensor:
        """Return the scores `[B, vocabulary]` in float32 of the token after new token ids `[B, N]`.

        The cache receives the keys and values of the new tokens. `mask` `[B, cached + N]` is 0 on padding; None if
        there is none. `positions` `[B, N]` count the tokens of a row without its padding.
        """
        cached = {cache_argument: cache}
        output = self._generator(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **cached)
        return output.logits[:, -1].to(copy=True, dtype=torch.float32)

    def _generate_texts(
        self,
        prompts: Sequence[list[int]],
        chosen: dict[str, Any],
        on_text: Callable[[str], Any] | None = None,
        marked: Sequence[Sequence[bool]] | None = None,
    ) -> list[str]:
        """Return the text generated after each prompt, in one batch; `on_text` is called with the pieces of a text.

        The `marked` tokens of each prompt set xi.
        """
        for name, allowed in _SINGLE_TEXT_SETTINGS.items():
            if chosen.get(name) not in allowed:
                raise UsageError(
                    f"The setting {name}={chosen[name]} is not supported: it does not return a single text.",
                    what_to_do="Generate several times, or export with --format hf and use generate of transformers.",
                    code="text.unsupported-setting",
                )
        pad = get_padding_token(self.tokenizer, self.limits)
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=self._device)
        real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ends, stop_text = self._set_stops(chosen)
        if on_text is not None:
            chosen["streamer"] = _build_streamer(self.tokenizer, on_text, ends, stop_text)
        if "generation_config" not in chosen:
            chosen.setdefault("pad_token_id", pad)
        if not _LENGTH_SETTINGS & chosen.keys():
            chosen["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
        if "max_new_tokens" in chosen:
            chosen["max_new_tokens"] = self._limit_new_tokens(longest, chosen["max_new_tokens"])
        chosen["tokenizer"] = self.tokenizer  # for texts at which generation stops
        config = chosen.get("generation_config") or self._generator.generation_config
        beams = chosen.get("num_beams") or config.num_beams or 1
        with nullcontext() if marked is None else emphasize_tokens(self._model, prompts, marked, beams):
            generated = self._generator.generate(ids, attention_mask=real.to(self._device), **chosen)
        written = [row[longest:].tolist() for row in generated]
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in written]
        texts = [self.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        if (limit := chosen.get("max_new_tokens")) is not None:
            texts_of_stops = chosen.get("stop_strings") or ()
            stops = (texts_of_stops,) if isinstance(texts_of_stops, str) else tuple(texts_of_stops)
            self.cut_answers += sum(
                len(answer) >= limit and not any(stop in text for stop in stops)
                for answer, text in zip(answers, texts, strict=True)
            )
        return texts if stop_text is None else [text.partition(stop_text)[0] for text in texts]

    def _set_stops(self, chosen: dict[str, Any]) -> tuple[frozenset[int], str | None]:
        """Add what ends an answer to the settings, unless they have end tokens; return the tokens and text that apply.

        Texts at which generation stops as well, `stop_strings`, remain.
        """
        config: Any = chosen.get("generation_config")
        given = "eos_token_id" in chosen or (config is not None and config.eos_token_id is not None)
        if config is None:
            chosen.setdefault("eos_token_id", self.stop_tokens or None)
        elif not given:
            chosen["generation_config"] = config = deepcopy(config)
            config.eos_token_id = self.stop_tokens or None
        own = None if config is None else config.eos_token_id
        ends = frozenset(to_token_list(chosen.get("eos_token_id", own)))
        if given or self.stop_text is None:
            return ends, None
        others = chosen.get("stop_strings") or (config or self._generator.generation_config).stop_strings or ()
        chosen["stop_strings"] = [*((others,) if isinstance(others, str) else others), self.stop_text]
        return ends, self.stop_text

    def _limit_new_tokens(self, prompt: int, limit: int) -> int:
        """Return the largest number of new tokens after a prompt of `prompt` tokens: `limit`, or what fits."""
        window = self.limits.window
        if window is None or prompt + limit <= window:
            return limit
        self.notice(
            f"The prompt has {prompt:,} tokens and the model accepts {window:,} at most: the answer is limited to "
            f"{window - prompt:,} tokens instead of {limit:,}."
        )
        return window - prompt


def _build_streamer(tokenizer: Any, on_text: Any, ends: Container[int], stop_text: str | None) -> Any:
    from transformers import TextStreamer

    class CallbackStreamer(TextStreamer):
        held = ""

        def put(self, value: Any) -> None:
            if self.next_tokens_are_prompt or int(value) not in ends:
                super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text, self.held = self.held + text, ""
            if stop_text is not None and stop_text in text:
                text, self.held = text[: text.index(stop_text)], stop_text  # nothing after it is passed on
            elif stop_text is not None and not stream_end:
                begun = next((n for n in range(len(stop_text) - 1, 0, -1) if text.endswith(stop_text[:n])), 0)
                text, self.held = text[: len(text) - begun], text[len(text) - begun :]
            if text:
                on_text(text)

    return CallbackStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
