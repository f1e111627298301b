"""Gateways are found and asked over real sockets, and the loop scales by their answers until it may not act."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from operator_api import FakeApi, fake_api
from operator_autoscaling import SPEED
from operator_world import make_model, make_pod, make_policy
from sheaf_operator.cluster.gateways import GatewayError, Gateways
from sheaf_operator.cluster.kubernetes import gateway_calls
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.gateway_calls import GatewayCalls
from sheaf_operator.handlers import autoscaling
from sheaf_operator.handlers.autoscaling import Autoscaling
from sheaf_operator.planning import FleetIndex, Key

TOKEN = "the-token-of-the-agents"
KEY = Key("Model", "m")
NOW = 1_900_000_000.0


@dataclass
class FakeGateway:
    """One gateway's management API: `running` requests of the Model m, or once what `says` has for a path."""

    running: int = 3
    broken: bool = False
    says: dict[str, web.Response] = field(default_factory=dict)
    shown: list[str | None] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.shown.append(request.headers.get("Authorization"))
        self.asked.set()
        if self.broken:
            return web.Response(status=503)
        if request.path in self.says:
            return self.says.pop(request.path)
        if request.path == "/sheaf/v1/demand":
            return web.json_response({"models": [{"model": "m", "running": self.running, "arrivalRate": 1.0}]})
        return web.json_response({"slos": []})


