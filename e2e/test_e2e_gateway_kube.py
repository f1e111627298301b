"""Real gateways on a real API server, with the rights of their own service account and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from gateway_in_cluster import (
    GROUP,
    ROLE,
    Door,
    Load,
    account,
    engine_pod,
    is_ready,
    kubeconfig,
    programs,
    ready_status,
    server_of,
    start_engine,
    start_gateway,
    until,
)
from tiny_models import tiny_llama

AWAY_S = float(os.environ.get("SHEAF_E2E_AWAY_S", "20"))
CRDS = sorted((Path(__file__).parents[1] / "crds").glob("*.yaml"))


@pytest.fixture
def space(kubectl):
    """A namespace of its own, with Sheaf's kinds known."""
    known = {file: f"{file.stem.removeprefix('sheaf.dev_')}.sheaf.dev" for file in CRDS}
    for file, name in known.items():
        if kubectl.get("crd", name) is None:
            kubectl("apply", "--server-side", "-f", file)
    kubectl("wait", "--for=condition=Established", *(f"crd/{name}" for name in known.values()))
    return kubectl


@pytest.fixture
async def made(tmp_path):
    async with programs(tmp_path) as made:
        yield made


@pytest.fixture
async def door(space):
    door = Door(server_of(space.kubeconfig))
    await door.open()
    yield door
    await door.shut()


@pytest.fixture
def config(space, door, tmp_path):
    token = account(space, "gateway", ROLE)
    return kubeconfig(space.kubeconfig, tmp_path, door, space.namespace, token)


@pytest.fixture
async def fleet(space, made):
    """A Model with two engines; their processes by pod."""
    space.apply({"apiVersion": GROUP, "kind": "Model", "metadata": {"name": "tiny"}, "spec": {
        "source": "hf://org/tiny", "engine": {"name": "emulator"}, "replicas": 2}})  # fmt: skip
    engines = {}
    for name in ("tiny-0", "tiny-1"):
        ports, *engines[name] = await start_engine(made, name, "tiny", Path(tiny_llama()))
        space.apply(engine_pod(name, "tiny", ports))
        space.patch("pod", name, ready_status(), subresource="status")
    return engines


def declare_adapter(space, name: str) -> None:
    spec = {"modelRef": {"name": "tiny"}, "source": f"hf://org/{name}"}
    space.apply({"apiVersion": GROUP, "kind": "Adapter", "metadata": {"name": name}, "spec": spec})


async def names(gateway) -> set[str]:
    async with httpx.AsyncClient() as client:
        return {card["id"] for card in (await client.get(f"{gateway.url}/v1/models")).json()["data"]}


async def ready_pods(gateway) -> set[str]:
    async with httpx.AsyncClient() as client:
        items = (await client.get(f"{gateway.url}/sheaf/v1/objects/pods")).json().get("items", [])
        return {item["name"] for item in items if item["ready"] and not item["draining"]}


async def test_what_is_declared_is_served_and_shown_with_list_and_watch_alone(space, fleet, made, config):
    declare_adapter(space, "pirate")
    gateway = await start_gateway(made, "gateway", config)
    await until("ready", lambda: is_ready(gateway))
    await until("both pods", lambda: _equals(ready_pods(gateway), {"tiny-0", "tiny-1"}))
    assert await names(gateway) == {"tiny", "pirate"}
    load = Load(lambda: gateway.url, "tiny")
    running = asyncio.create_task(load.run())
    await until("answers", lambda: load.done > 20)
    space.patch("pod", "tiny-0", ready_status(ready=False), subresource="status")
    await until("one pod", lambda: _equals(ready_pods(gateway), {"tiny-1"}), within=3)
    space.delete("pod", "tiny-0")
    load.stop()
    await running
    assert load.failed == []
    space.delete("adapters.sheaf.dev", "pirate")
    await until("the adapter is gone", lambda: _equals(names(gateway), {"tiny"}), within=3)
    for kind, word in (("models", "tiny"), ("pods", "tiny-1")):
        shown = await asyncio.to_thread(_sheaf, "get", kind, "--url", gateway.url)
        assert word in shown
    assert await gateway.end() == 0


