"""Passing an engine's response through to a client: the sink between a pool and a responder."""

from sheaf_gateway.proxy.again import AnswerHead
from sheaf_gateway.proxy.errors import (
    ConnectTimeout,
    FirstByteTimeout,
    Saturated,
    UpstreamError,
    openai_error_body,
)
from sheaf_gateway.proxy.exchange import Exchange
from sheaf_gateway.proxy.response import forwardable
from sheaf_gateway.proxy.types import ErrorBody, Header, Responder

_JSON = ((b"content-type", b"application/json"),)
_RETRY = (*_JSON, (b"retry-after", b"1"))


class Relay:
    """Writes what arrives straight to the client, back-pressure and cancellation included.

    relay = Relay(responder)
    relay.attach(pool.exchange(endpoint, head, body, relay))

    An engine that fails before its head becomes a 502, 503 or 504; after it, the client's response is
    broken off. Override `on_error` to retry elsewhere.
    """

    __slots__ = ("error_body", "exchange", "responder")

    def __init__(self, responder: Responder, error_body: ErrorBody = openai_error_body) -> None:
        self.responder = responder
        self.error_body = error_body
        self.exchange: Exchange | None = None

    def attach(self, exchange: Exchange) -> None:
        """Tie the exchange to the client: cancelled when it goes, paused while it does not keep up."""
        first, self.exchange = self.exchange is None, exchange
        if first:
            self.responder.disconnected.on_disconnect(self._cancel)
            self.responder.on_pressure(self._press)

    def on_head(self, status: int, headers: list[Header]) -> None:
        """See `exchange.Sink`."""
        self.responder.start(status, forwardable(headers), length=content_length(headers))

    def on_body(self, data: bytes) -> None:
        """See `exchange.Sink`."""
        self.responder.write(data)

    def on_end(self) -> None:
        """See `exchange.Sink`."""
        self.responder.end()

    def on_whole(self, head: AnswerHead, body: bytes) -> None:
        """See `exchange.WholeSink`."""
        self.responder.reply(head.status, forwardable(head.headers), body)

    def on_error(self, error: UpstreamError) -> None:
        """See `exchange.Sink`."""
        if self.responder.started:
            self.responder.abort()
            return
        status = status_of(error)
        body = self.error_body(status, "The engine did not answer; try again.", error.kind)
        self.responder.reply(status, _RETRY if status == 503 else _JSON, body)

    def _cancel(self) -> None:
        if self.exchange is not None:
            self.exchange.cancel()

    def _press(self, pressed: bool) -> None:  # noqa: FBT001
        if self.exchange is None:
            return
        if pressed:
            self.exchange.pause()
        else:
            self.exchange.resume()


def content_length(headers: list[Header]) -> int | None:
    """Return the declared length of a body that llhttp has framed, or None for a stream."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return None


def status_of(error: UpstreamError) -> int:
    """Return the status that tells a client of an engine's failure: 502, 503 or 504."""
    if isinstance(error, Saturated):
        return 503
    return 504 if isinstance(error, ConnectTimeout | FirstByteTimeout) else 502
