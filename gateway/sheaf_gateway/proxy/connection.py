"""One client connection: heads and bodies in, requests out one at a time, within every limit.

The connection is always in one state: HEAD (between requests or within a head), BODY, BUSY (the
application has the request), WAIT (the response is complete, but the client has not read enough of it for
the next request to be begun), LINGER (refused; what still arrives is thrown away until the client has read
the answer) or CLOSED. Reading goes on while the application works, so that a client's going away is
noticed at once; what arrives meanwhile is the next pipelined request, held up to a bound. There are no
timers here: the server looks at `deadline` of every connection a few times a second.

A client that was told to keep the connection may be sending its next request on it already: while the
server goes, answers that begin say that they are the last one, and no connection is closed for another
reason than its last answer, or that nothing came.
"""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

from sheaf_gateway.proxy import metrics
from sheaf_gateway.proxy.body import ChunkedBody, LengthBody
from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.framing import RequestHead, check_partial
from sheaf_gateway.proxy.heads import HeadReader
from sheaf_gateway.proxy.responder import ConnectionResponder
from sheaf_gateway.proxy.response import CONTINUE, length_framing, response_head
from sheaf_gateway.proxy.types import ClientGone, Request

if TYPE_CHECKING:
    from sheaf_gateway.proxy.server import Server

_HEAD, _BODY, _BUSY, _WAIT, _LINGER, _CLOSED = range(6)
_NEVER = float("inf")
_LAST_WORD_S = 0.5
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_EMPTY_LINE = b"\r\n"


