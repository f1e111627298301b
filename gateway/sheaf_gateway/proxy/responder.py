"""The response to one request on one client connection."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from sheaf_gateway.proxy import metrics
from sheaf_gateway.proxy.response import (
    CHUNKED,
    CLOSE_DELIMITED,
    LAST_CHUNK,
    NO_BODY,
    joined,
    joined_head,
    length_framing,
    response_head,
)
from sheaf_gateway.proxy.types import ClientGone, Headers

if TYPE_CHECKING:
    from sheaf_gateway.proxy.connection import Connection
    from sheaf_gateway.proxy.framing import RequestHead

_NEW, _BODY, _ENDED, _GONE = range(4)
_WITHOUT_BODY = frozenset({204, 304})
_COPY_BELOW = 65_536


class ConnectionResponder:
    """`types.Responder` over a `Connection`, and its own `types.Disconnected`."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_muted",
        "_on_gone",
        "_on_pressure",
        "_pending",
        "_remaining",
        "_state",
        "_transport",
        "started",
        "task",
    )

    def __init__(self, connection: "Connection", transport: asyncio.Transport, head: "RequestHead") -> None:
        self._connection = connection
        self._transport = transport
        self._head = head
        self._state = _NEW
        self._chunked = False
        self._muted = False
        self._pending = b""
        self._remaining: int | None = None
        self._on_gone: list[Callable[[], None]] = []
        self._on_pressure: Callable[[bool], None] | None = None
        self.started = False
        self.task: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """See `types.Responder`."""
        return self._state >= _ENDED

    @property
    def disconnected(self) -> "ConnectionResponder":
        """See `types.Responder`."""
        return self

    @property
    def writable(self) -> bool:
        """See `types.Responder`."""
        return not self._connection.pressed

    def is_set(self) -> bool:
        """See `types.Disconnected`."""
        return self._state == _GONE

    async def wait(self) -> None:
        """See `types.Disconnected`."""
        gone = asyncio.Event()
        self.on_disconnect(gone.set)
        await gone.wait()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """See `types.Disconnected`."""
        if self._state == _GONE:
            callback()
        elif self._state < _ENDED:
            self._on_gone.append(callback)

    def on_pressure(self, callback: Callable[[bool], None]) -> None:
        """See `types.Responder`."""
        self._on_pressure = callback
        if self._connection.pressed:
            callback(self._connection.pressed)

    def start(self, status: int, headers: Headers, *, length: int | None) -> None:
        """See `types.Responder`."""
        if self._may_start():
            self._pending = response_head(status, headers, self._framing(status, length))
            self._state = _BODY
            self._connection.loop.call_soon(self._flush)
        self.started = True

    def write(self, data: bytes) -> None:
        """See `types.Responder`."""
        if self._state != _BODY:
            self._refuse_write()
        elif not data or self._muted:
            pass
        elif self._chunked and len(data) < _COPY_BELOW:
            head, self._pending = self._pending, b""
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        elif self._chunked:
            self._send(b"%x\r\n" % len(data))
            self._transport.writelines((data, b"\r\n"))
        else:
            self._count(data)
            self._send(data)

    async def drain(self) -> None:
        """See `types.Responder`."""
        if self._state == _GONE:
            raise ClientGone("the client is gone")
        if self._connection.pressed:
            await self._connection.relieved()

    def end(self) -> None:
        """See `types.Responder`."""
        if self._state != _BODY:
            self._refuse_write()
        elif self._remaining:
            self.abort()
        else:
            if self._chunked:
                self._send(LAST_CHUNK)
            self._flush()
            self._finish()

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """See `types.Responder`."""
        self.reply_joined(status, joined(headers), body)

    def reply_joined(self, status: int, lines: bytes, body: bytes) -> None:
        """See `types.Responder`."""
        if self._may_start():
            self._pending = joined_head(status, lines, self._framing(status, len(body)))
            self._send(b"" if self._muted else body)
            self._finish()
        self.started = True

    def abort(self) -> None:
        """See `types.Responder`."""
        if self._state < _ENDED:
            closes = self.started and self._remaining is None and not self._chunked
            self._flush()
            callbacks = self._over(_ENDED)
            self._connection.break_after_writing(reset=closes)
            for callback in callbacks:
                callback()

    def lose(self) -> None:
        """Learn that the client is gone: tell whoever asked and stop the application's task."""
        if self._state >= _ENDED:
            return
        task = self.task
        callbacks = self._over(_GONE)
        metrics.CLIENTS_GONE.inc()
        for callback in callbacks:
            callback()
        if task is not None:
            task.cancel()

    def press(self, *, pressed: bool) -> None:
        """Learn that the client stopped or resumed keeping up."""
        if self._on_pressure is not None:
            self._on_pressure(pressed)

    def _framing(self, status: int, length: int | None) -> bytes:
        keep_alive, minor = not self._connection.last_answer, self._head.minor
        self._connection.keep_alive = keep_alive
        self._muted = self._head.method == "HEAD" or status in _WITHOUT_BODY
        if status in _WITHOUT_BODY:
            self._remaining = 0
            self._connection.keep_alive = keep_alive and minor > 0
            return NO_BODY if self._connection.keep_alive else CLOSE_DELIMITED
        if length is not None:
            self._remaining = 0 if self._muted else length
            return length_framing(length, keep_alive=keep_alive, minor=minor)
        if minor == 0:
            self._connection.keep_alive = False
            return CLOSE_DELIMITED
        self._chunked = not self._muted
        return CHUNKED if keep_alive else b"connection: close\r\n" + CHUNKED

    def _may_start(self) -> bool:
        if self.started or self._state == _ENDED:
            raise RuntimeError("the response was already started" if self.started else "the response has already ended")
        return self._state == _NEW

    def _count(self, data: bytes) -> None:
        if self._remaining is None:
            return
        if len(data) > self._remaining:
            self.abort()
            raise RuntimeError("the body is longer than the declared length")
        self._remaining -= len(data)

    def _send(self, data: bytes) -> None:
        """Write, the head first where it is still here: one system call for both."""
        head, self._pending = self._pending, b""
        if len(data) < _COPY_BELOW:
            self._transport.write(head + data)
        else:
            self._transport.writelines((head, data))

    def _flush(self) -> None:
        if self._pending:
            self._send(b"")

    def _refuse_write(self) -> None:
        if self._state != _GONE:
            raise RuntimeError("the response has already ended" if self.started else "start the response first")

    def _over(self, state: int) -> list[Callable[[], None]]:
        """Let go of the callbacks, which hold whoever holds this: nothing is left to the cycle collector."""
        self._state = state
        self._pending = b""
        callbacks, self._on_gone = self._on_gone, []
        self._on_pressure = None
        self.task = None
        return callbacks

    def _finish(self) -> None:
        self._over(_ENDED)
        self._connection.response_done()
