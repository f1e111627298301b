"""The pool of kept connections to engines.

    pool = Pool()
    exchange = pool.exchange(endpoint, head, body, sink)         # callbacks, for the hot path
    async with pool.request(endpoint, "GET", "/health") as response:   # the same, awaited
        ...

A request goes out on the most recently used idle connection, else on a new one within the bound. Where a
kept connection turns out closed at once, before any byte of a response, the request is sent once more on a new
one: the engine closed it while idle, and RFC 9112 section 9.3.1 leaves that to the client. A connection that is
closed later (`stale_s`) may have begun the work: whoever asked decides on another attempt.
"""

import asyncio
import errno
import functools
import ssl as tls
from dataclasses import dataclass

from sheaf_gateway.proxy import metrics
from sheaf_gateway.proxy.errors import ConnectFailed, ConnectTimeout, ResetBeforeHead, Saturated, UpstreamError
from sheaf_gateway.proxy.exchange import Endpoint, Exchange, Sink, Timeouts
from sheaf_gateway.proxy.response import request_head
from sheaf_gateway.proxy.streamed import ResponseStream
from sheaf_gateway.proxy.types import Headers
from sheaf_gateway.proxy.upstream_connection import UpstreamConnection

_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """The pool's bounds: connections per engine, bytes and fields of a response head, seconds."""

    max_connections: int = 1_024
    max_idle: int = 256
    max_head: int = 65_536
    max_headers: int = 200
    keep_idle_s: float = 4.0
    tick_s: float = 0.1
    stale_s: float = 0.005


class _Host:
    """The connections to one engine; `opened` counts those being dialled too."""

    __slots__ = ("idle", "opened")

    def __init__(self) -> None:
        self.idle: list[UpstreamConnection] = []
        self.opened = 0


