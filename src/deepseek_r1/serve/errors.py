"""OpenAI's error object for everything that goes wrong: bad input, unknown routes, full queues, a dead engine, bugs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deepseek_r1.core.errors import (
    CapacityError,
    DeepSeekError,
    EngineDiedError,
    ModelNotFoundError,
    RequestError,
    TokenizerError,
)

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
_CODES = {
    HTTPStatus.BAD_REQUEST: "invalid_json",
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


class ApiError(DeepSeekError):
    """An error with the HTTP status, OpenAI type and headers that it is answered with."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object `{"error": {...}}` with all four of OpenAI's fields."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP response. Lone surrogates of the input can't be encoded and are shown escaped."""
        return Response(
            encode_json(self.body()), status_code=self.status, media_type="application/json", headers=self.headers
        )


def encode_json(value: Any) -> bytes:
    """JSON as UTF-8 bytes; lone surrogates (which a client may send escaped) come out as backslash escapes."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_printable(value))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return value


def as_api_error(error: DeepSeekError) -> ApiError:
    """How an error of the lower floors is answered over HTTP."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), code=error.code or "invalid_value", param=error.param)
    if isinstance(error, TokenizerError):
        return ApiError(400, str(error), code="invalid_value", param="messages")
    if isinstance(error, ModelNotFoundError):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, EngineDiedError):
        return ApiError(503, str(error), code="engine_unavailable", kind="server_error", headers={"Retry-After": "1"})
    if isinstance(error, CapacityError):
        return ApiError(503, str(error), code="no_capacity", kind="server_error", headers={"Retry-After": "1"})
    return ApiError(500, str(error), code="internal_error", kind="server_error")


def internal_error() -> ApiError:
    """The answer to a defect of ours: nothing of the traceback leaves the server."""
    return ApiError(
        500, "the server failed on this request; its log says where", code="internal_error", kind="server_error"
    )


def field_path(location: Sequence[str | int]) -> str | None:
    """`("body", "messages", 0, "content", "<parts>", 1)` -> `messages[0].content[1]`; None for the body itself.

    Names in angle brackets are the tags of our unions and no part of the path.
    """
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path or None


def validation_error(error: RequestValidationError, content_type: str | None) -> ApiError:
    """The first thing wrong with a body, as a 400 that names the field. The values sent are not repeated."""
    first = error.errors()[0]
    location = first["loc"]
    param = field_path(location) if location and location[0] == "body" else str(location[-1])
    if param is None:
        if content_type is None or not re.match(r"application/([\w.-]+\+)?json\b", content_type, re.IGNORECASE):
            return ApiError(400, "the header Content-Type must be application/json", code="invalid_content_type")
        if first["type"] == "missing":
            return ApiError(400, "the body is empty: a JSON object is needed", code="invalid_json")
        return ApiError(400, "the body must be a JSON object", code="invalid_type")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message[:1].lower()}{message[1:]}", code=code, param=param)


def http_error(error: HTTPException) -> ApiError:
    """Errors of routing and body reading."""
    status = HTTPStatus(error.status_code)
    kind = INVALID if status < 500 else "server_error"
    return ApiError(status, str(error.detail), code=_CODES.get(status, "bad_request"), kind=kind, headers=error.headers)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with OpenAI's error object."""

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error, request.headers.get("content-type")).response()

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        api_error = http_error(error)
        if error.status_code == 404 and error.detail == "Not Found":
            api_error.message = f"unknown route: {request.method} {request.url.path}"
        elif error.status_code == 405:
            api_error.message = f"{request.url.path} does not answer {request.method}"
        return api_error.response()

    async def on_ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, DeepSeekError)
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(DeepSeekError, on_ours)
