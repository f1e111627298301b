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
    chunk,
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
    """`types.Responder` over a `Connection`; of no effect once its response is over."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_muted",
        "_on_gone",
        "_on_pressure",
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
    def disconnected(self) -> "Disconnection":
        """See `types.Responder`."""
        return Disconnection(self)

    @property
    def gone(self) -> bool:
        """Whether the client left before the response was complete."""
        return self._state == _GONE

    @property
    def writable(self) -> bool:
        """See `types.Responder`."""
        return not self._connection.pressed

    def on_gone(self, callback: Callable[[], None]) -> None:
        """See `types.Disconnected.on_disconnect`."""
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
        if self.started:
            raise RuntimeError("the response was already started")
        if self._state == _GONE:
            self.started = True
            return
        head = response_head(status, headers, self._framing(status, length))
        self.started, self._state = True, _BODY
        self._transport.write(head)

    def write(self, data: bytes) -> None:
        """See `types.Responder`."""
        if self._state != _BODY:
            self._refuse_write()
        elif not data or self._muted:
            pass
        elif self._chunked:
            self._write_chunk(data)
        else:
            self._write_counted(data)

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
                self._transport.write(LAST_CHUNK)
            self._finish()

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """See `types.Responder`."""
        if self.started:
            raise RuntimeError("the response was already started")
        if self._state == _GONE:
            return
        head = response_head(status, headers, self._framing(status, len(body)))
        self.started = True
        if self._muted or len(body) < _COPY_BELOW:
            self._transport.write(head if self._muted else head + body)
        else:
            self._transport.writelines((head, body))
        self._finish()

    def abort(self) -> None:
        """See `types.Responder`."""
        if self._state < _ENDED:
            closes = self.started and self._remaining is None and not self._chunked
            callbacks = self._over(_ENDED)
            self._connection.break_off(reset=closes)
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
        keep_alive, minor = self._connection.keep_alive, self._head.minor
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

    def _write_chunk(self, data: bytes) -> None:
        if len(data) < _COPY_BELOW:
            self._transport.write(chunk(data))
        else:
            self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))

    def _write_counted(self, data: bytes) -> None:
        if self._remaining is not None:
            if len(data) > self._remaining:
                self.abort()
                raise RuntimeError("the body is longer than the declared length")
            self._remaining -= len(data)
        self._transport.write(data)

    def _refuse_write(self) -> None:
        if self._state != _GONE:
            raise RuntimeError("the response has already ended" if self.started else "start the response first")

    def _over(self, state: int) -> list[Callable[[], None]]:
        """Let go of the callbacks, which hold whoever holds this: nothing is left to the cycle collector."""
        self._state = state
        callbacks, self._on_gone = self._on_gone, []
        self._on_pressure = None
        self.task = None
        return callbacks

    def _finish(self) -> None:
        self._over(_ENDED)
        self._connection.response_done()


class Disconnection:
    """`types.Disconnected` of one response."""

    __slots__ = ("_responder",)

    def __init__(self, responder: ConnectionResponder) -> None:
        self._responder = responder

    def is_set(self) -> bool:
        """See `types.Disconnected`."""
        return self._responder.gone

    async def wait(self) -> None:
        """See `types.Disconnected`."""
        gone = asyncio.Event()
        self._responder.on_gone(gone.set)
        await gone.wait()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """See `types.Disconnected`."""
        self._responder.on_gone(callback)
