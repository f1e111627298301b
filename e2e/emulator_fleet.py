"""A gateway process over emulator processes that a test kills and starts again: no agents, no operator, nothing that would
soften a loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from nursery import Nursery, Sprout, nursery
from running_sheaf import await_health, free_port, stop

EMULATOR = "sheaf_engine.emulator.__main__:main"


@dataclass
class Pod:
    """One emulator and how the gateway sees it."""

    name: str
    port: int
    process: Sprout | None = None
    draining: bool = False
    deadline: float = 0.0
    losses: int = 0
    ready: bool = True

    def entry(self) -> dict[str, object]:
        return {
            "name": self.name,
            "uid": str(self.losses),
            "model": "base",
            "engineUrl": f"http://127.0.0.1:{self.port}",
            "ready": self.ready,
            "draining": self.draining,
            "deadline": self.deadline,
        }


@dataclass
class EmulatorFleet:
    """The fleet under test; `url` is the gateway's."""

    folder: Path
    arguments: list[str]
    nursery: Nursery
    pods: list[Pod] = field(default_factory=list)
    version: int = 0
    url: str = ""
    gateway: int = 0
    spec: dict[str, object] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self) -> None:
        """Tell the gateway."""
        with self.lock:
            self._write()

    def _write(self) -> None:
        self.version += 1
        spec = {"source": "hf://org/base", "engine": {"name": "emulator"}, **self.spec}
        model = {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": "base"}, "spec": spec}
        document = {"version": self.version, "models": [model], "pods": [pod.entry() for pod in self.pods]}
        draft = self.folder / "fleet.tmp"
        draft.write_text(json.dumps(document))
        draft.replace(self.folder / "fleet.json")

    def start(self, pod: Pod) -> None:
        flags = ["--model", "none", "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(pod.port)]
        pod.process = self.nursery.start([*flags, *self.arguments], str(self.folder / f"{pod.name}.log"))

    def await_pod(self, pod: Pod) -> None:
        assert pod.process is not None
        await_health(f"http://127.0.0.1:{pod.port}/health", pod.process, self.folder / f"{pod.name}.log", 60, 0.05)

    def lose(self, pod: Pod) -> None:
        """Kill it with no notice, tell the gateway afterwards, and start it again under the same address."""
        assert pod.process is not None
        pod.process.kill()
        pod.process.wait()
        pod.losses += 1
        pod.draining, pod.deadline, pod.ready = False, 0.0, False
        self.write()
        self.start(pod)

    def welcome(self, pod: Pod) -> None:
        """Wait until it answers, and tell the gateway."""
        self.await_pod(pod)
        pod.ready = True
        self.write()

    def notice(self, pod: Pod, seconds: float | None) -> None:
        """Say that it goes, and when, where that is known."""
        pod.draining, pod.deadline = True, 0.0 if seconds is None else time.time() + seconds
        self.write()

    def memory(self) -> int:
        """Bytes that the gateway has in memory."""
        pages = int(Path(f"/proc/{self.gateway}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def running(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.process is not None and pod.process.poll() is None]

    def outcomes(self, request_id: str) -> list[tuple[str, str | None]]:
        """What became of each attempt of a request: the pod, and how it ended."""
        record = httpx.get(f"{self.url}/sheaf/v1/decisions/{request_id}", timeout=60)
        attempts = record.json()["attempts"] if record.status_code == 200 else []
        return [(attempt["decision"]["pod"], attempt["outcome"]) for attempt in attempts]

    def metric(self, name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.lines(name))

    def lines(self, name: str) -> list[str]:
        """What the gateway says of a metric."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]


@contextmanager
def emulator_fleet(folder: Path, count: int, *arguments: str, **config: object) -> Iterator[EmulatorFleet]:
    """`count` emulators behind one gateway."""
    with nursery(EMULATOR) as home:
        pods = [Pod(f"base-{n}", free_port()) for n in range(count)]
        yield from _running(EmulatorFleet(folder, list(arguments), home, pods), config)


def _running(fleet: EmulatorFleet, config: dict[str, object]) -> Iterator[EmulatorFleet]:
    folder = fleet.folder
    gateway: subprocess.Popen[str] | None = None
    try:
        for pod in fleet.pods:
            fleet.start(pod)
        for pod in fleet.pods:
            fleet.await_pod(pod)
        fleet.write()
        listen = f"127.0.0.1:{free_port()}"
        fleet.url = f"http://{listen}"
        settings = {"listen": listen, "fleetFile": str(folder / "fleet.json"), **config}
        (folder / "gateway.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "sheaf_gateway", "--config", str(folder / "gateway.json")]
        with (folder / "gateway.log").open("w") as log:
            gateway = subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ})
        fleet.gateway = gateway.pid
        await_health(f"{fleet.url}/readyz", gateway, folder / "gateway.log", 60)
        yield fleet
    finally:
        for process in (gateway, *(pod.process for pod in fleet.pods)):
            if process is not None:
                stop(process)
