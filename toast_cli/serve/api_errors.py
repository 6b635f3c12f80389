"""Errors of the HTTP API, in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from toast_cli.utils.errors import ToastError

KINDS: Mapping[int, str] = {401: "authentication_error", 429: "rate_limit_error"}
"""Types of errors by status; others are `invalid_request_error` below 500 and `server_error` from there on."""

RETRY_AFTER = {"Retry-After": "1"}
"""Header of a response to a request that can succeed later. Its value is in seconds."""


class ApiError(HTTPException):
    """An error with an HTTP status.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        code: Stable name of the error.
        param: Field of the request that is wrong.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param

    def build_body(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = KINDS.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def build_http_response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.build_body(), self.status_code, self.headers)


def describe_invalid_request(error: RequestValidationError) -> ApiError:
    """Return the error of a body that is not valid JSON or does not have the fields of a request."""
    found = error.errors()
    first = found[0] if found else {"loc": ("body",), "msg": "Invalid request", "type": ""}
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    name = where[0] if where else None
    if name is None:
        return ApiError(400, "Expected a JSON object (application/json).", code="invalid_value")
    # A field of several types, such as a text or a list of texts, has an error for each of them.
    same = [each["msg"] for each in found if name in each["loc"][:2]]
    return ApiError(400, f"'{name}': {'; or '.join(dict.fromkeys(same))}.", param=name, code="invalid_value")


def convert_toast_error(error: ToastError, param: str) -> ApiError:
    """Return the error of a request that the model cannot answer, such as one with a prompt that is too long."""
    message = " ".join(part for part in (error.what, error.why, error.what_to_do) if part)
    code = "context_length_exceeded" if error.code == "text.prompt-too-long" else error.code
    return ApiError(400, message, code=code, param=param)


def convert_http_error(error: HTTPException) -> ApiError:
    """Return an error of the framework in the format of the API."""
    if isinstance(error, ApiError):
        return error
    codes = {404: "There is no such path. See /v1/models.", 405: "This path does not accept the method."}
    return ApiError(error.status_code, codes.get(error.status_code, str(error.detail)), headers=error.headers)
