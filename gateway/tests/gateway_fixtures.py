"""A small real fleet on loopback for the gateway's tests: raw engines and agents, a fleet file, and the gateway itself."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gateway_raw_servers import TOKEN, Agent, Engine
from sheaf_gateway.config import GatewayConfig
from sheaf_gateway.main import Gateway, start


def model(name: str, **spec) -> dict:
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
            "spec": {"source": "hf://org/base", **spec}}  # fmt: skip


def adapter(name: str, base: str, **spec) -> dict:
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Adapter", "metadata": {"name": name},
            "spec": {"modelRef": {"name": base}, "source": f"hf://org/{name}", **spec}}  # fmt: skip


def slo(name: str, **spec) -> dict:
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": "SLO", "metadata": {"name": name}, "spec": spec}


def replace(path: Path, data: bytes) -> None:
    """Replace a file at once, as the writers of the fleet file do."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    os.replace(fresh, path)  # noqa: PTH105


@dataclass
class World:
    """A gateway and its fleet."""

    folder: Path
    engines: list[Engine]
    agents: list[Agent]
    snapshot: dict
    gateway: Gateway = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def write(self) -> None:
        self.snapshot["version"] += 1
        replace(self.folder / "fleet.json", json.dumps(self.snapshot).encode())

    async def until(self, truth: Callable[[], object], within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not truth():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Wait until the gateway knows the written fleet and every agent's report."""
        store = self.gateway.store
        await self.until(lambda: store.snapshot is not None and store.snapshot.version == self.snapshot["version"])
        await self.until(lambda: len(store.states) == sum(bool(pod["agentUrl"]) for pod in self.snapshot["pods"]))

    def pod(self, name: str):
        return next(pod for pods in self.gateway.store.fleet.pods.values() for pod in pods if pod.name == name)


def pod_of(engine: Engine, agent: Agent | None) -> dict:
    return {"name": engine.name, "uid": "u", "model": engine.model, "engineUrl": engine.url,
            "agentUrl": agent.url if agent is not None else "", "ready": True, "draining": False}  # fmt: skip


@pytest.fixture
async def make_world(tmp_path):
    """`world = await make_world(models=..., adapters=..., pods={"base": 2}, keys=..., **config)`."""
    async with AsyncExitStack() as stack:

        async def make(pods=None, models=None, adapters=None, slos=(), keys=None, agents=True, **config) -> World:
            pods = {"base": 2} if pods is None else pods
            engines = [Engine(f"{name}-{place}", name) for name, count in pods.items() for place in range(count)]
            sidecars = [Agent(engine) for engine in engines] if agents else []
            for server in (*engines, *sidecars):
                await server.open()
                stack.push_async_callback(server.close)
            entries = [pod_of(e, sidecars[i] if agents else None) for i, e in enumerate(engines)]
            declared = [model(name) for name in pods] if models is None else models
            snapshot = {
                "version": 0,
                "models": declared,
                "adapters": list(adapters or ()),
                "slos": list(slos),
                "pods": entries,
            }
            world = World(tmp_path, engines, sidecars, snapshot)
            world.write()
            (tmp_path / "token").write_text(TOKEN + "\n")
            if keys is not None:
                (tmp_path / "keys.yaml").write_text(keys)
                config["keysFile"] = tmp_path / "keys.yaml"
            files = {"fleetFile": tmp_path / "fleet.json", "agentTokenFile": tmp_path / "token"}
            world.gateway = await start(GatewayConfig.model_validate({"listen": "127.0.0.1:0", **files, **config}))
            stack.push_async_callback(world.gateway.stop, 0.05)
            await world.settled()
            return world

        yield make


@pytest.fixture
async def ask():
    """A raw request to the gateway: `status, headers, body = await ask(world, "POST", "/v1/...", body, headers)`."""
    writers: list[asyncio.StreamWriter] = []

    async def send(world: World, method: str, path: str, body=b"", headers=None):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        lines = {
            "host": "x",
            "connection": "close",
            "content-length": str(len(data)),
            "content-type": "application/json",
        }
        lines.update(headers or {})
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v is not None)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
        writers.append(writer)
        writer.write(head.encode("latin-1") + b"\r\n" + data)
        raw = await reader.read()
        return parse(raw)

    yield send
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def parse(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body (chunks joined, also of a response that breaks off) of one response."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split(" ")[1]), headers, _joined(rest) if "transfer-encoding" in headers else rest


def _joined(rest: bytes) -> bytes:
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        body, rest = body + rest[:count], rest[count + 2 :]
    return body


def chat(served: str = "base", text: str = "hello", **more) -> dict:
    return {"model": served, "messages": [{"role": "user", "content": text}], **more}
