"""Two pods of real vLLM, each with its agent, behind one gateway: engines that a test kills, and pods that go after a
notice which their agent is told of, as the preStop hook and the operator tell it. Never more than two engines run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from contract_engines import logits_processor
from nursery import Nursery, Sprout, nursery
from running_sheaf import VLLM_ENV, await_health, free_port, stop
from tiny_models import tiny_adapter, tiny_llama

VLLM = "vllm.entrypoints.launchers.api_server.entry:main"
TOKEN = "streams-over-real-engines"
STYLES = ("style-1", "style-2")
START_S = 600.0
FLAGS = [
    "--model", str(tiny_llama()), "--served-model-name", "tiny", "--host", "127.0.0.1", "--dtype", "float32",
    "--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "256", "--block-size", "32", "--enable-lora",
    "--max-loras", "2", "--max-lora-rank", "8", "--max-cpu-loras", "4", "--enable-prompt-tokens-details",
    *(logits_processor() or ["--logits-processors"]), "slow_engine:Slow",
]  # fmt: skip


@dataclass
class Pod:
    """An engine and its agent."""

    name: str
    port: int
    agent_port: int
    engine: Sprout | None = None
    agent: subprocess.Popen[str] | None = None
    ready: bool = False

    @property
    def agent_url(self) -> str:
        return f"http://127.0.0.1:{self.agent_port}"

    def entry(self) -> dict[str, object]:
        engine = f"http://127.0.0.1:{self.port}"
        told = {"engineUrl": engine, "agentUrl": self.agent_url, "ready": self.ready, "model": "tiny"}
        return {"name": self.name, "uid": self.name, **told}

    def call(self, method: str, path: str, body: object = None) -> dict:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx.request(method, f"{self.agent_url}{path}", json=body, headers=headers, timeout=60)
        return answer.raise_for_status().json()

    def holds(self) -> bool:
        """Whether the engine runs and both adapters are loaded, by the agent's word."""
        with suppress(httpx.HTTPError):
            state = self.call("GET", "/v1/state")
            resident = {found["name"] for found in state["adapters"] if found["state"] == "Resident"}
            return state["engine"] == "Ready" and resident >= set(STYLES)
        return False


