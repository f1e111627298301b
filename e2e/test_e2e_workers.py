"""One gateway of several processes before emulated engines: a worker that dies takes its own connections along and
nothing else, and a roll loses no request."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_in_cluster import free_ports
from running_sheaf import stop

pytestmark = pytest.mark.timeout(180)

WORKERS, ENGINES, CLIENTS = 2, 2, 12
PROFILE = {"step_overhead_s": 0.005, "prefill_token_s": 1e-6, "num_blocks": 4096, "max_model_len": 2048}


@dataclass
class Gateway:
    """A supervised gateway and what it logged."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def pids(self) -> dict[int, int]:
        """The workers by place, the newest of each."""
        return {event["worker"]: event["pid"] for event in self.events("worker_started")}

    def wait(self, what: str, truth: Callable[[], Any], within: float = 60.0) -> None:
        ends = time.monotonic() + within
        while not truth():
            assert self.process.poll() is None, f"the gateway ended\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < ends, f"{what}: not within {within} s\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False


def spawned(command: list[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A module of ours as a process with a folder of its own to work in."""
    with log.open("wb") as sink:
        return subprocess.Popen([sys.executable, "-m", *command], stdout=sink, stderr=sink, cwd=folder)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    ports = free_ports(ENGINES)
    options = ["--model", "tiny", "--served-model-name", "m", "--host", "127.0.0.1"]
    with contextlib.ExitStack() as stack:
        for port in ports:
            command = ["sheaf_engine.emulator", *options, f"--profile={folder / 'profile.json'}", "--port", str(port)]
            stack.callback(stop, spawned(command, folder / f"{port}.log", folder))
        for port in ports:
            await_answer(f"http://127.0.0.1:{port}/health")
        yield ports


@pytest.fixture
def config(engines: list[int], tmp_path: Path) -> dict[str, Any]:
    (port,) = free_ports(1)
    declared = {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"}}
    pods = [
        {"name": f"m-{place}", "uid": "u", "model": "m", "engineUrl": f"http://127.0.0.1:{engine}", "ready": True}
        for place, engine in enumerate(engines)
    ]
    fleet = {"version": 1, "models": [{**declared, "spec": {"source": "hf://org/base"}}], "pods": pods}
    (tmp_path / "fleet.json").write_text(json.dumps(fleet))
    return {"listen": f"127.0.0.1:{port}", "fleetFile": str(tmp_path / "fleet.json"), "workers": WORKERS}


def started(config: dict[str, Any], folder: Path) -> Gateway:
    (folder / "gateway.json").write_text(json.dumps(config))
    command = ["sheaf_gateway", "--config", str(folder / "gateway.json")]
    return Gateway(
        spawned(command, folder / "gateway.log", folder), f"http://{config['listen']}", folder / "gateway.log"
    )


@pytest.fixture
def gateway(config: dict[str, Any], tmp_path: Path) -> Iterator[Gateway]:
    made = started(config, tmp_path)
    try:
        made.wait("readiness", made.ready)
        yield made
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(60) == 0
    finally:
        stop(made.process)
    assert "Traceback" not in made.log.read_text()


def await_answer(url: str) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} never answered")


def body(tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "once upon a time " * 20, "max_tokens": tokens, "ignore_eos": True, **more}


@dataclass
class Load:
    """Clients that ask one request after the other, and what became of each."""

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    warm: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, *, keep: bool) -> None:
        async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_keepalive_connections=int(keep))) as client:
            while not self.stop.is_set():
                began = time.monotonic()
                self.outcomes[await self.one(client)] += 1
                self.longest = max(self.longest, time.monotonic() - began)
                if self.outcomes["200"] >= 3 * CLIENTS:
                    self.warm.set()

    async def one(self, client: httpx.AsyncClient) -> str:
        try:
            answer = await client.post(f"{self.url}/v1/completions", json=body())
        except httpx.TimeoutException:
            return "hung"
        except httpx.TransportError:
            return "broken"
        return str(answer.status_code)


@contextlib.asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    """Clients that have begun to get answers, half of them over kept connections."""
    made = Load(url)
    tasks = [asyncio.create_task(made.client(keep=place % 2 == 0)) for place in range(CLIENTS)]
    try:
        await asyncio.wait_for(made.warm.wait(), 60)
        yield made
    finally:
        made.stop.set()
        await asyncio.gather(*tasks)


async def test_a_worker_that_is_killed_breaks_only_its_own_connections(gateway: Gateway) -> None:
    kills = 3
    async with load(gateway.url) as running:
        before = Counter(running.outcomes)
        for _ in range(kills):
            pid, restarts = gateway.pids()[0], len(gateway.events("listening"))
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(
                gateway.wait, "a new worker", lambda n=restarts: len(gateway.events("listening")) > n
            )
            await asyncio.sleep(0.5)
    assert set(before) == {"200"}
    assert set(running.outcomes) <= {"200", "broken"}, "no request hangs, none is refused"
    assert running.outcomes["broken"] <= kills * CLIENTS, "at most what the dead worker had under way"
    assert running.outcomes["200"] > before["200"]
    assert running.longest < 10.0


async def test_a_roll_loses_no_request(gateway: Gateway) -> None:
    before = gateway.pids()
    async with load(gateway.url) as running:
        gateway.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(gateway.wait, "the roll", lambda: gateway.events("workers_rolled"))
        await asyncio.sleep(0.5)
    assert set(running.outcomes) == {"200"}
    assert not set(before.values()) & set(gateway.pids().values())
    assert gateway.ready()


async def test_streams_under_way_end_well_when_their_worker_is_replaced(gateway: Gateway) -> None:
    async def stream(client: httpx.AsyncClient) -> bytes:
        async with client.stream("POST", f"{gateway.url}/v1/completions", json=body(600, stream=True)) as answer:
            return await answer.aread()

    async with httpx.AsyncClient(timeout=60) as client:
        streams = [asyncio.create_task(stream(client)) for _ in range(8)]
        await asyncio.sleep(0.5)
        gateway.process.send_signal(signal.SIGHUP)
        answers = await asyncio.gather(*streams)
    assert all(answer.rstrip().endswith(b"data: [DONE]") for answer in answers)
    await asyncio.to_thread(gateway.wait, "the roll", lambda: gateway.events("workers_rolled"))


def test_whichever_worker_is_asked_answers_for_all(gateway: Gateway) -> None:
    def get(path: str) -> httpx.Response:
        return httpx.get(f"{gateway.url}{path}", timeout=10)

    for place in range(20):
        headers = {"x-request-id": f"mine-{place}"}
        assert httpx.post(f"{gateway.url}/v1/completions", json=body(), headers=headers, timeout=20).status_code == 200
    for place in range(20):
        assert get(f"/sheaf/v1/decisions/mine-{place}").json()["request_id"] == f"mine-{place}"
    assert get("/sheaf/v1/decisions/nobody").status_code == 404
    gateway.wait("gossip", lambda: set(peers(get("/metrics").text)) == {("0", "1"), ("1", "1")})
    text = get("/metrics").text
    counts = re.findall(r'sheaf_gateway_requests_total\{served="m",status="200",worker="(\d)"\} (\d+)', text)
    assert sum(int(count) for _, count in counts) == 20
    assert len(re.findall(r"^# TYPE sheaf_gateway_requests_total ", text, re.MULTILINE)) == 1
    (demand,) = get("/sheaf/v1/demand").json()["models"]
    assert (demand["readyPods"], demand["running"]) == (ENGINES, 0)


def peers(text: str) -> list[tuple[str, str]]:
    return re.findall(r'sheaf_gateway_gossip_peers\{worker="(\d)"\} (\d)', text)


async def test_everybody_knows_of_everybodys_requests(gateway: Gateway) -> None:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=40)) as client:
        asked = [asyncio.create_task(client.post(f"{gateway.url}/v1/completions", json=body(400))) for _ in range(16)]
        await asyncio.sleep(0.7)
        (demand,) = (await client.get(f"{gateway.url}/sheaf/v1/demand")).json()["models"]
        pods = (await client.get(f"{gateway.url}/sheaf/v1/objects/pods")).json()["items"]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert demand["running"] == 16
    assert sum(pod["inFlight"] for pod in pods) == 16
    assert max(pod["inFlight"] for pod in pods) <= 10, "only what comes within milliseconds is decided apart"


def test_a_port_in_use_is_one_clear_line_and_exit_1(gateway: Gateway, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "precious").write_text("keep")
    command = [sys.executable, "-m", "sheaf_gateway", "--config", str(tmp_path / "gateway.json")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=folder)
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rb"sheaf-gateway: cannot listen on [^\n]*: the port is in use\n", done.stderr)
    assert (folder / "precious").read_text() == "keep"


def test_what_one_worker_refuses_is_said_once(config: dict[str, Any], tmp_path: Path) -> None:
    made = started({**config, "fleetFile": str(tmp_path / "none" / "fleet.json")}, tmp_path)
    assert made.process.wait(60) == 1
    said = [line for line in made.log.read_text().splitlines() if not line.startswith("{")]
    assert len(said) == 1
    assert "does not exist" in said[0]


def test_workers_end_when_their_supervisor_is_killed(config: dict[str, Any], tmp_path: Path) -> None:
    made = started(config, tmp_path)
    try:
        made.wait("readiness", made.ready)
    finally:
        made.process.kill()
        made.process.wait()
    ends = time.monotonic() + 20
    while made.ready():
        assert time.monotonic() < ends, "workers serve on without a supervisor"
        time.sleep(0.1)
