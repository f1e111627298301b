"""Two workers of one port in one process, on real sockets: they know of each other's requests and answer for each other."""

import asyncio
import json
import re
import socket
from types import SimpleNamespace

import pytest
from gateway_fixtures import ask, chat, make_world, parse  # noqa: F401
from gateway_raw_servers import TOKEN
from prometheus_client import generate_latest
from sheaf_gateway.admission.attainment import Attainment, Bound, Outcome, Tally, figures, summed
from sheaf_gateway.api import gathering
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.config import ConfigError, GatewayConfig
from sheaf_gateway.main import start
from sheaf_gateway.peers import company
from sheaf_gateway.workers import asking
from sheaf_gateway.workers.asking import Colleagues
from sheaf_gateway.workers.place import Channel, Place
from sheaf_gateway.workers.post import posted
from sheaf_gateway.workers.supervisor import bound


@pytest.fixture
async def workers(make_world, closing, tmp_path, monkeypatch):  # noqa: F811
    """A world whose gateway is joined by two workers of another port, and the control channels of these."""
    monkeypatch.setattr(company, "BEAT_S", 0.05)
    world = await make_world(pods={"base": 2})
    room = tmp_path / "room"
    room.mkdir()
    sockets = bound("127.0.0.1:0", 2)
    for sock in sockets:
        closing.callback(sock.close)
    files = {"fleetFile": tmp_path / "fleet.json", "agentTokenFile": tmp_path / "token"}
    made = []
    for index in range(2):
        place = Place(index, 2, room, tuple(sock.fileno() for sock in sockets), -1)
        monkeypatch.setattr(Place, "name", property(lambda self: f"w{self.index}"))
        gateway = await start(GatewayConfig.model_validate({"listen": "127.0.0.1:0", **files}), place)
        closing.push_async_callback(gateway.stop, 0.05)
        made.append(gateway)
    await world.until(lambda: all(worker.store.known and worker._company.hearing.peers for worker in made))
    world.workers, world.sockets = made, sockets
    return world


async def get(port: int, path: str):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    return parse(raw)