class Pool:
    """Connections to every engine. Belongs to the running event loop; `close` it at the end.

    `keep_idle_s` must be below the engines' own keep-alive time (vLLM: 5 s).
    """

    def __init__(
        self,
        limits: PoolLimits | None = None,
        timeouts: Timeouts | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        self.limits = limits or PoolLimits()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._timeouts = timeouts or Timeouts()
        self._ssl = ssl
        self._hosts: dict[Endpoint, _Host] = {}
        self._connections: set[UpstreamConnection] = set()
        self._closed = False
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._sweeper = self._loop.call_later(self.limits.tick_s, self._sweep)

    def exchange(
        self,
        endpoint: Endpoint,
        head: bytes,
        body: bytes,
        sink: Sink,
        *,
        timeouts: Timeouts | None = None,
        bodiless: bool = False,
    ) -> Exchange:
        """Send `head` (see `request_head`) and `body`; the response goes to `sink`, never before this returns.

        `bodiless` says that the method is HEAD.
        """
        exchange = Exchange(endpoint, head, body, sink, timeouts or self._timeouts, bodiless=bodiless)
        host = self._hosts.get(endpoint)
        while host is not None and host.idle:
            connection = host.idle.pop()
            if connection.usable:
                connection.begin(exchange)
                return exchange
        self._connect(exchange)
        return exchange

    def request(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        timeouts: Timeouts | None = None,
    ) -> ResponseStream:
        """Return the response of a request as an async context manager; see `ResponseStream`."""
        head = request_head(method, target, endpoint.authority, headers, len(body))
        stream = ResponseStream()
        stream.exchange = self.exchange(endpoint, head, body, stream, timeouts=timeouts, bodiless=method == "HEAD")
        return stream

    def open_connections(self, endpoint: Endpoint) -> int:
        """Return how many connections to an engine are open or being opened."""
        host = self._hosts.get(endpoint)
        return host.opened if host else 0

    def discard_idle(self, endpoint: Endpoint) -> None:
        """Close the idle connections to an engine that is going away."""
        host = self._hosts.get(endpoint)
        for connection in tuple(host.idle if host else ()):
            connection.drop()

    async def close(self) -> None:
        """Close every connection; exchanges in progress end with an error."""
        self._closed = True
        self._sweeper.cancel()
        for task in tuple(self._dialling):
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.break_off()
        await self._all_closed.wait()

    # What connections ask.

    def keep(self, connection: UpstreamConnection) -> bool:
        """Take a connection back for reuse, unless there are enough."""
        idle = connection.idle
        if self._closed or len(idle) >= self.limits.max_idle:
            return False
        connection.deadline = self.now() + self.limits.keep_idle_s
        idle.append(connection)
        return True

    def forget(self, connection: UpstreamConnection) -> None:
        """Count a closed connection out."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        metrics.UPSTREAM_CONNECTIONS.dec()
        if not self._connections:
            self._all_closed.set()
        host = self._hosts[connection.endpoint]
        if connection in host.idle:
            host.idle.remove(connection)
        self._release(connection.endpoint)

    def retry(self, exchange: Exchange) -> None:
        """Send a request again on a new connection."""
        metrics.STALE_RETRIES.inc()
        exchange.retried = True
        self._connect(exchange)

    # Dialling.

    def _connect(self, exchange: Exchange) -> None:
        refused = self._refusal(exchange.endpoint)
        if refused is not None:
            self._loop.call_soon(exchange.fail, refused)
            return
        self._hosts.setdefault(exchange.endpoint, _Host()).opened += 1
        task = self._loop.create_task(self._dial(exchange))
        exchange.stop_dialling = task.cancel
        self._dialling.add(task)
        task.add_done_callback(functools.partial(self._dialled, exchange))

    def _refusal(self, endpoint: Endpoint) -> UpstreamError | None:
        if self._closed:
            return ConnectFailed(f"{endpoint} cannot be reached: the gateway is stopping")
        if self.open_connections(endpoint) >= self.limits.max_connections:
            return Saturated(f"{endpoint} has {self.limits.max_connections} connections, the most that are allowed")
        return None

    async def _dial(self, exchange: Exchange) -> None:
        endpoint = exchange.endpoint
        try:
            async with asyncio.timeout(exchange.timeouts.connect_s):
                connection = await self._open(endpoint)
        except TimeoutError:
            late = f"{endpoint} did not accept a connection within {exchange.timeouts.connect_s} s"
            self._not_dialled(exchange, ConnectTimeout(late))
        except (OSError, ValueError) as error:
            self._not_dialled(exchange, _not_reached(endpoint, error))
        else:
            self._adopt(connection, exchange)

    async def _open(self, endpoint: Endpoint) -> UpstreamConnection:
        def make() -> UpstreamConnection:
            return UpstreamConnection(self, endpoint)

        if endpoint.uds is not None:
            return (await self._loop.create_unix_connection(make, endpoint.uds))[1]
        context = (self._ssl or tls.create_default_context()) if endpoint.tls else None
        return (await self._loop.create_connection(make, endpoint.host, endpoint.port, ssl=context))[1]

    def _adopt(self, connection: UpstreamConnection, exchange: Exchange) -> None:
        self._connections.add(connection)
        connection.idle = self._hosts[connection.endpoint].idle
        metrics.UPSTREAM_CONNECTIONS.inc()
        self._all_closed.clear()
        exchange.stop_dialling = None
        if connection.usable:
            connection.begin(exchange)
            return
        self.forget(connection)
        reset = f"{exchange.endpoint} closed the connection as soon as it was open"
        exchange.fail(ResetBeforeHead(reset, retry_safe=True, delivered=False))

    def _not_dialled(self, exchange: Exchange, error: UpstreamError) -> None:
        self._release(exchange.endpoint)
        exchange.fail(error)

    def _dialled(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._dialling.discard(task)
        if task.cancelled():
            self._not_dialled(exchange, ConnectFailed(f"{exchange.endpoint}: the attempt was given up"))

    def _release(self, endpoint: Endpoint) -> None:
        host = self._hosts[endpoint]
        host.opened -= 1
        if host.opened == 0:
            del self._hosts[endpoint]

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(self.limits.tick_s, self._sweep)
        now = self.now()
        for connection in tuple(self._connections):
            if now >= connection.deadline:
                connection.expire()


def _not_reached(endpoint: Endpoint, error: OSError | ValueError) -> UpstreamError:
    if isinstance(error, OSError) and error.errno in _NO_FILES:
        return Saturated(f"{endpoint}: this process may not open more files")
    return ConnectFailed(f"{endpoint} cannot be reached: {error}")
