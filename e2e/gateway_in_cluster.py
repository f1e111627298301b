"""A gateway beside a real API server: its own service account, a door that can be shut, engines on this machine.

The engine pods are bound to no node: their status is written by the test, so that their addresses are those of emulators
and agents that run here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

GROUP = "sheaf.dev/v1alpha1"
TOKEN = "a-token-of-the-agents"
ROLE = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["sheaf.dev"],
        "resources": ["models", "adapters", "slos", "autoscalingpolicies"],
        "verbs": ["list", "watch"],
    },
]


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


async def until(what: str, truth: Callable[[], Any], within: float = 30.0) -> None:
    """Wait until `truth()`, which may be a coroutine, is true."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + within
    while True:
        found = truth()
        if await found if asyncio.iscoroutine(found) else found:
            return
        assert loop.time() < ends, f"{what}: not within {within:g} s"
        await asyncio.sleep(0.05)


class Door:
    """A TCP door to the API server that can be shut: open connections are cut, new ones refused."""

    def __init__(self, server: str) -> None:
        url = urlsplit(server)
        self._where = (url.hostname, url.port or 443)
        self.port = 0
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._listener = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            upstream, onward = await asyncio.open_connection(*self._where)
            try:
                await asyncio.gather(_pump(reader, onward), _pump(upstream, writer))
            finally:
                onward.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


def account(kubectl: Any, name: str, rules: list[dict[str, Any]]) -> str:
    """A service account with these rights; its token."""
    meta = {"name": name}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name}],
        },
    )
    return str(kubectl("create", "token", name)).strip()


def kubeconfig(admin: Path, folder: Path, door: Door, namespace: str, token: str) -> Path:
    """The cluster's kubeconfig, through the door and with a service account's token."""
    document = yaml.safe_load(admin.read_text())
    cluster = document["clusters"][0]["cluster"]
    name = urlsplit(cluster["server"]).hostname
    cluster |= {"server": f"https://127.0.0.1:{door.port}", "tls-server-name": name}
    document["users"] = [{"name": "gateway", "user": {"token": token}}]
    context = {"cluster": document["clusters"][0]["name"], "user": "gateway", "namespace": namespace}
    document |= {"contexts": [{"name": "here", "context": context}], "current-context": "here"}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def server_of(admin: Path) -> str:
    """The API server's URL."""
    return str(yaml.safe_load(admin.read_text())["clusters"][0]["cluster"]["server"])


@dataclass
class Process:
    """A program that is ended by its process id."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    url: str

    def lines(self) -> list[dict[str, Any]]:
        """Its structured log."""
        text = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in text if line.startswith("{")]

    async def end(self, signal_: int = signal.SIGTERM, within: float = 30.0) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal_)
        async with asyncio.timeout(within):
            return await self.process.wait()


@dataclass
class Programs:
    """Everything that a test has started."""

    folder: Path
    started: list[Process] = field(default_factory=list)

    async def start(self, name: str, url: str, *words: str) -> Process:
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *words, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        self.started.append(Process(name, process, log, url))
        return self.started[-1]

    async def end(self) -> None:
        for each in self.started:
            if each.process.returncode is None:
                each.process.kill()
            await each.process.wait()


@asynccontextmanager
async def programs(folder: Path) -> AsyncIterator[Programs]:
    """Programs, all ended at the end."""
    made = Programs(folder)
    try:
        yield made
    finally:
        await made.end()


async def start_engine(
    made: Programs, name: str, model: str, model_dir: Path
) -> tuple[dict[str, int], Process, Process]:
    """An emulator with its agent; their ports by the names that an engine pod gives them."""
    engine, agent, events, replay = free_ports(4)
    flags = ["--model", str(model_dir), "--served-model-name", model, "--host", "127.0.0.1", "--port", str(engine)]
    first = await made.start(f"{name}.engine", f"http://127.0.0.1:{engine}", "sheaf_engine.emulator", *flags)
    token = made.folder / "token"
    token.write_text(TOKEN)
    config = made.folder / f"{name}.json"
    config.write_text(
        json.dumps(
            {
                "model": model,
                "engineUrl": f"http://127.0.0.1:{engine}",
                "listen": f"127.0.0.1:{agent}",
                "tokenFile": str(token),
                "adapterDir": str(made.folder / f"{name}.adapters"),
                "catalogPatience": 0,
            }
        )
    )
    second = await made.start(
        f"{name}.agent", f"http://127.0.0.1:{agent}", "sheaf_engine.agent", "--config", str(config)
    )
    return {"engine": engine, "agent": agent, "kv-events": events, "kv-replay": replay}, first, second


def engine_pod(name: str, model: str, ports: dict[str, int]) -> dict[str, Any]:
    """A pod that no scheduler takes."""
    named = [{"name": word, "containerPort": port} for word, port in ports.items()]
    labels = {
        "app.kubernetes.io/name": "sheaf-engine",
        "app.kubernetes.io/managed-by": "sheaf",
        "sheaf.dev/model": model,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "schedulerName": "nobody",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "engine", "image": "localhost/none", "ports": named}],
        },
    }


def ready_status(*, ready: bool = True) -> dict[str, Any]:
    """The status of a pod on this machine."""
    condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {
        "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition],
        }
    }


async def start_gateway(made: Programs, name: str, config: Path, **times: str) -> Process:
    """A gateway that listens, with its own snapshot file `NAME.fleet.json`."""
    (port,) = free_ports(1)
    document = {
        "listen": f"127.0.0.1:{port}",
        "fleetFile": str(made.folder / f"{name}.fleet.json"),
        "agentTokenFile": str(made.folder / "token"),
        "kubernetes": {"kubeconfig": str(config)},
        "times": times,
    }
    file = made.folder / f"{name}.config.json"
    file.write_text(json.dumps(document))
    gateway = await made.start(name, f"http://127.0.0.1:{port}", "sheaf_gateway", "--config", str(file))
    await until(f"{name} listens", lambda: any(line["event"] == "listening" for line in gateway.lines()))
    return gateway


async def is_ready(gateway: Process) -> bool:
    """Whether `/readyz` says so."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{gateway.url}/readyz")).status_code == 200


class Load:
    """Streams in a few lanes, one after another with a pause, until stopped. What does not end well is kept."""

    def __init__(
        self, url: Callable[[], str], model: str, lanes: int = 4, tokens: int = 20, pause: float = 0.05
    ) -> None:
        self._url = url
        self._body = {
            "model": model,
            "max_tokens": tokens,
            "stream": True,
            "messages": [{"role": "user", "content": "hello"}],
        }
        self._lanes = lanes
        self._pause = pause
        self._going = True
        self.done = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._lanes):
                group.create_task(self._lane())

    def stop(self) -> None:
        self._going = False

    async def _lane(self) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            while self._going:
                await self._one(client)

    async def _one(self, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.post(f"{self._url()}/v1/chat/completions", json=self._body)
            whole = answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
            problem = "" if whole else f"{answer.status_code}: {answer.text[-300:]}"
        except httpx.HTTPError as error:
            problem = repr(error)
        self.done += 1
        if problem:
            self.failed.append(problem)
        await asyncio.sleep(self._pause)
