"""Agents on loopback, as the operator's side sees them: state by long-poll, catalogs, drains."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from sheaf_crds.agent_api import AdapterState, AgentState, Catalog, Drain

TOKEN = "a-token"


@dataclass
class FakeAgent:
    """One agent that loads at once what it is told to; `broken` makes it answer 500."""

    state: AgentState = field(default_factory=lambda: AgentState(version=1, engine="Ready", capacity=32))
    asked: int = 0
    broken: bool = False
    catalogs: list[Catalog] = field(default_factory=list)
    drains: list[Drain] = field(default_factory=list)
    port: int = 0

    def change(self, **fields: object) -> None:
        self.state = self.state.model_copy(update={**fields, "version": self.state.version + 1})

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/state", self._state),
                web.put("/v1/catalog", self._catalog),
                web.post("/v1/drain", self._drain),
            ]
        )
        return app

    def _refused(self, request: web.Request) -> web.Response | None:
        if self.broken:
            return web.Response(status=500, text="broken")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": {"code": "unauthorized", "message": "no"}}, status=401)
        return None

    def _answer(self) -> web.Response:
        return web.Response(body=self.state.model_dump_json(by_alias=True), content_type="application/json")

    async def _state(self, request: web.Request) -> web.Response:
        self.asked += 1
        after, end = int(request.query["after"]), time.monotonic() + float(request.query["wait"])
        while self.state.version <= after and time.monotonic() < end and not self.broken:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return self._refused(request) or self._answer()

    async def _catalog(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        catalog = Catalog.model_validate_json(await request.read())
        if catalog.generation <= self.state.catalog_generation:
            return web.json_response({"error": {"code": "conflict", "message": "older"}}, status=409)
        self.catalogs.append(catalog)
        loaded = tuple(
            AdapterState(name=entry.name, state="Resident", digest=entry.digest or "sha256:found")
            for entry in catalog.adapters
            if entry.pinned
        )
        self.change(catalog_generation=catalog.generation, adapters=loaded)
        return web.Response(status=202)

    async def _drain(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        drain = Drain.model_validate_json(await request.read())
        self.drains.append(drain)
        self.change(draining=True, drain_deadline=time.time() + drain.deadline)
        return self._answer()


@asynccontextmanager
async def fake_agent(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    runner = web.AppRunner(agent.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        agent.port = runner.addresses[0][1]
        yield agent
    finally:
        await runner.cleanup()
