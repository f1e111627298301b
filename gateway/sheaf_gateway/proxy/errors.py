"""What can go wrong on either side of the proxy, as types that say what the caller may do next."""

# ruff: noqa: N818

from typing import ClassVar

import msgspec

from sheaf_gateway.proxy.types import Header


class Refusal(Exception):
    """A request that the server answers itself and then closes the connection.

    `code` is stable and machine-readable; it is the `code` of the error body and the label of the metric.
    """

    def __init__(self, status: int, message: str, code: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers


class UpstreamError(Exception):
    """An exchange with an engine that did not complete.

    `retry_safe` says that the sink saw nothing of a response, so that the request may go to another
    engine without the client noticing; `delivered` says that the engine may have begun the work.
    """

    kind: ClassVar[str] = "upstream_error"

    def __init__(self, message: str, *, retry_safe: bool, delivered: bool) -> None:
        super().__init__(message)
        self.retry_safe = retry_safe
        self.delivered = delivered


class _BeforeDelivery(UpstreamError):
    """The engine never saw the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_safe=True, delivered=False)


class Saturated(_BeforeDelivery):
    """The pool's own bound of connections to this engine is reached."""

    kind = "saturated"


class ConnectFailed(_BeforeDelivery):
    """The engine refused the connection or its name does not resolve."""

    kind = "connect_failed"


class ConnectTimeout(_BeforeDelivery):
    """The engine did not accept the connection in time."""

    kind = "connect_timeout"


class ResetBeforeHead(UpstreamError):
    """The engine closed the connection before a whole response head arrived."""

    kind = "reset_before_head"


class FirstByteTimeout(UpstreamError):
    """The engine sent no whole response head in time."""

    kind = "first_byte_timeout"


class IdleTimeout(UpstreamError):
    """The engine paused within a response body for longer than allowed."""

    kind = "idle_timeout"


class ResetMidBody(UpstreamError):
    """The engine closed the connection within a response body."""

    kind = "reset_mid_body"


class BadResponse(UpstreamError):
    """What the engine sent is not a well-framed HTTP/1.1 response within the limits."""

    kind = "bad_response"


class _Detail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


def openai_error_body(status: int, message: str, code: str) -> bytes:
    """Return OpenAI's error JSON; the default `error_body` of `serve`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return msgspec.json.encode({"error": _Detail(message, kind, None, code)})
