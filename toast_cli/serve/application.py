"""The paths of the HTTP API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from toast_cli.api.chat import to_turns
from toast_cli.data.text.token_limits import require_known_tokens, require_room
from toast_cli.model.generation import TextGenerator
from toast_cli.serve.answers import AnswerChannel, EventStream, RequestAnswers
from toast_cli.serve.api_errors import (
    RETRY_AFTER,
    ApiError,
    convert_http_error,
    convert_toast_error,
    describe_invalid_request,
)
from toast_cli.serve.engine import STOPPED, Engine
from toast_cli.serve.gate import HEALTH, RequestGate
from toast_cli.serve.options import ServerOptions
from toast_cli.serve.protocol import MOST_CHOICES, ChatRequest, CompletionRequest, GenerationRequest, ResponseFormat
from toast_cli.serve.sequence import Sequence as Answer
from toast_cli.serve.served_model import ServedModel
from toast_cli.utils.errors import ToastError


def build_application(engine: Engine, options: ServerOptions, report: Callable[[str], object]) -> RequestGate:
    """Return the ASGI application that passes requests to the engine.

    Args:
        engine: The engine.
        options: Limits and key.
        report: Called with each line of the log.
    """
    app = FastAPI(title="toast serve", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def handle_http_error(_: Request, error: HTTPException) -> JSONResponse:
        return convert_http_error(error).build_http_response()

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def handle_wrong_path(_: Request, error: Any) -> JSONResponse:
        return convert_http_error(error).build_http_response()

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return describe_invalid_request(error).build_http_response()

    @app.exception_handler(Exception)
    async def handle_fault(_: Request, error: Exception) -> JSONResponse:
        report(f"Internal error: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return ApiError(500, f"Internal error: {type(error).__name__}.", code="internal").build_http_response()

    @app.get(HEALTH)
    async def get_health() -> JSONResponse:
        status = {"status": engine.state, "running": engine.running, "waiting": engine.waiting}
        return JSONResponse({**status, "models": [*engine.models]}, 200 if engine.state == "ready" else 503)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        _require_ready(engine)
        return {"object": "list", "data": [_describe_model(model) for model in engine.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        _require_ready(engine)
        return _describe_model(_find_model(engine, name))

    @app.post("/v1/chat/completions")
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        _require_ready(engine)
        model = _find_model(engine, body.model)
        encode = partial(_encode_conversation, model, body)
        prompt = await asyncio.to_thread(_encode, model, encode, "messages")
        return await _answer(engine, options, request, body, "chat", model, model.chat, [prompt])

    @app.post("/v1/completions")
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        _require_ready(engine)
        model = _find_model(engine, body.model)
        if len(body.prompts) * body.n > MOST_CHOICES:
            message = f"A request has {MOST_CHOICES} answers at most: prompts times n."
            raise ApiError(400, message, param="prompt", code="invalid_value")
        encodes = [partial(_encode_text, model, prompt) for prompt in body.prompts]
        prompts = [await asyncio.to_thread(_encode, model, encode, "prompt") for encode in encodes]
        return await _answer(engine, options, request, body, "text", model, model.raw, prompts)

    return RequestGate(app, options, report)


def _require_ready(engine: Engine) -> None:
    """Raise an error while the models are loading, or once the server is stopping."""
    if engine.state != "ready":
        message = "The models are loading." if engine.state == "loading" else STOPPED
        raise ApiError(503, message, code=engine.state, headers=RETRY_AFTER)


def _find_model(engine: Engine, name: str | None) -> ServedModel:
    """Return the model of a name; without a name, the only one."""
    known = ", ".join(engine.models)
    if name is None and len(engine.models) == 1:
        return next(iter(engine.models.values()))
    if name is None:
        raise ApiError(400, f"'model' is missing. Models: {known}.", param="model", code="invalid_value")
    if name not in engine.models:
        raise ApiError(404, f"There is no such model. Models: {known}.", param="model", code="model_not_found")
    return engine.models[name]


def _describe_model(model: ServedModel) -> dict[str, Any]:
    common = {"id": model.name, "object": "model", "created": model.created, "owned_by": "toast"}
    return {**common, "max_model_len": model.chat.limits.window}


def _encode(model: ServedModel, encode: Callable[[], list[int]], param: str) -> list[int]:
    try:
        with model.lock:
            return encode()
    except ToastError as error:
        raise convert_toast_error(error, param) from error
    except (UnicodeError, TypeError, RecursionError) as error:  # of a text or an object that JSON can hold
        raise ApiError(400, "The text cannot be encoded.", param=param, code="invalid_value") from error


def _encode_conversation(model: ServedModel, body: ChatRequest) -> list[int]:
    if model.chat.template is None and (len(body.messages) > 1 or body.passed_tools):
        message = "This run has no format of conversations: send a single message, or use /v1/completions."
        raise ApiError(400, message, param="messages", code="no_chat_format")
    return model.chat.encode_prompt(to_turns(body.messages, body.passed_tools))


def _encode_text(model: ServedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return model.raw.encode_prompt(to_turns(prompt))
    require_known_tokens(prompt, model.raw.tokenizer, model.raw.limits, "The prompt")
    require_room(prompt, model.raw.limits)
    return prompt


def _list_names(names: Sequence[str]) -> str:
    """Return names of a client's fields for a header."""
    return ", ".join(re.sub(r"[^\w.-]", "?", name, flags=re.ASCII)[:64] for name in sorted(names)[:10])


async def _answer(
    engine: Engine,
    options: ServerOptions,
    request: Request,
    body: GenerationRequest,
    kind: Literal["chat", "text"],
    model: ServedModel,
    generator: TextGenerator,
    prompts: Sequence[list[int]],
) -> Response:
    """Return the response with `n` answers to every prompt, whole or as a stream."""
    ignored, settings = body.check_fields(), body.make_settings(options.max_tokens)
    channel = AnswerChannel()
    answers = [
        Answer(
            model,
            generator,
            prompt,
            settings,
            body.stops,
            None if body.seed is None else body.seed + number,
            partial(channel.send, place * body.n + number),
        )
        for place, prompt in enumerate(prompts)
        for number in range(body.n)
    ]
    prompt_tokens = sum(map(len, prompts))
    notes: dict[str, Any] = request.state.notes
    notes |= {"model": model.name, "prompt": prompt_tokens}
    headers = {"X-Toast-Ignored-Fields": _list_names(ignored)} if ignored else {}
    response = ResponseFormat(kind, uuid4().hex, model.name)
    whole = RequestAnswers(engine, answers, channel, response, prompt_tokens, notes)
    whole.submit()
    if body.stream:
        return EventStream(whole, body.include_usage, headers)
    return JSONResponse(await whole.collect(request), headers=headers)
