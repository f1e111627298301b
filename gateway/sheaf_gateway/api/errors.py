"""Errors as callers' clients expect them: OpenAI's JSON, or Anthropic's on `/v1/messages`, always with the
fitting status.

`type` is the family that the official clients know, `code` the stable word for programs, `param` the field of
the request that is wrong. No message holds a traceback, a key or what an engine said of its inside.
"""

import math
from typing import Literal

import msgspec

from sheaf_gateway.proxy.types import Header

Dialect = Literal["openai", "anthropic"]

JSON_HEADER: Header = (b"content-type", b"application/json")

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A failure with its answer. `retry_after` is in seconds; headers besides are for the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = headers


class _Detail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class _OpenAI(msgspec.Struct):
    error: _Detail


class _AnthropicDetail(msgspec.Struct):
    type: str
    message: str


class _Anthropic(msgspec.Struct):
    error: _AnthropicDetail
    request_id: str
    type: str = "error"


_encode = msgspec.json.Encoder().encode


def body(error: ApiError, dialect: Dialect, request_id: str = "") -> bytes:
    """The JSON body of an error."""
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return _encode(_Anthropic(_AnthropicDetail(kind, error.message), request_id))
    kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return _encode(_OpenAI(_Detail(error.message, kind, error.param, error.code)))


def headers(error: ApiError, request_id: str) -> list[Header]:
    """The headers of an error: type, request id, Retry-After in whole seconds."""
    found = [JSON_HEADER, (b"x-request-id", request_id.encode("ascii")), *error.headers]
    if error.retry_after is not None:
        found.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode("ascii")))
    return found


def sse_event(error: ApiError, dialect: Dialect, request_id: str) -> bytes:
    """The last event of a stream that broke off."""
    name = b"event: error\n" if dialect == "anthropic" else b""
    return name + b"data: " + body(error, dialect, request_id) + b"\n\n"
