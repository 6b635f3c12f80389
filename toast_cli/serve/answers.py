"""The answers to one HTTP request: their events come from the engine's thread, and go out whole or as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from toast_cli.serve.api_errors import RETRY_AFTER, ApiError
from toast_cli.serve.engine import STOPPED, Engine, EngineStoppedError, QueueFullError
from toast_cli.serve.protocol import ResponseFormat, count_usage
from toast_cli.serve.sequence import AnswerEnd, AnswerEvent, AnswerFailure, TextPiece
from toast_cli.serve.sequence import Sequence as Answer


class AnswerChannel:
    """Carries the events of the answers to a request from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, AnswerEvent]] = asyncio.Queue()

    def send(self, index: int, event: AnswerEvent) -> None:
        """Add an event of the answer with this index. Called in the thread of the engine."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
        except RuntimeError:  # the loop has ended, and so has the request
            return

    async def read(self, answers: int) -> AsyncIterator[tuple[int, AnswerEvent]]:
        """Yield the events of this number of answers, until all have ended.

        Raises:
            ApiError: An answer failed.
        """
        open_answers = set(range(answers))
        while open_answers:
            index, event = await self._events.get()
            if isinstance(event, AnswerFailure):
                status = 503 if event.stopping else 500
                raise ApiError(status, event.message, code="stopping" if event.stopping else "generation_failed")
            yield index, event
            if isinstance(event, AnswerEnd):
                open_answers.discard(index)


class RequestAnswers:
    """All answers to a request, from the queue of the engine to the HTTP response.

    Args:
        engine: The engine.
        answers: The answers, in the order of the response.
        channel: Where they send their events.
        response: The format of the response.
        prompt_tokens: Number of tokens of all prompts.
        notes: Receives what the log says about the request.
    """

    def __init__(
        self,
        engine: Engine,
        answers: Sequence[Answer],
        channel: AnswerChannel,
        response: ResponseFormat,
        prompt_tokens: int,
        notes: dict[str, Any],
    ) -> None:
        self._engine, self._answers, self._channel, self._response = engine, answers, channel, response
        self._prompt_tokens, self._notes = prompt_tokens, notes
        self._ends: dict[int, AnswerEnd] = {}

    def submit(self) -> None:
        """Add the answers to the queue.

        Raises:
            ApiError: It is full, or the server is stopping.
        """
        try:
            self._engine.submit(self._answers)
        except QueueFullError:
            message = "Too many requests are waiting. Try again later."
            raise ApiError(429, message, code="queue_full", headers=RETRY_AFTER) from None
        except EngineStoppedError:
            raise ApiError(503, STOPPED, code="stopping", headers=RETRY_AFTER) from None

    async def collect(self, request: Request) -> dict[str, Any]:
        """Return the whole response. The answers are given up if the client disconnects.

        Raises:
            ApiError: An answer failed, or nobody reads the response any more.
        """
        reading = asyncio.ensure_future(self._read_ends())
        leaving = asyncio.ensure_future(_wait_for_disconnect(request))
        try:
            await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ApiError(499, "The client has disconnected.", code="disconnected")
            reading.result()
        finally:
            reading.cancel()
            leaving.cancel()
            self.close()
        ends = [self._ends[index] for index in range(len(self._answers))]
        return self._response.build_response([(end.text, end.reason) for end in ends], self._count_usage())

    async def _read_ends(self) -> None:
        async for index, event in self._channel.read(len(self._answers)):
            if isinstance(event, AnswerEnd):
                self._ends[index] = event

    async def stream(self, include_usage: bool) -> AsyncIterator[str]:
        """Yield the response as server-sent events. An error after the beginning is an event too."""
        try:
            for index in range(len(self._answers)):
                if (first := self._response.build_first_chunk(index)) is not None:
                    yield _format_event(first)
            async for index, event in self._channel.read(len(self._answers)):
                if isinstance(event, TextPiece):
                    yield _format_event(self._response.build_text_chunk(index, event.text))
                elif isinstance(event, AnswerEnd):
                    self._ends[index] = event
                    yield _format_event(self._response.build_last_chunk(index, event.reason))
        except ApiError as error:
            self._notes["error"] = error.code
            yield _format_event(error.build_body())
            return
        if include_usage:
            yield _format_event(self._response.build_usage_chunk(self._count_usage()))
        yield "data: [DONE]\n\n"

    def close(self) -> None:
        """Give up the answers that have not ended, and note what the log says about the others."""
        self._engine.cancel([answer for answer in self._answers if not answer.finished])
        self._notes["completion"] = sum(len(answer.tokens) for answer in self._answers)
        reasons = [self._ends[index].reason if index in self._ends else "cut" for index in range(len(self._answers))]
        self._notes["end"] = ",".join(reasons)

    def _count_usage(self) -> dict[str, int]:
        return count_usage(self._prompt_tokens, sum(end.tokens for end in self._ends.values()))


class EventStream(StreamingResponse):
    """A stream of server-sent events that closes its answers however it ends, also when the client disconnects."""

    def __init__(self, answers: RequestAnswers, include_usage: bool, headers: dict[str, str]) -> None:
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(answers.stream(include_usage), media_type="text/event-stream", headers=quiet)
        self._answers = answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


def _format_event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