@asynccontextmanager
async def gateway() -> AsyncIterator[FakeGateway]:
    fake, app = FakeGateway(), web.Application()
    app.router.add_get("/{path:.*}", fake.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.port = runner.addresses[0][1]
    try:
        yield fake
    finally:
        await runner.cleanup()


@asynccontextmanager
async def calls(
    api: FakeApi, token: Path, port: int, clock: Callable[[], float] = time.time
) -> AsyncIterator[GatewayCalls]:
    server = ApiServer(api.configuration(), "test")
    try:
        async with GatewayCalls(server, token, port, clock) as made:
            yield made
    finally:
        await server.close()


def put_gateway(api: FakeApi, name: str, *, ready: bool = True, phase: str = "Running", ends: str = "") -> None:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    labels = {"app.kubernetes.io/name": "sheaf-gateway"}
    status = {"podIP": "127.0.0.1", "phase": phase, "conditions": conditions}
    metadata = {"labels": labels} | ({"deletionTimestamp": ends} if ends else {})
    api.put("Pod", name, metadata=metadata, status=status)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


async def test_gateway_pods_are_listed_and_asked_with_the_token_of_this_moment(token: Path) -> None:
    async with gateway() as fake, fake_api() as api, calls(api, token, fake.port) as asking:
        put_gateway(api, "one")
        put_gateway(api, "starting", ready=False)
        put_gateway(api, "over", phase="Failed")
        found = await asking.find()
        assert list(found.values()) == [f"http://127.0.0.1:{fake.port}"]
        reports = await Gateways(asking.find, asking.fetch, lambda: 0.0).ask()
        assert next(iter(reports.values())).demands["m"].running == 3
        await asyncio.to_thread(token.write_text, "another-token")
        await asking.fetch(f"{found.popitem()[1]}/sheaf/v1/slos")
        assert fake.shown == [f"Bearer {TOKEN}"] * 2 + ["Bearer another-token"]


async def test_a_gateway_that_nobody_ends_is_waited_for_no_longer_than_its_grace(token: Path) -> None:
    ends = datetime.fromtimestamp(NOW, UTC).isoformat()
    now = NOW
    async with fake_api() as api, calls(api, token, 1, lambda: now) as asking:
        put_gateway(api, "lost", ready=False, ends=ends)
        gateways = Gateways(asking.find, asking.fetch, lambda: now)
        assert list((await gateways.ask()).values()) == [None]
        now = NOW + 11
        assert await gateways.ask() == {}


async def test_what_is_no_answer_is_an_error_that_says_so(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as fake, fake_api() as api, calls(api, token, fake.port) as asking:
        url = f"http://127.0.0.1:{fake.port}/sheaf/v1/demand"
        elsewhere = {"Location": "http://127.0.0.1:1/"}
        for answer, told in (
            (web.Response(status=401), "answered 401"),
            (web.Response(status=302, headers=elsewhere), "answered 302"),
            (web.Response(text="<html>"), "JSON"),
        ):
            fake.says["/sheaf/v1/demand"] = answer
            with pytest.raises(GatewayError, match=told):
                await asking.fetch(url)
        monkeypatch.setattr(gateway_calls, "LARGEST", 10)
        with pytest.raises(GatewayError, match="more than 10 bytes"):
            await asking.fetch(url)
        with pytest.raises(GatewayError, match="does not answer"):
            await asking.fetch("http://127.0.0.1:1/")
        await asyncio.to_thread(token.unlink)
        with pytest.raises(GatewayError, match="does not answer"):
            await asking.fetch(url)
        api.refuse["list", "pods"] = (403, {"reason": "Forbidden", "message": "may not"}, {})
        with pytest.raises(GatewayError, match="cannot be listed"):
            await asking.find()


def fleet() -> FleetIndex:
    index = FleetIndex()
    model = make_model(autoscalingPolicyRef={"name": "steady"})
    index.upsert(model)
    index.upsert(make_policy(signal="Concurrency", target=10, maxReplicas=20, scaleDown={"stabilization": "0s"}))
    index.upsert(make_pod(model, "one"))
    return index


@dataclass
class Running:
    """The loop over one gateway, with what it marked."""

    loop: Autoscaling
    fake: FakeGateway
    index: FleetIndex
    marked: set[Key]
    acts: bool = True

    async def until(self, replicas: int) -> None:
        async with asyncio.timeout(5):
            while (found := self.index.scaling("m")) is None or found.replicas != replicas:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaling, "PERIOD", 0.01)
    monkeypatch.setattr(autoscaling, "PERIOD_ASLEEP", 0.01)


@asynccontextmanager
async def looping(token: Path) -> AsyncIterator[Running]:
    ticks = asyncio.get_running_loop().time
    async with gateway() as fake, fake_api() as api, calls(api, token, fake.port) as asking:
        put_gateway(api, "gateway")
        index, marked = fleet(), set[Key]()
        gateways = Gateways(asking.find, asking.fetch, ticks)
        loop = Autoscaling(index, gateways, lambda _: SPEED, ticks, ticks, lambda: running.acts, marked.update)
        running = Running(loop, fake, index, marked)
        task = asyncio.create_task(loop.run())
        try:
            yield running
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.usefixtures("quick")
async def test_the_loop_follows_demand_up_and_tells_what_to_plan(token: Path) -> None:
    async with looping(token) as running:
        running.fake.running = 45
        await running.until(5)
        assert KEY in running.marked


@pytest.mark.usefixtures("quick")
async def test_a_silent_gateway_takes_no_replica_away(token: Path) -> None:
    async with looping(token) as running:
        running.fake.running = 45
        await running.until(5)
        running.fake.broken = True
        running.marked.clear()
        await asyncio.sleep(0.2)
        assert running.index.scaling("m").replicas == 5
        assert not running.marked


@pytest.mark.usefixtures("quick")
async def test_one_that_may_not_act_asks_nobody_and_begins_anew_when_it_may(token: Path) -> None:
    async with looping(token) as running:
        await running.until(1)
        running.acts = False
        await asyncio.sleep(0.1)
        assert running.loop.standings() == []
        running.fake.asked.clear()
        await asyncio.sleep(0.1)
        assert not running.fake.asked.is_set()
        running.fake.running, running.acts = 30, True
        await running.until(3)


@pytest.mark.usefixtures("quick")
async def test_a_surprise_does_not_end_the_loop(token: Path) -> None:
    async with looping(token) as running:
        await running.until(1)
        speed_of, running.loop.scaler = running.loop.speed_of, None
        running.loop.speed_of = _surprise
        await asyncio.sleep(0.1)
        running.fake.running, running.loop.speed_of, running.loop.scaler = 30, speed_of, None
        await running.until(3)


def _surprise(_: object) -> None:
    raise RuntimeError("a surprise")