class Connection(asyncio.Protocol):
    """The server's side of one accepted connection."""

    __slots__ = (
        "_body",
        "_body_started",
        "_buffer",
        "_client",
        "_discarded",
        "_head",
        "_heads",
        "_held",
        "_reading",
        "_received_at",
        "_responder",
        "_scanned",
        "_server",
        "_state",
        "_transport",
        "_waiters",
        "deadline",
        "keep_alive",
        "loop",
        "pressed",
        "stall_deadline",
    )

    _transport: asyncio.Transport
    _head: RequestHead

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._state = _HEAD
        self._heads = HeadReader(server.limits)
        self._buffer = b""
        self._scanned = 0
        self._body: LengthBody | ChunkedBody | None = None
        self._body_started = 0.0
        self._held = 0
        self._discarded = 0
        self._reading = True
        self._received_at = 0.0
        self._responder: ConnectionResponder | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._client = "unix"
        self.loop = server.loop
        self.keep_alive = True
        self.pressed = False
        self.deadline = _NEVER
        self.stall_deadline = _NEVER

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection if there is room for it, else answer 503 and close."""
        self._transport = cast("asyncio.Transport", transport)
        self._prepare_socket()
        if not self._server.admit(self):
            self._state = _CLOSED
            message = "The gateway has as many connections as it can hold; try again shortly."
            self._answer(Refusal(503, message, "too_many_connections", ((b"retry-after", b"1"),)))
            self._transport.close()
            return
        self.deadline = self._server.now() + self._server.limits.header_s

    def data_received(self, data: bytes) -> None:
        """Take bytes in whatever state the connection is."""
        if self._state == _HEAD:
            if not self._buffer:
                self._begin_head()
            self._buffer += data
            self._read_head()
        elif self._state == _BODY:
            self._read_body(data)
        elif self._state == _LINGER:
            self._discard(len(data))
        elif self._state != _CLOSED:
            self._hold_pipelined(data)

    def eof_received(self) -> None:
        """Treat a half-closed connection as closed: who sends EOF does not wait for an answer."""
        self._lose()
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Release everything."""
        self._lose()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """Learn that the client reads more slowly than it is written to."""
        self.pressed = True
        self.stall_deadline = self._server.now() + self._server.limits.write_stall_s
        if self._responder is not None:
            self._responder.press(pressed=True)

    def resume_writing(self) -> None:
        """Learn that the client has caught up."""
        self.pressed = False
        self.stall_deadline = _NEVER
        self._wake()
        if self._responder is not None:
            self._responder.press(pressed=False)
        if self._state == _WAIT:
            self._next_request()

    # What the responder asks.

    async def relieved(self) -> None:
        """Wait until the client has caught up.

        Raises:
            ClientGone: It went away instead.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter
        if self._state == _CLOSED:
            raise ClientGone("the client is gone")

    def response_done(self) -> None:
        """Go on to the next request, or close."""
        self._responder = None
        if self._held:
            self._drop_body()
        if self._state != _BUSY:
            return
        if not self.keep_alive:
            self._close()
        elif self.pressed:
            self._state = _WAIT
        else:
            self._next_request()

    def break_after_writing(self, *, reset: bool) -> None:
        """Close once what was written is on its way, within the stall limit: the framing shows that the end is missing.

        With `reset`, so that even a body ended by closing is seen as broken. Aborting instead would throw away what
        uvloop writes at the end of the turn.
        """
        raw = self._transport.get_extra_info("socket")
        if reset and raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._lose()
        self._close()

    def break_off(self) -> None:
        """Close at once."""
        self._lose()
        self._transport.abort()

    # What the server asks.

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if now >= self.stall_deadline:
            metrics.STALLED_CLIENTS.inc()
            self.break_off()
        elif self._state == _HEAD and not self._buffer:
            self._close()
        elif self._state in {_HEAD, _BODY}:
            self._refuse(Refusal(408, "The request did not arrive in time.", "request_timeout"))
        else:
            self.break_off()

    def close_when_idle(self) -> None:
        """Close now unless a request is in progress or on its way, which then is the last one."""
        if self._state == _HEAD and (self._buffer or not self._received_at):
            self.deadline = min(self.deadline, self._server.now() + _LAST_WORD_S)
        elif self._state in {_HEAD, _WAIT}:
            self._close()

    @property
    def last_answer(self) -> bool:
        """Whether the answer that begins now is the connection's last one."""
        return not self.keep_alive or self._server.closing

    # Heads and bodies.

    def _next_request(self) -> None:
        self._state = _HEAD
        now = self._server.now()
        if self._buffer:
            self._received_at = now
            self.deadline = now + self._server.limits.header_s
            self.loop.call_soon(self._read_pipelined)
        else:
            self.deadline = now + (_LAST_WORD_S if self._server.ending else self._server.limits.keep_alive_s)

    def _begin_head(self) -> None:
        now = self._server.now()
        self._received_at = now
        self.deadline = min(self.deadline, now + self._server.limits.header_s)

    def _read_pipelined(self) -> None:
        if self._state == _HEAD:
            self._read_head()
        if len(self._buffer) < self._server.limits.max_pipelined:
            self._resume_reading()

    def _read_head(self) -> None:
        if self._scanned == 0 and self._buffer.startswith(_EMPTY_LINE):
            self._buffer = self._buffer[2:]
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n", self._scanned)
        try:
            if end < 0:
                check_partial(buffer, self._scanned, self._server.limits)
                self._scanned = max(len(buffer) - 3, 0)
                return
            self._scanned = 0
            self._head = self._heads.read(buffer[: end + 4])
            self._buffer = b""
            self._begin_body(buffer[end + 4 :])
        except Refusal as refusal:
            self._refuse(refusal)

    def _begin_body(self, rest: bytes) -> None:
        head = self._head
        if head.content_length == len(rest) and not head.chunked:
            self._dispatch(rest, b"")
            return
        if not head.chunked and head.content_length == 0:
            self._dispatch(b"", rest)
            return
        self._body = ChunkedBody(self._server.limits) if head.chunked else LengthBody(head.content_length)
        self._state = _BODY
        self._body_started = self._server.now()
        if head.expects_continue and not rest:
            self._transport.write(CONTINUE)
        self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        body = cast("LengthBody | ChunkedBody", self._body)
        try:
            rest = body.feed(data)
            self._account(body.received)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if rest is not None:
            self._dispatch(body.take(), rest)
            return
        now = self._server.now()
        self.deadline = self._server.limits.body_deadline(self._body_started, now, body.received)

    def _account(self, received: int) -> None:
        self._server.hold_body_bytes(received - self._held)
        self._held = received

    def _drop_body(self) -> None:
        self._body = None
        if self._held:
            self._server.release_body_bytes(self._held)
            self._held = 0

    def _dispatch(self, body: bytes, rest: bytes) -> None:
        self._body = None
        head = self._head
        self._buffer = rest
        self._state = _BUSY
        self.deadline = _NEVER
        self.keep_alive = head.keep_alive
        request = Request(
            head.method, head.target, head.path, head.query, head.headers, body, self._client, self._received_at,
            head.known,
        )  # fmt: skip
        self._responder = ConnectionResponder(self, self._transport, head)
        self._server.launch(request, self._responder)

    def _hold_pipelined(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= self._server.limits.max_pipelined and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # Endings.

    def _refuse(self, refusal: Refusal) -> None:
        self._drop_body()
        self._buffer = b""
        self._answer(refusal)
        self._linger()

    def _answer(self, refusal: Refusal) -> None:
        metrics.REFUSALS.labels(refusal.code).inc()
        body = self._server.error_body(refusal.status, refusal.message, refusal.code)
        headers = ((b"content-type", b"application/json"), *refusal.headers)
        framing = length_framing(len(body), keep_alive=False, minor=1)
        self._transport.write(response_head(refusal.status, headers, framing) + body)

    def _linger(self) -> None:
        """Let the client read the answer: closing on unread bytes would reset it away (RFC 9112, 9.6)."""
        if not self._transport.can_write_eof():
            self._close()
            return
        self._state = _LINGER
        self.deadline = self._server.now() + self._server.limits.linger_s
        self._resume_reading()
        self._transport.write_eof()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._server.limits.max_discarded:
            self.break_off()

    def _close(self) -> None:
        """Close once everything written has been read, within the stall limit."""
        self._state = _CLOSED
        self.deadline = self._server.now() + self._server.limits.write_stall_s
        self._transport.close()

    def _lose(self) -> None:
        self._state = _CLOSED
        self._drop_body()
        self._buffer = b""
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.lose()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _prepare_socket(self) -> None:
        self._transport.set_write_buffer_limits(high=self._server.limits.write_high)
        peer = self._transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._client = f"{peer[0]}:{peer[1]}"
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
