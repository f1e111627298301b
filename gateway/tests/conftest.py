"""What the gateway's tests share: a raw client, a recording application, servers and engines on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from sheaf_gateway.proxy import (
    App,
    Endpoint,
    Pool,
    PoolLimits,
    Request,
    Responder,
    Server,
    ServerLimits,
    Timeouts,
    serve,
)
from structlog.testing import capture_logs

EngineScript = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENT = ServerLimits(linger_s=0.2)


def pytest_asyncio_loop_factories(config, item):
    """Run what touches sockets on both event loops: uvloop serves in production, asyncio everywhere else."""
    if item.path.name.startswith("test_gateway_proxy_"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@dataclass
class Reply:
    """One response as a client reads it off the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class RawClient:
    """A client that sends exactly the bytes it is told to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """Read one response, whatever its framing."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return Reply(int(first.split(" ")[1]), headers, await self._body(headers))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return await self._chunks()
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read() if headers.get("connection") == "close" else b""

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def rest(self) -> bytes:
        """Read until the server closes; a reset counts as closing."""
        data = b""
        try:
            while piece := await self.reader.read(65_536):
                data += piece
        except ConnectionError:
            pass
        return data

    async def close(self) -> None:
        """Leave at once, whatever was not sent or read."""
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Recorder:
    """An application that remembers what it was asked and echoes the body."""

    requests: list[Request] = field(default_factory=list)

    async def __call__(self, request: Request, responder: Responder) -> None:
        self.requests.append(request)
        responder.reply(200, [(b"content-type", b"text/plain")], request.body)

    @property
    def seen(self) -> list[tuple[str, str, bytes]]:
        return [(request.method, request.target, request.body) for request in self.requests]


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged, as structlog events; nothing is rendered."""
    with capture_logs() as events:
        yield events


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """What the test opened, closed in reverse order."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def start_server(closing):
    """Start a server on a free loopback port: `await start_server(app, limits)`."""

    async def start(app: App, limits: ServerLimits = PATIENT, **options) -> Server:
        server = await serve(app, host="127.0.0.1", port=0, limits=limits, **options)
        closing.push_async_callback(server.close, 0.05)
        return server

    return start


@pytest.fixture
def connect(closing):
    """Open a raw client connection: `await connect(server)`."""

    async def open_client(server: Server, limit: int = 65_536) -> RawClient:
        client = RawClient(*await asyncio.open_connection("127.0.0.1", server.port, limit=limit))
        closing.push_async_callback(client.close)
        return client

    return open_client


@pytest.fixture
def start_engine(closing):
    """Start a raw server that behaves as its script says: `endpoint = await start_engine(script)`."""

    async def start(script: EngineScript, uds: str | None = None) -> Endpoint:
        tasks: set[asyncio.Task] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.current_task())
            try:
                await script(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort() if writer.transport.is_closing() else writer.close()

        async def stop() -> None:
            listener.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

        closing.push_async_callback(stop)
        if uds is not None:
            listener = await asyncio.start_unix_server(handle, uds)
            return Endpoint(uds=uds)
        listener = await asyncio.start_server(handle, "127.0.0.1", 0)
        return Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1])

    return start


@pytest.fixture
def make_pool(closing):
    """Make a pool with quick sweeps: `pool = make_pool(timeouts)`."""

    def make(timeouts: Timeouts | None = None, limits: PoolLimits | None = None) -> Pool:
        pool = Pool(limits or PoolLimits(tick_s=0.01, stale_s=5.0), timeouts)
        closing.push_async_callback(pool.close)
        return pool

    return make
