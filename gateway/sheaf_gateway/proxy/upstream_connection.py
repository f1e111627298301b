"""One connection to an engine: one exchange at a time, parsed by llhttp, delivered once per read.

What one read brings is gathered first and then given to the sink in one piece per kind (head, body, end),
so that a burst of small chunks costs one call and one write. A whole answer like the one before needs no parser
(see `again`). A connection is kept only after a response that was framed by length or chunks and left not one
byte over; anything else closes it.

Engines send the head of a stream before they have begun to work, so what bounds the wait for an answer ends with the
first byte of its body, not with its head.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, cast

import httptools

from sheaf_gateway.proxy.again import AnswerHead, AnswerReader
from sheaf_gateway.proxy.errors import (
    BadResponse,
    FirstByteTimeout,
    IdleTimeout,
    ResetBeforeHead,
    ResetMidBody,
    UpstreamError,
)
from sheaf_gateway.proxy.exchange import Endpoint, Exchange, Sink, WholeSink
from sheaf_gateway.proxy.types import Header

if TYPE_CHECKING:
    from sheaf_gateway.proxy.upstream import Pool

NEVER = float("inf")
_BODILESS = frozenset({204, 304})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_JOIN_BELOW = 65_536


class _StopParsing(Exception):  # noqa: N818
    """What follows must not be parsed as part of this response."""


class UpstreamConnection(asyncio.Protocol):
    """The gateway's side of one connection to an engine, and the protocol object of its parser."""

    __slots__ = (
        "_again",
        "_begun_at",
        "_body_given",
        "_complete",
        "_exchange",
        "_framed",
        "_head_bytes",
        "_head_given",
        "_headers",
        "_interim",
        "_kept",
        "_large",
        "_parser",
        "_pieces",
        "_pool",
        "_reused",
        "_status",
        "_touched",
        "_transport",
        "_until_close",
        "deadline",
        "endpoint",
        "idle",
        "lost",
        "on_body",
    )

    _transport: asyncio.Transport
    _begun_at: float
    _head_bytes: int
    _large: bool
    _status: int
    _touched: bool

    def __init__(self, pool: "Pool", endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.deadline = NEVER
        self.idle: list[UpstreamConnection] = []
        self.lost = False
        self._pool = pool
        self._exchange: Exchange | None = None
        self._reused = False
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._again = AnswerReader()
        self._reset()
        self._parser = httptools.HttpResponseParser(self)

    # What the pool asks.

    @property
    def usable(self) -> bool:
        """Whether a request may go out on it."""
        return not self.lost and not self._transport.is_closing()

    def begin(self, exchange: Exchange) -> None:
        """Send a request; its response goes to the exchange's sink."""
        if self._touched:
            self._reset()
        self._exchange = exchange
        exchange.connection = self
        self._begun_at = self._pool.now()
        self.deadline = self._begun_at + exchange.timeouts.first_byte_s
        if len(exchange.body) < _JOIN_BELOW:
            self._transport.write(exchange.head + exchange.body)
        else:
            self._transport.writelines((exchange.head, exchange.body))
        if exchange.paused:
            self.pause()

    def expire(self) -> None:
        """Act on a deadline that has passed."""
        exchange = self._exchange
        if exchange is None:
            self._transport.close()
        elif self._body_given:
            self._fail(exchange, self._mid_body(IdleTimeout, f"paused for {exchange.timeouts.idle_s} s"))
        elif self._head_given:
            late = f"sent nothing after its head within {exchange.timeouts.first_byte_s} s"
            self._fail(exchange, self._mid_body(FirstByteTimeout, late))
        else:
            late = f"sent no response head within {exchange.timeouts.first_byte_s} s"
            self._fail(exchange, self._before_head(FirstByteTimeout, late))

    def drop(self) -> None:
        """Close at once, telling nobody."""
        self._exchange = None
        self._transport.abort()

    def break_off(self) -> None:
        """Close at once; an exchange in progress ends with an error."""
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading, and the clock with it."""
        self.deadline = NEVER
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._exchange is None or self._transport.is_closing():
            return
        timeouts = self._exchange.timeouts
        self.deadline = self._pool.now() + (timeouts.idle_s if self._body_given else timeouts.first_byte_s)
        self._transport.resume_reading()

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare the socket."""
        self._transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Parse, then deliver."""
        exchange = self._exchange
        if exchange is None:
            self._transport.abort()
            return
        sink = exchange.sink
        try:
            self._take(exchange, data)
        except Exception as error:  # noqa: BLE001 - a sink must not raise; where one does, only its own request ends
            self._transport.abort()
            exchange.collapse(sink, error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle the exchange in progress, if any."""
        self.lost = True
        self._pool.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.connection = None
        if self._until_close and self._head_given and exc is None:
            exchange.finish().on_end()
        elif self._was_stale() and not exchange.retried:
            self._pool.retry(exchange)
        elif self._head_given:
            exchange.fail(self._mid_body(ResetMidBody, "closed the connection within a response"))
        else:
            exchange.fail(self._before_head(ResetBeforeHead, "closed the connection before a response"))

    def _was_stale(self) -> bool:
        """Whether the engine must have closed the kept connection before it had the request."""
        early = self._pool.now() - self._begun_at <= self._pool.limits.stale_s
        return self._reused and not self._touched and early

    def _take(self, exchange: "Exchange", data: bytes) -> None:
        first = data
        if self._touched:
            first = b""
        elif exchange.takes_whole and (whole := self._again.read(data)) is not None:
            self._end_whole(exchange, whole[0], whole[1], kept=True)
            return
        self._touched = True
        if not self._status:
            self._large = self._head_bytes + len(data) > self._pool.limits.max_head
        broken: str | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = str(error.__context__ or error)
        if self._body_given and not self._complete and broken is None:
            self._pass_on(exchange)
            return
        if not self._status and broken is None:
            broken = self._head_too_large(len(data))
        self._deliver(exchange, broken, first)

    # What the parser says.

    def on_message_begin(self) -> None:
        """Refuse a second response to one request."""
        if self._complete:
            raise _StopParsing("bytes follow the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Gather a header, which one read bounds until all are there; drop a trailer."""
        if self._status:
            self._drop_trailer(len(name) + len(value))
        else:
            name = name.lower()
            if name in _FRAMING:
                self._framed = True
            self._headers.append((name, value.strip()))

    def on_headers_complete(self) -> None:
        """Tell interim responses from the final one, and a body ended by closing from a framed one."""
        status = self._parser.get_status_code()
        if status == 101 or not 100 <= status < 600:
            raise _StopParsing(f"the status {status} is not one that was asked for")
        if self._large or len(self._headers) > self._pool.limits.max_headers:
            self._check_size()
        self._interim = status < 200
        if self._interim:
            self._headers.clear()
            self._framed = False
            return
        self._status = status
        self._until_close = not self._framed and status not in _BODILESS
        if self._exchange is not None and self._exchange.bodiless:
            self._complete = True
            raise _StopParsing("a response to HEAD has no body")

    def on_message_complete(self) -> None:
        """Note the end of the final response and whether the connection can be kept."""
        if not self._interim:
            self._complete = True
            self._kept = self._parser.should_keep_alive()

    # Delivery.

    def _reset(self) -> None:
        self._headers: list[Header] = []
        self._status = 0
        self._head_bytes = 0
        self._head_given = False
        self._body_given = False
        self._framed = False
        self._interim = False
        self._complete = False
        self._kept = False
        self._touched = False
        self._until_close = False

    def _deliver(self, exchange: Exchange, broken: str | None, first: bytes) -> None:
        """Give what was parsed to the sink; `first` is the read that began the answer, if it was this one."""
        if broken is not None and not self._complete and not self._head_given:
            self._fail(exchange, self._before_head(BadResponse, f"sent a bad response: {broken}"))
            return
        if self._complete and not self._head_given and exchange.takes_whole:
            kept = self._kept and broken is None
            head = self._again.remember(first if kept else b"", self._status, self._headers)
            self._end_whole(exchange, head, self._take_pieces(), kept=kept)
            return
        if self._status and not self._head_given:
            self._head_given = True
            exchange.sink.on_head(self._status, self._headers)
        if self._pieces:
            self._body_given = True
            self._deliver_body(exchange)
        if exchange.done:
            return
        if self._complete:
            self._end(exchange, kept=self._kept and broken is None)
        elif broken is not None:
            self._fail(exchange, self._mid_body(BadResponse, f"sent a bad response: {broken}"))
        elif self._body_given and not exchange.paused:
            self.deadline = self._pool.now() + exchange.timeouts.idle_s

    def _pass_on(self, exchange: Exchange) -> None:
        """Deliver what is neither the beginning of a response nor its end: nearly every read of a stream."""
        pieces = self._pieces
        if not pieces:
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        exchange.sink.on_body(data)
        if not exchange.done and not exchange.paused:
            self.deadline = self._pool.now() + exchange.timeouts.idle_s

    def _deliver_body(self, exchange: Exchange) -> None:
        data = self._take_pieces()
        if not exchange.done:
            exchange.sink.on_body(data)

    def _take_pieces(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def _end(self, exchange: Exchange, *, kept: bool) -> None:
        self._over(exchange, kept=kept).on_end()

    def _end_whole(self, exchange: Exchange, head: AnswerHead, body: bytes, *, kept: bool) -> None:
        cast("WholeSink", self._over(exchange, kept=kept)).on_whole(head, body)

    def _over(self, exchange: Exchange, *, kept: bool) -> Sink:
        sink = exchange.finish()
        exchange.connection = self._exchange = None
        if exchange.paused:
            self._transport.resume_reading()
        self._reused = True
        if not (kept and self._pool.keep(self)):
            self._transport.close()
        return sink

    def _fail(self, exchange: Exchange, error: UpstreamError) -> None:
        exchange.connection = self._exchange = None
        self._pieces.clear()
        self._transport.abort()
        exchange.fail(error)

    def _check_size(self) -> None:
        headers, limits = self._headers, self._pool.limits
        size = sum([len(name) + len(value) for name, value in headers])
        if len(headers) > limits.max_headers or size > limits.max_head:
            raise _StopParsing("the response head is too large")

    def _drop_trailer(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._pool.limits.max_head:
            raise _StopParsing("the trailers are too large")

    def _head_too_large(self, size: int) -> str | None:
        self._head_bytes += size
        return "the response head is too large" if self._head_bytes > self._pool.limits.max_head else None

    def _before_head(self, kind: type[UpstreamError], what: str) -> UpstreamError:
        return kind(f"{self.endpoint} {what}", retry_safe=True, delivered=True)

    def _mid_body(self, kind: type[UpstreamError], what: str) -> UpstreamError:
        return kind(f"{self.endpoint} {what}", retry_safe=False, delivered=True)
