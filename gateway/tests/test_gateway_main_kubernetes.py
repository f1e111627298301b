"""A whole gateway beside an API server on loopback: it serves while that is away, starts cold, and leaves in order."""

import asyncio
import json
import os

import pytest
from gateway_fixtures import World, adapter, ask, chat, model  # noqa: F401
from gateway_kube_server import KubeServer, kubeconfig, pod
from gateway_raw_servers import TOKEN, Agent, Engine
from sheaf_gateway.config import GatewayConfig
from sheaf_gateway.fleet import following, persist
from sheaf_gateway.fleet.kubernetes import backoff
from sheaf_gateway.main import start


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.05)
    monkeypatch.setattr(persist, "INTERVAL_S", 0.05)


class Cluster(World):
    """An API server, engines with their agents, and gateways that may come and go."""

    async def settled(self) -> None:
        store = self.gateway.store
        await self.until(lambda: store.known and len(store.states) == len(self.agents))

    @property
    def file(self):
        return self.folder / "fleet.json"


@pytest.fixture
async def cluster(tmp_path, closing):
    server = KubeServer()
    await server.open()
    closing.push_async_callback(server.close)
    (tmp_path / "token").write_text(TOKEN)
    made = Cluster(tmp_path, [], [], {})
    made.server = server
    server.put("models", model("base"))
    server.put("adapters", adapter("pirate", "base"))
    for place in range(2):
        engine = Engine(f"base-{place}", "base")
        agent = Agent(engine)
        for each in (engine, agent):
            await each.open()
            closing.push_async_callback(each.close)
        made.engines.append(engine)
        made.agents.append(agent)
        server.put("pods", pod(engine.name, "base", ports={"engine": engine.port, "agent": agent.port}))
    return made


@pytest.fixture
def run(cluster, closing, tmp_path):
    """`await run(**config)`: one more gateway."""

    async def begin(**config):
        files = {"fleetFile": cluster.file, "agentTokenFile": tmp_path / "token"}
        where = {"kubernetes": {"kubeconfig": kubeconfig(tmp_path, cluster.server.url)}}
        cluster.gateway = await start(
            GatewayConfig.model_validate({"listen": "127.0.0.1:0", **files, **where, **config})
        )
        closing.push_async_callback(cluster.gateway.stop, 0.05)
        return cluster.gateway

    return begin


async def answered(ask, cluster, served="base"):  # noqa: F811
    status, _, body = await ask(cluster, "POST", "/v1/chat/completions", chat(served))
    return status, json.loads(body)


async def test_what_is_declared_in_the_cluster_is_served(cluster, run, ask):  # noqa: F811
    await run()
    await cluster.settled()
    assert (await answered(ask, cluster))[0] == 200
    assert (await answered(ask, cluster, "pirate"))[1]["model"] == "pirate"
    status, _, body = await ask(cluster, "GET", "/sheaf/v1/objects/pods")
    assert (status, [item["phase"] for item in json.loads(body)["items"]]) == (200, ["Ready", "Ready"])
    _, _, body = await ask(cluster, "GET", "/sheaf/v1/objects/adapters")
    assert [item["metadata"]["name"] for item in json.loads(body)["items"]] == ["pirate"]


async def test_no_request_fails_while_the_api_server_is_away(cluster, run, ask):  # noqa: F811
    await run()
    await cluster.settled()
    await cluster.server.close()
    loop = asyncio.get_running_loop()
    ends, statuses = loop.time() + 1.0, []
    while loop.time() < ends:
        statuses += [status for status, _ in await asyncio.gather(*(answered(ask, cluster) for _ in range(5)))]
    assert set(statuses) == {200}
    assert (await ask(cluster, "GET", "/readyz"))[0] == 200
    _, _, metrics = await ask(cluster, "GET", "/metrics")
    assert b'sheaf_gateway_watch_connected{kind="pods"} 0.0' in metrics
    cluster.server.put("models", model("later"))
    await cluster.server.open()
    await cluster.until(lambda: "later" in cluster.gateway.store.fleet.served)


async def test_a_gateway_starts_cold_from_what_another_one_left(cluster, run, ask):  # noqa: F811
    first = await run()
    await cluster.settled()
    await first.stop(0.05)
    await cluster.server.close()
    await run()
    assert (await ask(cluster, "GET", "/readyz"))[0] == 200
    assert (await answered(ask, cluster, "pirate"))[0] == 200


async def test_pods_that_are_gone_since_are_found_out_before_the_first_request(cluster, run, ask):  # noqa: F811
    first = await run()
    await cluster.settled()
    await first.stop(0.05)
    await cluster.server.close()
    await cluster.engines[0].close()
    await cluster.agents[0].close()
    await run()
    for _ in range(8):
        status, headers, _ = await ask(cluster, "POST", "/v1/chat/completions", chat())
        assert (status, headers["x-sheaf-pod"]) == (200, "base-1")
    assert [p.ready for p in cluster.gateway.store.fleet.pods_of("base")] == [False, True]
    assert not cluster.gateway.inference.metrics.retries._metrics