async def test_no_request_fails_while_the_api_server_is_away_and_gateways_start_cold(space, fleet, made, config, door):
    gateway = await start_gateway(made, "gateway", config)
    await until("ready", lambda: is_ready(gateway))
    load = Load(lambda: gateway.url, "tiny")
    running = asyncio.create_task(load.run())
    await until("answers", lambda: load.done > 4)
    await until("a snapshot", (made.folder / "gateway.fleet.json").exists)
    await door.shut()
    declare_adapter(space, "later")
    await asyncio.sleep(AWAY_S / 2)
    (made.folder / "cold.fleet.json").write_bytes((made.folder / "gateway.fleet.json").read_bytes())
    cold = await start_gateway(made, "cold", config)
    assert await is_ready(cold)
    other = Load(lambda: cold.url, "tiny")
    also = asyncio.create_task(other.run())
    await asyncio.sleep(AWAY_S / 2)
    assert await is_ready(gateway)
    said = [line for line in gateway.lines() if line["event"] == "fleet_watch"]
    assert [line["state"] for line in said] == ["away"]
    await door.open()
    for each in (gateway, cold):
        await until("what was declared meanwhile", lambda each=each: _equals(names(each), {"tiny", "later"}), within=15)
    for each in (load, other):
        each.stop()
    await asyncio.gather(running, also)
    print(f"API server away for {AWAY_S:g} s: {load.done} streams of the running gateway, {other.done} of the cold one")
    assert load.failed == other.failed == []
    assert load.done > 20
    assert other.done > 10


async def test_a_cold_gateway_does_without_pods_that_are_gone(space, fleet, made, config, door):
    gateway = await start_gateway(made, "gateway", config)
    await until("both pods", lambda: _equals(ready_pods(gateway), {"tiny-0", "tiny-1"}))
    await gateway.end()
    await door.shut()
    for process in fleet["tiny-0"]:
        await process.end(signal.SIGKILL)
    (made.folder / "cold.fleet.json").write_bytes((made.folder / "gateway.fleet.json").read_bytes())
    cold = await start_gateway(made, "cold", config)
    load = Load(lambda: cold.url, "tiny")
    running = asyncio.create_task(load.run())
    await until("answers", lambda: load.done > 50)
    load.stop()
    await running
    assert load.failed == []
    assert await ready_pods(cold) == {"tiny-1"}


async def test_a_gateway_that_leaves_fails_nobody(space, fleet, made, config):
    first = await start_gateway(made, "first", config, lameDuck="2s", shutdown="20s")
    second = await start_gateway(made, "second", config)
    for each in (first, second):
        await until("ready", lambda each=each: is_ready(each))
    target = first.url
    load = Load(lambda: target, "tiny", lanes=8, tokens=60)
    running = asyncio.create_task(load.run())
    await until("answers", lambda: load.done > 8)
    ending = asyncio.create_task(first.end())
    await until("not ready", lambda: _equals(is_ready(first), wanted=False), within=1.5)
    target = second.url
    assert await ending == 0
    await until("answers of the other", lambda: load.done > 60)
    load.stop()
    await running
    assert load.failed == []
    assert "Traceback" not in first.log.read_text()


async def test_a_missing_right_is_named(space, made, tmp_path, door):
    token = account(space, "pauper", ROLE[:1])
    config = kubeconfig(space.kubeconfig, tmp_path, door, space.namespace, token)
    gateway = await start_gateway(made, "gateway", config)
    wanted = f"Role in namespace {space.namespace} must allow list and watch of models.sheaf.dev"
    await until("the log names it", lambda: any(wanted in str(line.get("reason")) for line in gateway.lines()))
    assert not await is_ready(gateway)
    assert await gateway.end() == 0


async def _equals(found, wanted) -> bool:
    return await found == wanted


def _sheaf(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sheaf.cli", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
