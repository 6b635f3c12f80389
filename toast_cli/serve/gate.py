"""What every request passes first: key, host, size of the body, and the log."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from toast_cli.serve.api_errors import ApiError
from toast_cli.serve.options import ServerOptions, is_loopback
from toast_cli.utils.names import escape_control_characters

HEALTH = "/health"
"""Path that needs no key and is not logged, because programs that watch the server ask for it often."""

BODY_SECONDS = 60.0
"""Time that a client has to send the body of a request."""

READ_BEYOND = 8
"""A body that is too large is read up to this multiple of the limit, so that the client gets the response."""

Message = MutableMapping[str, Any]
Asgi = Callable[..., Any]


class RequestGate:
    """An ASGI application that checks requests before it passes them to another one, and logs a line about each.

    Questions about the health are not logged.

    The log has no text of requests or answers. Without a key, a server on loopback answers only to names of this
    machine, so that a web page cannot reach it through a name of its own that leads here.

    Args:
        app: The application.
        options: Limits and key.
        report: Called with each line of the log.
    """

    def __init__(self, app: Asgi, options: ServerOptions, report: Callable[[str], object]) -> None:
        self._app, self._options, self._report = app, options, report

    async def __call__(self, scope: Message, receive: Asgi, send: Asgi) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499
        notes: dict[str, Any] = {}
        scope.setdefault("state", {})["notes"] = notes

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = self._check(scope)
            if refused is not None:
                await self._read_rest(receive)
                await refused.build_http_response()(scope, receive, send_noting_status)
            else:
                await self._app(scope, self._limit(receive), send_noting_status)
        except ApiError as error:  # before the application was called
            await error.build_http_response()(scope, receive, send_noting_status)
        except Exception:  # the application has logged it and sent the response
            if status == 499:
                raise
        finally:
            if scope["path"] != HEALTH:
                path = escape_control_characters(scope["path"])[:100]
                noted = "".join(f" {name}={value}" for name, value in notes.items())
                self._report(f"{scope['method']} {path} {status}{noted} {time.monotonic() - began:.2f} s")

    def _check(self, scope: Message) -> ApiError | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        key = self._options.api_key
        if key is not None and scope["path"] != HEALTH:
            given = headers.get("authorization", "").partition(" ")
            if given[0].lower() != "bearer" or not hmac.compare_digest(given[2].strip().encode(), key.encode()):
                return ApiError(
                    401,
                    "The API key is missing or wrong.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if key is None and self._options.is_local and not is_loopback(get_host(headers.get("host", "localhost"))):
            return ApiError(403, "This server answers to localhost only.", code="invalid_host")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._options.max_body:
            return self._make_size_error()
        return None

    def _make_size_error(self) -> ApiError:
        return ApiError(413, f"The request is larger than {self._options.max_body:,} bytes.", code="request_too_large")

    async def _read_rest(self, receive: Asgi) -> None:
        """Read what the client is still sending, up to a limit."""
        size, more = 0, True
        while more and size < READ_BEYOND * self._options.max_body:
            message = await self._receive_body(receive)
            size += len(message.get("body", b""))
            more = message.get("more_body", False)

    async def _receive_body(self, receive: Asgi) -> Message:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message: Message = await receive()
                return message
        except TimeoutError:
            raise ApiError(408, "The body of the request did not arrive in time.", code="request_timeout") from None

    def _limit(self, receive: Asgi) -> Asgi:
        """Return a `receive` that raises an error when the body becomes too large, or does not arrive."""
        size, complete = 0, False

        async def receive_limited() -> Message:
            nonlocal size, complete
            message: Message = await receive() if complete else await self._receive_body(receive)
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self._options.max_body:
                raise self._make_size_error()
            return message

        return receive_limited


def get_host(header: str) -> str:
    """Return the host of a `Host` header, without the port."""
    return header.partition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]