async def test_an_agent_that_refuses_the_gateway_still_shows_that_its_pod_is_there(cluster, run, tmp_path):
    first = await run()
    await cluster.settled()
    await first.stop(0.05)
    (tmp_path / "token").write_text("wrong")
    await cluster.engines[0].close()
    await cluster.agents[0].close()
    await run()
    assert [p.ready for p in cluster.gateway.store.fleet.pods_of("base")] == [False, True]


async def test_a_pod_that_dies_while_the_api_server_is_away_is_avoided_soon(cluster, run):
    await run()
    await cluster.settled()
    await cluster.server.close()
    await cluster.engines[0].close()
    await cluster.agents[0].close()
    await cluster.until(lambda: cluster.gateway.store.fleet.ready["base"] == 1)
    assert cluster.gateway.store.suspects == {"base-0"}


async def test_nothing_is_served_before_a_first_view_and_that_is_said(cluster, run, ask):  # noqa: F811
    await cluster.server.close()
    await run()
    assert (await ask(cluster, "GET", "/readyz"))[0] == 503
    await cluster.server.open()
    await cluster.settled()
    assert (await ask(cluster, "GET", "/readyz"))[0] == 200


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"version": "x"}', b'{"pods": 7}', b"\x00" * 100])
async def test_a_broken_snapshot_is_refused_with_a_line(cluster, run, logged, garbage):
    cluster.file.write_bytes(garbage)
    await run()
    assert any(line["event"] == "fleet_snapshot_refused" for line in logged)
    await cluster.settled()
    await cluster.until(lambda: b"pirate" in cluster.file.read_bytes())


async def test_the_snapshot_is_written_whole_privately_and_only_when_something_changed(cluster, run):
    await run()
    await cluster.settled()
    await cluster.until(cluster.file.exists)
    await asyncio.sleep(0.2)
    before = cluster.file.stat()
    assert before.st_mode & 0o777 == 0o600
    cluster.agents[0].load = {"running": 9}
    cluster.agents[0].changed()
    await asyncio.sleep(0.2)
    assert cluster.file.stat().st_mtime_ns == before.st_mtime_ns
    cluster.server.drop("adapters", "pirate")
    await cluster.until(lambda: b"pirate" not in cluster.file.read_bytes())
    assert json.loads(cluster.file.read_bytes())["models"][0]["metadata"]["name"] == "base"


async def test_a_disk_that_refuses_is_told_of_once_and_tried_again(cluster, run, logged, ask):  # noqa: F811
    (cluster.folder / f".fleet.json.{os.getpid()}.new").mkdir()
    await run()
    await cluster.settled()
    await asyncio.sleep(0.3)
    assert [line["event"] for line in logged].count("fleet_snapshot_not_written") == 1
    assert (await answered(ask, cluster))[0] == 200
    (cluster.folder / f".fleet.json.{os.getpid()}.new").rmdir()
    await cluster.until(cluster.file.exists)


async def test_a_lame_duck_serves_on_but_is_not_ready_and_sends_its_clients_elsewhere(cluster, run, ask):  # noqa: F811
    gateway = await run(times={"lameDuck": "400ms"})
    await cluster.settled()
    for engine in cluster.engines:
        engine.tokens, engine.pause = 30, 0.02
    streams = [asyncio.create_task(ask(cluster, "POST", "/v1/chat/completions", chat(stream=True))) for _ in range(4)]
    await cluster.until(lambda: sum(len(engine.seen) for engine in cluster.engines) == 4)
    ending = asyncio.create_task(gateway.stop())
    await asyncio.sleep(0.05)
    assert (await ask(cluster, "GET", "/readyz"))[0] == 503
    assert (await ask(cluster, "GET", "/healthz"))[0] == 200
    for engine in cluster.engines:
        engine.pause = 0.02
    late = [
        asyncio.create_task(
            ask(cluster, "POST", "/v1/chat/completions", chat(stream=True), {"connection": "keep-alive"})
        )
        for _ in range(4)
    ]
    await ending
    for status, headers, body in await asyncio.gather(*streams, *late):
        assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)
        assert headers["connection"] == "close"
    with pytest.raises(ConnectionRefusedError):
        await ask(cluster, "GET", "/healthz")


async def test_several_gateways_share_nothing_and_see_the_same(cluster, run, tmp_path):
    first = await run()
    second = await run(fleetFile=tmp_path / "other.json")
    cluster.server.put("models", model("later"))
    for gateway in (first, second):
        await cluster.until(
            lambda gateway=gateway: "later" in gateway.store.fleet.served and len(gateway.store.states) == 2
        )


async def test_a_part_that_fails_by_itself_is_taken_up_again(cluster, run, logged, monkeypatch):
    monkeypatch.setattr(following, "AGAIN_S", 0.01)
    failures = iter([RuntimeError("a bug")])
    write = persist.SnapshotFile.write

    async def fails_once(self):
        for failure in failures:
            raise failure
        await write(self)

    monkeypatch.setattr(persist.SnapshotFile, "write", fails_once)
    await run()
    await cluster.settled()
    await cluster.until(cluster.file.exists)
    assert [line["part"] for line in logged if line["event"] == "following_failed"] == ["snapshot"]
