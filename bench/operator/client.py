"""Just enough of the Kubernetes API for a benchmark: raw JSON calls, and a feed that lists once and watches on."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

Raw = dict[str, Any]
Seen = Callable[[str, Raw], None]
MERGE = "application/merge-patch+json"
WAIT = aiohttp.ClientTimeout(total=60)
ENDLESS = aiohttp.ClientTimeout(total=None, sock_connect=10)
PAGE = "500"


class ApiError(Exception):
    """The API server refused a call."""


class Api:
    """The API server at `url`, as the client whose certificate lies in `pki`."""

    def __init__(self, url: str, pki: Path, client: str = "admin") -> None:
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / f"{client}.crt", pki / f"{client}.key")
        self._url, self._context = url, context

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._context, limit=64), timeout=WAIT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def call(
        self, method: str, path: str, body: Raw | None = None, content: str = "application/json", **query: str
    ) -> Raw:
        """One call; raises ApiError where the answer is none of 2xx."""
        data = orjson.dumps(body) if body is not None else None
        headers = {"Content-Type": content, "User-Agent": "bench"}
        async with self._http.request(method, f"{self._url}{path}", data=data, params=query, headers=headers) as answer:
            text = await answer.read()
            if answer.status >= 300:
                raise ApiError(f"{method} {path}: {answer.status} {text[:300].decode(errors='replace')}")
        found: Raw = orjson.loads(text)
        return found

    async def lines(self, path: str, **query: str) -> AsyncIterator[bytes]:
        """The lines of an endless answer."""
        rest = b""
        async with self._http.get(f"{self._url}{path}", params=query, timeout=ENDLESS) as answer:
            async for piece in answer.content.iter_any():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line


@dataclass
class Feed:
    """One resource, followed: `seen` is told ADDED, MODIFIED or DELETED with the object."""

    api: Api
    path: str
    seen: Seen
    selector: str = ""

    async def run(self) -> None:
        """Follow until cancelled; a watch that ends is taken up again by a new list."""
        while True:
            try:
                await self._watch(await self._list())
            except (aiohttp.ClientError, ApiError, TimeoutError):
                await asyncio.sleep(1.0)

    async def _list(self) -> str:
        query = {"limit": PAGE, "labelSelector": self.selector}
        while True:
            answer = await self.api.call("GET", self.path, **query)
            for raw in answer["items"]:
                self.seen("ADDED", raw)
            if not answer["metadata"].get("continue"):
                return str(answer["metadata"]["resourceVersion"])
            query["continue"] = answer["metadata"]["continue"]

    async def _watch(self, version: str) -> None:
        query = {"watch": "1", "resourceVersion": version, "labelSelector": self.selector}
        async for line in self.api.lines(self.path, **query):
            event = orjson.loads(line)
            if event["type"] == "ERROR":
                return
            self.seen(event["type"], event["object"])