@dataclass
class VllmFleet:
    """The fleet under test; `url` is the gateway's."""

    folder: Path
    home: Nursery
    pods: list[Pod] = field(default_factory=list)
    version: int = 0
    made: int = 0
    url: str = ""

    def write(self) -> None:
        """Tell the gateway."""
        self.version += 1
        kinds = [("Model", "tiny", {"source": f"file://{tiny_llama()}", "engine": {"name": "vllm"}})]
        kinds += [("Adapter", name, {"modelRef": {"name": "tiny"}, "source": source(name)}) for name in STYLES]
        made = [
            {"apiVersion": "sheaf.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
            for kind, name, spec in kinds
        ]
        pods = [pod.entry() for pod in self.pods]
        draft = self.folder / "fleet.tmp"
        draft.write_text(json.dumps({"version": self.version, "models": made[:1], "adapters": made[1:], "pods": pods}))
        draft.replace(self.folder / "fleet.json")

    def add(self) -> Pod:
        """One more pod, which starts."""
        pod = Pod(f"tiny-{self.made}", free_port(), free_port())
        self.made += 1
        self.pods.append(pod)
        self.start_engine(pod)
        config = {
            "model": "tiny", "engineUrl": f"http://127.0.0.1:{pod.port}", "listen": f"127.0.0.1:{pod.agent_port}",
            "tokenFile": str(self.folder / "token"), "adapterDir": str(self.folder / f"{pod.name}.adapters"),
            "modelDir": str(tiny_llama()), "capacity": 4, "maxRank": 8, "allowedFileRoots": ["/"],
        }  # fmt: skip
        file = self.folder / f"{pod.name}.json"
        file.write_text(json.dumps(config))
        with (self.folder / f"{pod.name}.agent.log").open("w") as log:
            command = [sys.executable, "-m", "sheaf_engine.agent", "--config", str(file)]
            pod.agent = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        await_health(f"{pod.agent_url}/healthz", pod.agent, self.folder / f"{pod.name}.agent.log", START_S)
        adapters = [{"name": name, "source": source(name), "pinned": True} for name in STYLES]
        pod.call("PUT", "/v1/catalog", {"generation": 1, "adapters": adapters})
        return pod

    def start_engine(self, pod: Pod) -> None:
        pod.engine = self.home.start([*FLAGS, "--port", str(pod.port)], str(self.folder / f"{pod.name}.log"))

    def welcome(self, pod: Pod) -> None:
        """Wait until it serves with its adapters, and tell the gateway."""
        assert pod.engine is not None
        await_health(f"http://127.0.0.1:{pod.port}/health", pod.engine, self.folder / f"{pod.name}.log", START_S)
        deadline = time.monotonic() + START_S
        while not pod.holds():
            assert time.monotonic() < deadline, (self.folder / f"{pod.name}.agent.log").read_text()[-3000:]
            time.sleep(0.3)
        pod.ready = True
        self.write()

    def kill(self, pod: Pod) -> None:
        """Its engine dies with no notice; nobody tells the gateway before. It starts again in its place."""
        assert pod.engine is not None
        pod.engine.kill()
        pod.engine.wait(30)
        self.start_engine(pod)
        self.welcome(pod)

    def give_notice(self, pod: Pod, seconds: float) -> None:
        """The pod is told that it goes, ends when it has drained or its time is up, and another one takes its place."""
        state = pod.call("POST", "/v1/drain", {"deadline": seconds, "reason": "spot capacity is taken back"})
        while time.time() < state["drainDeadline"] and not self._drained(pod, state["drainDeadline"] - seconds + 2.0):
            time.sleep(0.2)
        self.end(pod)
        self.pods.remove(pod)
        self.welcome(self.add())

    def _drained(self, pod: Pod, earliest: float) -> bool:
        load = pod.call("GET", "/v1/state")["load"]
        return time.time() >= earliest and load["running"] + load["waiting"] == 0

    def end(self, pod: Pod) -> None:
        """Engine and agent at once."""
        if pod.engine is not None:
            pod.engine.kill()
        if pod.agent is not None:
            pod.agent.kill()
            pod.agent.wait()

    def metric(self, name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.lines(name))

    def lines(self, name: str) -> list[str]:
        """What the gateway says of a metric."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]

    def why_not(self) -> list[str]:
        """What the gateway says of streams that it did not continue."""
        return [
            line for line in (self.folder / "gateway.log").read_text().splitlines() if "stream_not_continued" in line
        ]

    def busiest(self) -> tuple[Pod, int]:
        """The pod that most streams come from, and how many: after a fault that is another one than before."""
        lines = self.lines("sheaf_gateway_pod_in_flight")
        told = {line.split('"')[1]: round(float(line.rsplit(" ", 1)[1])) for line in lines}
        pod = max(self.pods, key=lambda pod: told.get(pod.name, 0))
        return pod, told.get(pod.name, 0)


def source(name: str) -> str:
    return f"file://{tiny_adapter(int(name[-1]))}"


@contextmanager
def vllm_fleet(folder: Path, step_s: float) -> Iterator[VllmFleet]:
    """Two pods behind a gateway; each step of an engine takes so much longer than it needs."""
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)])
    slow = {"SLOW_ENGINE_STEP_S": str(step_s), "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork", "PYTHONPATH": path}
    (folder / "token").write_text(TOKEN)
    with nursery(VLLM, {**VLLM_ENV, **slow}) as home:
        fleet = VllmFleet(folder, home)
        gateway: subprocess.Popen[str] | None = None
        try:
            for pod in (fleet.add(), fleet.add()):
                fleet.welcome(pod)
            listen = f"127.0.0.1:{free_port()}"
            fleet.url = f"http://{listen}"
            files = {"fleetFile": str(folder / "fleet.json"), "agentTokenFile": str(folder / "token")}
            (folder / "gateway.json").write_text(json.dumps({"listen": listen, "accessLog": False, **files}))
            command = [sys.executable, "-m", "sheaf_gateway", "--config", str(folder / "gateway.json")]
            with (folder / "gateway.log").open("w") as log:
                gateway = subprocess.Popen(command, stdout=log, stderr=log, text=True)
            await_health(f"{fleet.url}/readyz", gateway, folder / "gateway.log", 120)
            yield fleet
        finally:
            if gateway is not None:
                stop(gateway)
            for pod in fleet.pods:
                fleet.end(pod)
