"""Metadata services of the clouds on loopback, over real HTTP, as strict as the real ones: session tokens, headers,
versions and machine names are demanded, and long polls are held."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

from engine_agent_helpers import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Asked = Callable[[Request], Awaitable[Response]]


@dataclass
class Service:
    """What every one of them can be made to do: refuse, stall, answer without end, and be wrong about the time."""

    status: int = 0
    stalls: bool = False
    endless: bool = False
    ahead: float = 0.0
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def guarded(self, answer: Asked) -> Asked:
        async def asked(request: Request) -> Response:
            self.asked.append(f"{request.method} {request.url.path}")
            while self.stalls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if self.endless:
                return StreamingResponse(b"TRUE" * 2**14 for _ in itertools.count())
            if self.status:
                return PlainTextResponse("no", self.status, {"retry-after": "1"})
            found = await answer(request)
            found.headers["date"] = formatdate(time.time() + self.ahead, usegmt=True)
            return found

        return asked

    def close(self) -> None:
        """Let go of every request that is held."""
        self.stalls = False

    def count(self, word: str) -> int:
        return sum(word in line for line in self.asked)


@dataclass
class Ec2(Service):
    """IMDSv2 with tokens required. `tokens` are those that are good."""

    tokens: set[str] = field(default_factory=set)
    given: int = 0
    action: str | None = None
    rebalance: str | None = None

    async def token(self, request: Request) -> Response:
        seconds = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not seconds.isdigit() or not 1 <= int(seconds) <= 21_600:
            return PlainTextResponse("", 400)
        self.given += 1
        self.tokens.add(f"token-{self.given}==")
        return PlainTextResponse(f"token-{self.given}==")

    async def item(self, request: Request) -> Response:
        if request.headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return PlainTextResponse("", 401)
        found = self.action if request.url.path.endswith("instance-action") else self.rebalance
        return PlainTextResponse("", 404) if found is None else PlainTextResponse(found)

    def app(self) -> Starlette:
        paths = ("/latest/meta-data/spot/instance-action", "/latest/meta-data/events/recommendations/rebalance")
        items = [Route(path, self.guarded(self.item)) for path in paths]
        return Starlette(routes=[Route("/latest/api/token", self.guarded(self.token), methods=["PUT"]), *items])

    def interrupt(self, seconds: float, action: str = "terminate") -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.ahead + seconds))
        self.action = json.dumps({"action": action, "time": at})


@dataclass
class ComputeEngine(Service):
    """Compute Engine's: values with ETags, and answers that are held until they change."""

    values: dict[str, str] = field(default_factory=lambda: {"preempted": "FALSE", "maintenance-event": "NONE"})
    versions: dict[str, int] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def close(self) -> None:
        super().close()
        self.closed = True
        self.changed.set()

    def set(self, name: str, value: str) -> None:
        self.values[name] = value
        self.versions[name] = self.versions.get(name, 0) + 1
        self.changed.set()
        self.changed = asyncio.Event()

    def etag(self, name: str) -> str:
        return f"ab{self.versions.get(name, 0):x}"

    async def value(self, request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        if request.headers.get("metadata-flavor") != "Google":
            return PlainTextResponse("", 403)
        if query.get("wait_for_change") == "true":
            ends = time.monotonic() + float(query["timeout_sec"])
            while query["last_etag"] == self.etag(name) and time.monotonic() < ends and not self.closed:
                async with asyncio.timeout(ends - time.monotonic()):
                    await self.changed.wait()
        return PlainTextResponse(self.values[name], 200, {"etag": self.etag(name), "metadata-flavor": "Google"})

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/computeMetadata/v1/instance/{name}", self.guarded(self.value))])


@dataclass
class Azure(Service):
    """Scheduled events and the machine's name. `slow` is what the first answer takes."""

    name: str = "aks-spot-1_4"
    events: list[object] = field(default_factory=list)
    slow: float = 0.0

    async def machine(self, request: Request) -> Response:
        good = request.headers.get("metadata") == "true" and request.query_params.get("format") == "text"
        return PlainTextResponse(self.name if good else "", 200 if good else 400)

    async def scheduled(self, request: Request) -> Response:
        good = request.headers.get("metadata") == "true" and request.query_params.get("api-version") == "2020-07-01"
        if not good:
            return PlainTextResponse("", 400)
        slow, self.slow = self.slow, 0.0
        await asyncio.sleep(slow)
        return PlainTextResponse(json.dumps({"DocumentIncarnation": 1, "Events": self.events}))

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/metadata/instance/compute/name", self.guarded(self.machine)),
                Route("/metadata/scheduledevents", self.guarded(self.scheduled)),
            ]
        )

    def schedule(self, kind: str, seconds: float, *resources: str, status: str = "Scheduled") -> None:
        before = "" if status == "Started" else formatdate(time.time() + seconds, usegmt=True)
        event = {"EventId": f"E{len(self.events)}", "EventType": kind, "EventStatus": status, "NotBefore": before}
        self.events.append({**event, "ResourceType": "VirtualMachine", "Resources": list(resources or (self.name,))})


@asynccontextmanager
async def metadata_running(service: Ec2 | ComputeEngine | Azure, port: int = 0) -> AsyncIterator[None]:
    async with serving(service.app(), port, date_header=False) as url:
        service.url = url
        try:
            yield
        finally:
            service.close()