async def serve_one(worker, request_id: str) -> None:
    """One request that this very worker serves, whichever of the two the kernel would have chosen."""
    body = json.dumps(chat()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: {request_id}\r\n"
    raw = head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    before = len(worker.inference.records)
    for _ in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
        writer.write(raw)
        status, _, _ = parse(await reader.read())
        writer.close()
        await writer.wait_closed()
        assert status == 200
        if len(worker.inference.records) > before:
            return
    raise AssertionError("the kernel never chose this worker")


async def test_a_request_of_one_worker_stands_in_the_others_ledgers(workers):
    one, other = workers.workers
    for engine in workers.engines:
        engine.pause = 0.3
    asked = asyncio.create_task(get_chat(one.port))
    await workers.until(lambda: sum(ledger.told for w in (one, other) for ledger in w.router.ledgers.values()) == 1)
    assert sorted(sum(ledger.running for ledger in w.router.ledgers.values()) for w in (one, other)) == [1, 1]
    await asked
    await workers.until(lambda: not any(ledger.running for w in (one, other) for ledger in w.router.ledgers.values()))


async def get_chat(port: int) -> int:
    body = json.dumps(chat()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
    writer.write(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    status, _, _ = parse(await reader.read())
    writer.close()
    await writer.wait_closed()
    return status


async def test_a_decision_is_found_whoever_made_it(workers):
    one, other = workers.workers
    await serve_one(one, "by-one")
    await serve_one(other, "by-other")
    for worker in (one, other):
        for request_id in ("by-one", "by-other"):
            record = json.loads(await gathering.decision(worker.inference, request_id))
            assert (record["request_id"], record["status"]) == (request_id, 200)
        assert await gathering.decision(worker.inference, "nobody") is None


async def test_metrics_of_all_workers_stand_side_by_side(workers):
    one, other = workers.workers
    await serve_one(one, "a")
    text = (await gathering.metrics(one.inference)).decode()
    families = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
    assert len(families) == len(set(families))
    series = [line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(series) == len(set(series))
    assert {'worker="0"', 'worker="1"'} == set(re.findall(r'worker="\d"', text))
    await other._colleagues.close()
    assert 'worker="1"' not in (await gathering.metrics(one.inference)).decode()
    assert 'worker="1"' not in (await gathering.metrics(other.inference)).decode()


async def test_demand_and_promises_are_those_of_all(workers):
    one, _ = workers.workers
    found = await gathering.demand(one.inference)
    assert [entry["model"] for entry in found["models"]] == ["base"]
    assert found["models"][0]["readyPods"] == 2
    assert (await gathering.slos(one.inference))["slos"] == []
    for path in ("/sheaf/v1/demand", "/sheaf/v1/slos", "/metrics"):
        assert (await get(one.port, path))[0] == 200


async def test_a_demand_that_lacks_a_worker_is_none(workers, tmp_path):
    one, other = workers.workers
    other._colleagues._answer = lambda _: b""
    with pytest.raises(ApiError, match="not known in full"):
        await gathering.demand(one.inference)
    await other._colleagues.close()
    (tmp_path / "room" / "dead.ask").touch()
    assert await gathering.demand(one.inference)


def test_demand_adds_up():
    one = {
        "model": "m",
        "running": 3,
        "arrivalRate": 9.0,
        "serviceS": 1.0,
        "slots": 8,
        "oldestWaitS": 2.0,
        "readyPods": 2,
    }
    two = {
        "model": "m",
        "running": 1,
        "arrivalRate": 1.0,
        "serviceS": 2.0,
        "slots": 7,
        "oldestWaitS": 3.0,
        "readyPods": 2,
    }
    (both,) = gathering.together([[one], [two]])
    assert both == {**one, "running": 4, "arrivalRate": 10.0, "serviceS": 1.1, "oldestWaitS": 3.0}
    idle = {**one, "arrivalRate": 0.0}
    assert gathering.together([[idle], []]) == [idle]
    quiet = [[{"model": "m", "quietS": since}] for since in (None, 7.0, 5.0)]
    assert gathering.together(quiet) == [{"model": "m", "quietS": 5.0}]
    assert gathering.together(quiet[:1]) == [{"model": "m", "quietS": None}]
    assert [entry["model"] for entry in gathering.together([[{"model": "b"}], [{"model": "a"}]])] == ["a", "b"]


def test_promises_are_summed_from_counts_and_not_from_percentiles():
    bounds = (Bound("ttft", 0.95, 1.0),)
    whole, halves = Attainment(bounds, 0.0), (Attainment(bounds, 0.0), Attainment(bounds, 0.0))
    for place in range(200):
        outcome = Outcome(ttft=0.01 * place)
        whole.answered(outcome, 1.0)
        halves[place % 3 == 0].answered(outcome, 1.0)
    whole.failed(1.0)
    halves[0].failed(1.0)
    both = summed([half.tally(300.0, 100.0) for half in halves])
    assert figures(both, bounds) == whole.window(300.0, 100.0)
    assert summed([both, Tally(1.0, requests=1)]) == both


async def test_readiness_waits_for_all_workers_and_no_longer(workers):
    one, _ = workers.workers
    assert (await get(one.port, "/readyz"))[0] == 503
    ours, theirs = socket.socketpair()
    place = Place(0, 2, workers.folder / "room", (one._place.listening), theirs.detach())
    stop = asyncio.Event()
    supervisor = await Channel.over(ours)
    async with posted(one, place, stop) as post:
        assert (await supervisor.hear()).word == "listening"
        assert (await supervisor.hear()).word == "ready"
        supervisor.say("whole")
        await workers.until(lambda: one.inference.whole)
        supervisor.say("adopt", (1, 7))
        await workers.until(lambda: one._server._adopted.keys() == {1})
        supervisor.say("adopt", ())
        await workers.until(lambda: not one._server._adopted)
        supervisor.say("retire")
        await stop.wait()
        assert post.retired
        stop.clear()
        await supervisor.close()
        await stop.wait()


async def test_a_worker_that_retires_answers_what_it_has_and_takes_no_more(workers):
    one, _ = workers.workers
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    await workers.until(lambda: sum(w._server.connections for w in workers.workers) == 1)
    (holder,) = [w for w in workers.workers if w._server.connections]
    retiring = asyncio.create_task(holder.retire())
    await asyncio.sleep(0.05)
    assert not retiring.done(), "an idle connection may be about to be used"
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    status, headers, _ = parse(await reader.read())
    assert (status, headers["connection"]) == (200, "close")
    await asyncio.wait_for(retiring, 1.0)
    writer.close()
    await writer.wait_closed()


async def test_a_colleague_that_hangs_or_fails_is_left_out(closing, tmp_path, monkeypatch, logged):
    monkeypatch.setattr(asking, "PATIENCE_S", 0.1)

    def fail(question: str) -> bytes:
        raise KeyError(question)

    bad, good = Colleagues(tmp_path, "bad", 1, fail), Colleagues(tmp_path, "good", 0, str.encode)
    for each in (bad, good):
        await each.begin()
        closing.push_async_callback(each.close)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    hanging = await asyncio.start_unix_server(hang, tmp_path / "hang.ask")
    (tmp_path / "dead.ask").touch()
    assert await good.ask("who") == [b""]
    assert await bad.ask("who") == [b"who"]
    for asker in (good, bad):
        with pytest.raises(TimeoutError, match="does not say"):
            await asker.ask("who", all_of_them=True)
    assert "colleague_not_answered" in [event["event"] for event in logged]
    hanging.close()
    reader, writer = await asyncio.open_unix_connection(good._path)
    writer.write(b"x" * 10_000)
    assert await reader.read() == b""
    writer.close()
    await good.close()
    assert await good.ask("who") == [b""]
    assert await Colleagues(tmp_path / "nowhere", "x", 0, str.encode).ask("who") == []
    await asyncio.sleep(0.15)


async def test_an_answer_without_end_is_left_out(closing, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "MAX_ANSWER", 10)
    for name in ("a", "b"):
        colleague = Colleagues(tmp_path, name, 0, lambda question: b"x" * 11)
        await colleague.begin()
        closing.push_async_callback(colleague.close)
    assert await colleague.ask("who") == []


async def test_replicas_need_a_common_secret_and_an_address(tmp_path):
    files = {"fleetFile": tmp_path / "fleet.json"}
    with pytest.raises(ConfigError, match="agentTokenFile"):
        await start(GatewayConfig.model_validate({"listen": "127.0.0.1:0", "peers": {}, **files}))
    (tmp_path / "token").write_text("")
    files["agentTokenFile"] = tmp_path / "token"
    peers = {"listen": "127.0.0.1:0"}
    with pytest.raises(ConfigError, match="is empty"):
        await start(GatewayConfig.model_validate({"listen": "127.0.0.1:0", "peers": peers, **files}))
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(ConfigError, match=r"peers\.listen: cannot listen on 192\.0\.2\.1:1"):
        await start(
            GatewayConfig.model_validate({"listen": "127.0.0.1:0", "peers": {"listen": "192.0.2.1:1"}, **files})
        )


async def test_two_replicas_hear_each_other_by_udp(make_world, closing, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(company, "BEAT_S", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = {"fleetFile": tmp_path / "fleet.json", "agentTokenFile": tmp_path / "token"}
    world = await make_world(pods={"base": 1}, peers={"listen": f"127.0.0.1:{port}"})
    peers = {"listen": "127.0.0.1:0", "dns": [f"127.0.0.1:{port}"]}
    other = await start(GatewayConfig.model_validate({"listen": "127.0.0.1:0", "peers": peers, **files}))
    closing.push_async_callback(other.stop, 0.05)
    world.gateway._company.replicas.reach([("127.0.0.1", other._company.replicas.port)])
    await world.until(lambda: other._company.hearing.peers and world.gateway._company.hearing.peers)
    assert generate_latest(world.gateway.inference.metrics.registry)


def test_a_question_that_nobody_knows_is_answered_by_nothing():
    core = SimpleNamespace(colleagues=None, records={})
    assert gathering.answer(core, "metrics") == b""
    assert gathering.answer(core, "weather") == b""
