"""Requests and responses in OpenAI's format: chat completions and completions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from toast_cli.model.generation import DEFAULT_MAX_NEW_TOKENS, make_generation_settings
from toast_cli.serve.api_errors import ApiError

MOST_CHOICES = 16
"""Largest number of answers to one prompt, and of prompts in one request."""

GREEDY_BELOW = 1e-5
"""Temperature below which the most likely token is chosen; dividing by less overflows."""

StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}
"""Fields of the API that the server does not support, with the values that ask for nothing."""

WITHOUT_EFFECT = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls"),
    }
)
"""Fields of the API that do not change an answer."""


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The fields that chat completions and completions share."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def asked_tokens(self) -> int | None:
        """The largest number of new tokens that the request asks for."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def make_settings(self, most_tokens: int) -> dict[str, Any]:
        """Return the generation settings of transformers.

        Raises:
            ApiError: The request asks for more than `most_tokens` tokens.
        """
        asked = self.asked_tokens
        if asked is not None and asked > most_tokens:
            raise ApiError(
                400,
                f"max_tokens is {asked:,}, and this server generates {most_tokens:,} at most. "
                "Its option --max-tokens changes that.",
                param="max_tokens",
            )
        limit = min(DEFAULT_MAX_NEW_TOKENS, most_tokens) if asked is None else asked
        temperature = 0.0 if self.temperature < GREEDY_BELOW else self.temperature
        settings = make_generation_settings(limit, temperature, self.top_p, 1)
        if self.top_k is not None and temperature > 0:
            settings["top_k"] = self.top_k
        if self.repetition_penalty is not None:
            settings["repetition_penalty"] = self.repetition_penalty
        return settings

    def check_fields(self) -> list[str]:
        """Return the names of fields that are not known and were ignored.

        Raises:
            ApiError: A field of the API has a value that the server does not support.
        """
        ignored = []
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED:
                neutral = UNSUPPORTED[name]
                if value is not None and not any(type(value) is type(each) and value == each for each in neutral):
                    raise ApiError(400, f"'{name}' is not supported by this server.", param=name, code="unsupported")
            elif name not in WITHOUT_EFFECT:
                ignored.append(name)
        return ignored


class ChatRequest(GenerationRequest):
    """A request of an answer to a conversation."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None

    @property
    def asked_tokens(self) -> int | None:
        """The largest number of new tokens; `max_completion_tokens` is the newer name of `max_tokens`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def passed_tools(self) -> list[dict[str, Any]] | None:
        """The tools for the chat template."""
        return None if (self.model_extra or {}).get("tool_choice") == "none" else self.tools


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """A request of the continuation of texts, or of token ids."""

    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, of which each is a text or token ids."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class ResponseFormat:
    """Builds the objects of a response: a chat completion or a text completion, whole or in chunks.

    Args:
        kind: "chat" or "text".
        identity: Unique part of the id of the response.
        model: Name of the model.
    """

    def __init__(self, kind: Literal["chat", "text"], identity: str, model: str) -> None:
        self._chat = kind == "chat"
        self._common = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{identity}",
            "created": int(time.time()),
            "model": model,
        }

    def build_response(self, answers: Sequence[tuple[str, str]], usage: Mapping[str, int]) -> dict[str, Any]:
        """Return a whole response with the text and the reason of the end of every answer."""
        choices = [
            {"index": index, **self._wrap(text), "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(answers)
        ]
        name = "chat.completion" if self._chat else "text_completion"
        return {**self._common, "object": name, "choices": choices, "usage": dict(usage)}

    def build_first_chunk(self, index: int) -> dict[str, Any] | None:
        """Return the chunk before the first text: a chat names the role; a text completion has none."""
        return self._build_chunk(index, {"delta": {"role": "assistant", "content": ""}}) if self._chat else None

    def build_text_chunk(self, index: int, text: str) -> dict[str, Any]:
        """Return the chunk of a piece of text."""
        return self._build_chunk(index, {"delta": {"content": text}} if self._chat else {"text": text})

    def build_last_chunk(self, index: int, reason: str) -> dict[str, Any]:
        """Return the chunk after the last text of an answer."""
        return self._build_chunk(index, {"delta": {}} if self._chat else {"text": ""}, reason)

    def build_usage_chunk(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens, which has no choices."""
        return {**self._build_chunk(0, {}), "choices": [], "usage": dict(usage)}

    def _wrap(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}

    def _build_chunk(self, index: int, content: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        name = "chat.completion.chunk" if self._chat else "text_completion"
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return {**self._common, "object": name, "choices": [choice]}


def count_usage(prompt: int, generated: int) -> dict[str, int]:
    """Return the numbers of tokens of a request."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
