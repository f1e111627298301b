"""The agents of all fake pods in one process: `python agents.py --server URL --pki DIR`.

Fake pods have loopback addresses, so one socket on every address answers for all of them; the address that was called
says which pod is meant. A pod's agent is as kwok's pod is: ready at once, and every adapter that it must keep is
resident as soon as the catalog came. `PUT /busy?seconds=S` lets every agent's load change all S seconds (0: never).
"""

import argparse
import asyncio
import itertools
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from client import Api, Feed, Raw

PORT = 8001
DIGEST = "sha256:" + "0" * 64
SELECTOR = "app.kubernetes.io/managed-by=sheaf"
_versions = itertools.count(1)


@dataclass
class Agent:
    """What one agent says; `uid` is its pod's, empty until the watch told."""

    uid: str = ""
    load: int = 0
    said: dict[str, Any] = field(default_factory=dict)
    waiting: list["asyncio.Future[None]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.said = {"engine": "Ready", "engineEpoch": 1, "capacity": 32, "catalogGeneration": 0, "adapters": []}
        self.change()

    def change(self, **said: Any) -> None:
        """Say something new, to those who wait for it as well."""
        self.said |= {**said, "version": next(_versions), "load": {"running": self.load}}
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return at the next change, or after so many seconds."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await asyncio.wait((future,), timeout=seconds)
        if not future.done():
            self.waiting.remove(future)


class Agents:
    """Every pod's agent by address."""

    def __init__(self) -> None:
        self.by_address: dict[str, Agent] = {}
        self.busy = 0.0

    def seen(self, kind: str, pod: Raw) -> None:
        """A pod's end is its agent's, and an address that is used again has a new one."""
        address, uid = pod.get("status", {}).get("podIP", ""), pod["metadata"]["uid"]
        if not address:
            return
        known = self.by_address.get(address)
        if kind == "DELETED":
            if known is not None and known.uid == uid:
                del self.by_address[address]
        elif known is None or known.uid not in ("", uid):
            self.by_address[address] = Agent(uid)
        else:
            known.uid = uid

    def application(self) -> web.Application:
        """What an agent answers, and `/busy`."""
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.get("/v1/state", self._state),
                web.put("/v1/catalog", self._catalog),
                web.post("/v1/drain", self._drain),
                web.put("/busy", self._set_busy),
            ]
        )
        return app

    async def stir(self) -> None:
        """Let loads change for ever, as told."""
        while True:
            await asyncio.sleep(self.busy or 1.0)
            for agent in list(self.by_address.values()) if self.busy else ():
                agent.load = (agent.load + 1) % 8
                agent.change()

    def _agent(self, request: web.Request) -> Agent:
        transport = request.transport
        address = transport.get_extra_info("sockname")[0] if transport else ""
        return self.by_address.setdefault(address, Agent())

    async def _state(self, request: web.Request) -> web.Response:
        agent = self._agent(request)
        if agent.said["version"] == int(request.query["after"]):
            await agent.wait(float(request.query["wait"]))
        return _answer(agent)

    async def _catalog(self, request: web.Request) -> web.Response:
        agent, catalog = self._agent(request), orjson.loads(await request.read())
        if catalog["generation"] <= agent.said["catalogGeneration"]:
            return web.Response(status=409)
        pinned = [entry["name"] for entry in catalog["adapters"] if entry.get("pinned")]
        resident = [{"name": name, "state": "Resident", "digest": DIGEST} for name in pinned]
        agent.change(catalogGeneration=catalog["generation"], adapters=resident)
        return web.Response(status=202)

    async def _drain(self, request: web.Request) -> web.Response:
        agent, asked = self._agent(request), orjson.loads(await request.read())
        agent.change(draining=True, drainDeadline=time.time() + asked["deadline"])
        return _answer(agent)

    async def _set_busy(self, request: web.Request) -> web.Response:
        self.busy = float(request.query["seconds"])
        return web.Response()


def _answer(agent: Agent) -> web.Response:
    return web.Response(body=orjson.dumps(agent.said), content_type="application/json")


async def serve(server: str, pki: Path) -> None:
    """Answer until SIGTERM."""
    agents, stop = Agents(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(agents.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", PORT, backlog=4096).start()
    async with Api(server, pki) as api:
        tasks = [
            asyncio.create_task(Feed(api, "/api/v1/pods", agents.seen, SELECTOR).run()),
            asyncio.create_task(agents.stir()),
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await runner.cleanup()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="The agents of fake pods.")
    parser.add_argument("--server", required=True)
    parser.add_argument("--pki", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.server, options.pki))


if __name__ == "__main__":
    main()
