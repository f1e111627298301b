"""The HTTP/1.1 server that clients talk to: strict, bounded, with nothing between it and the socket.

    server = await serve(app, host="0.0.0.0", port=8000)
    ...
    await server.close(deadline_s=30.0)

Use uvloop as the event loop in production; the server works the same on asyncio's own.
"""

import asyncio
import contextlib
import functools
import socket
import ssl as tls
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from sheaf_gateway.proxy import metrics
from sheaf_gateway.proxy.connection import Connection
from sheaf_gateway.proxy.errors import Refusal, openai_error_body
from sheaf_gateway.proxy.limits import ServerLimits
from sheaf_gateway.proxy.responder import ConnectionResponder
from sheaf_gateway.proxy.types import App, ClientGone, ErrorBody, Request

log = structlog.get_logger(__name__)

_BACKLOG = 2_048
_JSON = ((b"content-type", b"application/json"),)


async def serve(
    app: App,
    *,
    host: str | None = None,
    port: int | None = None,
    sock: socket.socket | None = None,
    limits: ServerLimits | None = None,
    ssl: tls.SSLContext | None = None,
    error_body: ErrorBody = openai_error_body,
) -> "Server":
    """Listen on `host` and `port` (0: any free one) or on a bound socket, and answer with `app`.

    Raises:
        OSError: The address is in use or not allowed.
    """
    server = Server(app, limits or ServerLimits(), error_body)
    await server.listen(host, port, sock, ssl)
    return server


class Server:
    """A listening server; made by `serve`. `port` is the TCP port that it listens on, 0 for another socket."""

    def __init__(self, app: App, limits: ServerLimits, error_body: ErrorBody) -> None:
        self.limits = limits
        self.error_body = error_body
        self.closing = self.ending = False
        self.port = 0
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self._app = app
        self._body_bytes = 0
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._listener: asyncio.Server | None = None
        self._adopted: dict[int, asyncio.Server] = {}
        self._sweeper = self.loop.call_later(limits.tick_s(), self._sweep)

    @property
    def connections(self) -> int:
        """The number of open client connections."""
        return len(self._connections)

    @property
    def held_body_bytes(self) -> int:
        """The bytes held of request bodies that came in several reads, until their request is answered."""
        return self._body_bytes

    async def listen(
        self, host: str | None, port: int | None, sock: socket.socket | None, ssl: tls.SSLContext | None
    ) -> None:
        """Begin to accept connections; `serve` has done it."""
        handshake = self.limits.header_s if ssl else None
        where: dict[str, Any] = {"sock": sock} if sock else {"host": host, "port": port}
        try:
            self._listener = await self.loop.create_server(
                lambda: Connection(self), **where, ssl=ssl, backlog=_BACKLOG, ssl_handshake_timeout=handshake
            )
        except OSError:
            self._sweeper.cancel()
            raise
        address = self._listener.sockets[0].getsockname()
        self.port = address[1] if isinstance(address, tuple) else 0

    async def adopt(self, sockets: Mapping[int, Callable[[], socket.socket]]) -> None:
        """Accept on these listening sockets beside the own one, by any number, and on none that was adopted before and
        is not among them. The sockets are closed when they are let go."""
        for number in self._adopted.keys() - sockets.keys():
            self._adopted.pop(number).close()
        for number in sockets.keys() - self._adopted.keys() if not self.closing else ():
            self._adopted[number] = await self.loop.create_server(
                lambda: Connection(self), sock=sockets[number](), backlog=_BACKLOG
            )

    async def retire(self, deadline_s: float) -> None:
        """Stop accepting because somebody else does now; let every connection end with its next answer, so that no
        request meets a closed one, and after `deadline_s` seconds break off what is left."""
        self.closing = True
        self._stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._all_closed.wait()

    def _stop_accepting(self) -> None:
        for listener in (self._listener, *self._adopted.values()):
            if listener is not None:
                listener.close()
        self._adopted.clear()

    async def close(self, deadline_s: float) -> None:
        """Stop accepting, let requests in progress end, and after `deadline_s` seconds break them off."""
        self.closing = True
        self._stop_accepting()
        await asyncio.sleep(0)  # what has arrived is read: closing on it would reset the connection
        self.ending = True
        for connection in tuple(self._connections):
            connection.close_when_idle()
        try:
            async with asyncio.timeout(deadline_s):
                await self._all_closed.wait()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        except TimeoutError:
            await self._break_off_all()
        self._sweeper.cancel()

    def admit(self, connection: Connection) -> bool:
        """Count a connection in, unless there are too many."""
        if len(self._connections) >= self.limits.max_connections:
            return False
        self._connections.add(connection)
        self._all_closed.clear()
        metrics.CLIENT_CONNECTIONS.inc()
        return True

    def forget(self, connection: Connection) -> None:
        """Count a connection out."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        metrics.CLIENT_CONNECTIONS.dec()
        if not self._connections:
            self._all_closed.set()

    def hold_body_bytes(self, size: int) -> None:
        """Count body bytes in.

        Raises:
            Refusal: 503 when all clients together hold too many.
        """
        if self._body_bytes + size > self.limits.max_bodies:
            message = "The gateway holds as many request bodies as it can; try again shortly."
            raise Refusal(503, message, "too_many_bodies", ((b"retry-after", b"1"),))
        self._body_bytes += size

    def release_body_bytes(self, size: int) -> None:
        """Count body bytes out."""
        self._body_bytes -= size

    def launch(self, request: Request, responder: ConnectionResponder) -> None:
        """Call the application; run what it returns, if anything, as a task."""
        try:
            answer = self._app(request, responder)
        except Exception as error:  # noqa: BLE001
            self._fail(request, responder, error)
            return
        if answer is None:
            return
        task = asyncio.ensure_future(answer)
        if not responder.ended:
            responder.task = task
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._finished, request, responder))

    def _finished(self, request: Request, responder: ConnectionResponder, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._end_badly(responder, 503, "The gateway is stopping; try again.", "stopping")
        elif (error := task.exception()) is not None:
            if not isinstance(error, ClientGone):
                self._fail(request, responder, error)
        elif not responder.ended:
            self._fail(request, responder, RuntimeError("the application returned without ending its response"))

    def _fail(self, request: Request, responder: ConnectionResponder, error: BaseException) -> None:
        metrics.APP_FAILURES.inc()
        log.error("app_failed", method=request.method, path=request.path, exc_info=error)
        self._end_badly(responder, 500, "The gateway failed to answer this request.", "internal_error")

    def _end_badly(self, responder: ConnectionResponder, status: int, message: str, code: str) -> None:
        if responder.started:
            responder.abort()
        elif not responder.ended:
            responder.reply(status, _JSON, self.error_body(status, message, code))

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(self.limits.tick_s(), self._sweep)
        now = self.now()
        for connection in tuple(self._connections):
            if now >= connection.deadline or now >= connection.stall_deadline:
                connection.expire(now)

    async def _break_off_all(self) -> None:
        for connection in tuple(self._connections):
            connection.break_off()
        await self._all_closed.wait()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
