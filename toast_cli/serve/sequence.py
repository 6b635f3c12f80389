"""A text that is being generated: its tokens, its settings, and where its pieces go."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from toast_cli.model.decoding import DecodingPlan
from toast_cli.model.generation import TextGenerator
from toast_cli.serve.served_model import ServedModel
from toast_cli.serve.text_stream import TextStream


@dataclass(frozen=True)
class TextPiece:
    """The next piece of an answer."""

    text: str


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer.

    Attributes:
        reason: "stop" at an end token or a stop text, "length" at the largest number of tokens.
        text: the whole answer.
        tokens: number of generated tokens, with the end token.
    """

    reason: Literal["stop", "length"]
    text: str
    tokens: int


@dataclass(frozen=True)
class AnswerFailure:
    """An answer that cannot be continued; `stopping` if the server is being stopped."""

    message: str
    stopping: bool = False


AnswerEvent: TypeAlias = "TextPiece | AnswerEnd | AnswerFailure"


class Sequence:
    """An answer of a model, from its request to its last token.

    Args:
        model: The model that answers.
        generator: The generator of the model that the prompt was encoded with.
        prompt: Token ids of the prompt.
        settings: Generation settings of transformers.
        stops: Texts that end the answer.
        seed: Seed of the sampling; None: random. The answer depends on no other answer of its batch.
        send: Called in the thread of the engine with every event of the answer.
    """

    plan: DecodingPlan

    def __init__(
        self,
        model: ServedModel,
        generator: TextGenerator,
        prompt: Items[int],
        settings: Mapping[str, Any],
        stops: Items[str],
        seed: int | None,
        send: Callable[[AnswerEvent], Any],
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.cancelled = False
        self.finished = False
        self.tokens: list[int] = []
        self._generator, self._settings, self._stops = generator, settings, stops
        self._send = send
        self._seed = secrets.randbits(63) if seed is None else seed

    def prepare(self) -> None:
        """Build the plan of decoding, in the thread that runs the model.

        Raises:
            ValueError: A setting is invalid.
        """
        self.plan = self._generator.plan_decoding(self.prompt, self._stops, **self._settings)
        self._stream = TextStream(self.model.tokenizer, self.plan.stop_texts)
        self._random = torch.Generator(self._generator.device).manual_seed(self._seed)

    def take_cache(self) -> Any:
        """Return the empty cache of the plan, which must not outlive its batch."""
        cache, self.plan = self.plan.cache, replace(self.plan, cache=None)
        return cache

    @property
    def needs_own_batch(self) -> bool:
        """Return whether the text may become too long to be generated together with others."""
        common = self.model.common_length
        return common is not None and len(self.prompt) + self.plan.max_new_tokens > common

    @property
    def cached_tokens(self) -> int:
        """The number of tokens whose keys and values are cached: all but the newest one."""
        return len(self.prompt) + len(self.tokens) - 1

    def choose_token(self, scores: Tensor) -> int:
        """Return the next token, given its scores `[vocabulary]`."""
        if self.plan.takes_best:
            return int(scores.argmax())
        return self.plan.choose_token(scores, self.tokens, self._random)

    def accept(self, token: int) -> None:
        """Add the next token, pass on the text that it completes, and finish the answer if it ends it."""
        self.tokens.append(token)
        if token in self.plan.end_tokens:
            return self._finish("stop")
        self._pass_on(self._stream.add(token))
        if self._stream.stopped:
            self._finish("stop")
        elif len(self.tokens) >= self.plan.max_new_tokens:
            self._finish("length")

    def fail(self, message: str, stopping: bool = False) -> None:
        """End the answer with an error."""
        self.finished = True
        self._send(AnswerFailure(message, stopping))

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        self._pass_on(self._stream.finish())
        if self._stream.stopped:
            reason = "stop"
        self.finished = True
        self._send(AnswerEnd(reason, self._stream.text, len(self.tokens)))

    def _pass_on(self, text: str) -> None:
        if text:
            self._send(TextPiece(text))
