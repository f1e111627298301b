"""Running an ASGI application behind the proxy's server: management, documentation, anything off the hot path.

    bridge = AsgiBridge(fastapi_app)
    async with bridge.lifespan():
        server = await serve(bridge, port=8000)

HTTP scope and lifespan only (ASGI 3.0, HTTP spec 2.4).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from sheaf_gateway.proxy.types import ClientGone, Header, Request, Responder

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_VERSIONS = {"version": "3.0", "spec_version": "2.4"}


class AsgiBridge:
    """A `types.App` that answers with an ASGI application."""

    def __init__(self, app: AsgiApp, *, scheme: str = "http") -> None:
        self._app = app
        self._scheme = scheme
        self._state: dict[str, Any] = {}

    async def __call__(self, request: Request, responder: Responder) -> None:
        """Answer one request."""
        cycle = _Cycle(request, responder)
        await self._app(self._scope(request), cycle.receive, cycle.send)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the application's start-up before the block and its shut-down after it.

        Raises:
            RuntimeError: The application says that either failed.
        """
        life = _Lifespan(self._app, self._state)
        await life.startup()
        try:
            yield
        finally:
            await life.shutdown()

    def _scope(self, request: Request) -> dict[str, Any]:
        host, _, port = request.client.rpartition(":")
        return {
            "type": "http",
            "asgi": _VERSIONS,
            "http_version": "1.1",
            "method": request.method,
            "scheme": self._scheme,
            "path": unquote(request.path),
            "raw_path": request.path.encode("ascii"),
            "query_string": request.query.encode("ascii"),
            "root_path": "",
            "headers": list(request.headers),
            "client": (host, int(port)) if port.isdigit() else None,
            "server": None,
            "state": self._state.copy(),
        }


class _Cycle:
    """The two ASGI callables of one request."""

    def __init__(self, request: Request, responder: Responder) -> None:
        self._request = request
        self._responder = responder
        self._body_given = False
        self._head: tuple[int, list[Header]] | None = None
        self._over = asyncio.Event()
        responder.disconnected.on_disconnect(self._over.set)

    async def receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._responder.disconnected.is_set():
            raise ClientGone("the client is gone")
        if message["type"] == "http.response.start":
            headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            self._head = message["status"], headers
        elif message["type"] == "http.response.body":
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._head is not None:
            status, headers = self._head
            self._head = None
            self._responder.start(status, headers, length=_length(headers, len(body), more=more))
        self._responder.write(body)
        if more:
            await self._responder.drain()
            return
        self._responder.end()
        self._over.set()


def _length(headers: list[Header], size: int, *, more: bool) -> int | None:
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None if more else size


class _Lifespan:
    """One run of the lifespan protocol; an application that does not know it is left alone."""

    def __init__(self, app: AsgiApp, state: dict[str, Any]) -> None:
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(maxsize=2)
        self._outbox: asyncio.Queue[Message] = asyncio.Queue(maxsize=2)
        scope: dict[str, Any] = {"type": "lifespan", "asgi": _VERSIONS, "state": state}
        self._task = asyncio.ensure_future(app(scope, self._inbox.get, self._outbox.put))

    async def startup(self) -> None:
        await self._exchange("startup")

    async def shutdown(self) -> None:
        if not self._task.done():
            await self._exchange("shutdown")
        await asyncio.gather(self._task, return_exceptions=True)

    async def _exchange(self, phase: str) -> None:
        await self._inbox.put({"type": f"lifespan.{phase}"})
        answer = asyncio.ensure_future(self._outbox.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            return
        if answer.result()["type"] == f"lifespan.{phase}.failed":
            raise RuntimeError(f"the application's {phase} failed: {answer.result().get('message', '')}")
