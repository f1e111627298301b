"""What kubelets and agents do, without either: pods get a loopback address of their own, an agent there, and are ready.

No scheduler takes these pods (their schedulerName is nobody's), so the API server lets a deleted one go at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from aiohttp import web
from sheaf_crds.agent_api import AdapterState, AgentState, Catalog, Drain
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.errors import ApiError
from sheaf_operator.cluster.kubernetes.resources import PODS
from sheaf_operator.cluster.protocol import ClusterError

SCHEDULER = "nobody"
TOKEN = "crash-sweep"
LOOK = 0.1
_addresses = count(2)


@dataclass
class Agent:
    """An agent that loads at once whatever it must keep."""

    address: str
    state: AgentState = field(default_factory=lambda: AgentState(version=1, engine="Ready", capacity=32))
    catalog: Catalog = field(default_factory=Catalog)
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        routes = [
            web.get("/v1/state", self._state),
            web.put("/v1/catalog", self._put),
            web.post("/v1/drain", self._drain),
        ]
        app.add_routes(routes)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, 8001).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _change(self, **fields: Any) -> None:
        self.state = self.state.model_copy(update={**fields, "version": self.state.version + 1})

    def _answer(self) -> web.Response:
        return web.Response(body=self.state.model_dump_json(by_alias=True), content_type="application/json")

    async def _state(self, request: web.Request) -> web.Response:
        after, end = int(request.query["after"]), time.monotonic() + float(request.query["wait"])
        while self.state.version <= after and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return self._answer()

    async def _put(self, request: web.Request) -> web.Response:
        catalog = Catalog.model_validate_json(await request.read())
        if catalog.generation <= self.state.catalog_generation:
            return web.Response(status=409)
        self.catalog = catalog
        loaded = tuple(
            AdapterState(name=entry.name, state="Resident", digest=entry.digest or "sha256:" + "0" * 64)
            for entry in catalog.adapters
            if entry.pinned
        )
        self._change(catalog_generation=catalog.generation, adapters=loaded)
        return web.Response(status=202)

    async def _drain(self, request: web.Request) -> web.Response:
        drain = Drain.model_validate_json(await request.read())
        self._change(draining=True, drain_deadline=time.time() + drain.deadline)
        return self._answer()


@dataclass
class Kubelet:
    """Looks after the pods of one namespace until cancelled. `hold`: new pods stay unready."""

    api: ApiServer
    hold: bool = False
    agents: dict[str, Agent] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    most_pods: Counter[str] = field(default_factory=Counter)
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        try:
            while True:
                with suppress(ClusterError):
                    await self.look()
                await asyncio.sleep(LOOK)
        finally:
            for agent in tuple(self.agents.values()):
                await agent.stop()

    async def look(self) -> None:
        """Do for the pods what is due, and know them; one look at a time: an older list must not end a newer pod's agent."""
        async with self.looking:
            await self._look()

    async def _look(self) -> None:
        pods = [pod async for page, _ in self.api.pages(PODS) for pod in page]
        self.pods = pods
        there = {pod["metadata"]["uid"] for pod in pods}
        for uid in self.agents.keys() - there:
            await self.agents.pop(uid).stop()
        for model, number in Counter(pod["metadata"]["labels"]["sheaf.dev/model"] for pod in pods).items():
            self.most_pods[model] = max(self.most_pods[model], number)
        for pod in pods:
            if not self.hold and pod["metadata"]["uid"] not in self.agents:
                await self._serve(pod)

    async def _serve(self, pod: dict[str, Any]) -> None:
        number = next(_addresses)
        agent = Agent(f"127.77.{number // 250}.{number % 250 + 1}")
        self.agents[pod["metadata"]["uid"]] = agent
        await agent.start()
        status = {
            "phase": "Running",
            "podIP": agent.address,
            "podIPs": [{"ip": agent.address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        try:
            await self.patch_status(pod["metadata"]["name"], status)
        except ApiError as error:
            if error.status != 404:  # deleted since it was listed
                raise

    async def patch_status(self, name: str, status: dict[str, Any]) -> None:
        content = "application/merge-patch+json"
        await self.api._call("patch", PODS, name, "status", body={"status": status}, content=content)
