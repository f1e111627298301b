"""Gateways that hear each other over real sockets on loopback, and what they make of datagrams that are not theirs."""

import asyncio
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.config import PeersConfig
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.gossip.wire import Batch, encode
from sheaf_gateway.peers import company as module
from sheaf_gateway.peers import finding, links, seal
from sheaf_gateway.peers.company import Company
from sheaf_gateway.peers.finding import Finder, pod_addresses
from sheaf_gateway.peers.links import Replicas, Siblings
from sheaf_gateway.peers.seal import Keys, derived, opened, sealed
from sheaf_gateway.routing.router import Ask, Router

POD = Pod(name="pod-0", model="base", engine_url="http://e", epoch=1)


class Core:
    """The state of a gateway without the gateway."""

    def __init__(self) -> None:
        self.router, self.admission = Router(), Admission()
        self.called: list[str] = []

    def call_in(self, model: str) -> None:
        self.called.append(model)

    def send(self):
        ask = Ask(request_id="r", model="base", chain=[1, 2, 3], prompt_bytes=768)
        return self.router.sent(ask, self.router.decide(ask, [POD], 0.0), POD, 0.0)

    @property
    def told(self) -> int:
        return self.router.ledger("pod-0").told


@pytest.fixture
def room(tmp_path):
    """A folder with a short name: paths of Unix sockets may have 107 bytes."""
    (tmp_path / "secret").write_text("a secret\n")
    return tmp_path


@pytest.fixture
def start(closing, room, monkeypatch):
    """`company = await start("name")`: one more gateway of the room, by UDP too where `port` is given."""
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(finding, "EVERY_S", 0.05)

    async def make(name: str | None, udp: Replicas | None = None, others: tuple[str, ...] = ()) -> Company:
        keys = Keys(room / "secret")
        assert await keys.read()
        made = Company(Core(), keys)
        made.core = made._core
        siblings = None if name is None else Siblings(room, name, made.from_sibling)
        replicas = None if udp is None else Replicas("127.0.0.1", 0, made.from_replica)
        made.begin(siblings=siblings, replicas=replicas, finder=None)
        if replicas is not None and others:
            replicas.reach([finding.parse_listen(other) for other in others])
        closing.push_async_callback(made.close)
        return made

    return make


async def until(truth, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not truth():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_workers_of_a_room_know_of_each_others_requests(start):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.hearing.peers and other.hearing.peers)
    ticket = one.core.send()
    await until(lambda: other.core.told == 1)
    assert other.core.router.index.match([1, 2, 3], [("pod-0", 1)]) == {("pod-0", 1): 3}
    one.core.router.finished(ticket)
    await until(lambda: other.core.told == 0)


async def test_news_do_not_wait_for_the_next_beat(start, monkeypatch):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.hearing.peers and other.hearing.peers)
    monkeypatch.setattr(module, "BEAT_S", 60.0)
    await asyncio.sleep(0.1)
    one.core.send()
    await until(lambda: other.core.told == 1)


async def test_a_worker_that_comes_later_is_told_what_is_under_way(start):
    one, _ = await start("w0"), await start("w1")
    await until(lambda: one.hearing.peers)
    for _ in range(3):
        one.core.send()
    late = await start("w2")
    await until(lambda: late.core.told == 3)


async def test_a_worker_that_leaves_takes_its_requests_along(start, closing):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.hearing.peers and other.hearing.peers)
    one.core.send()
    await until(lambda: other.core.told == 1)
    await one.close()
    await until(lambda: other.core.told == 0)
    await until(lambda: other.core.router.teller is None)


async def test_a_worker_that_died_is_forgotten(start, room, monkeypatch):
    one, other = await start("w0"), await start("w1")
    other.hearing.silence_s = 0.2
    await until(lambda: one.hearing.peers and other.hearing.peers)
    one.core.send()
    await until(lambda: other.core.told == 1)
    for task in one._tasks:
        task.cancel()
    one._telling = False
    one.siblings._socket.close()
    await until(lambda: other.core.told == 0)
    await until(lambda: not other.siblings.targets)
    assert not (room / "w0.gossip").exists()
    one.siblings = None


async def test_nothing_is_noted_while_there_is_nobody_to_tell(start):
    alone = await start("w0")
    await asyncio.sleep(0.1)
    alone.core.send()
    assert alone.core.router.teller is None
    assert alone.core.admission.news() == ([], [])
    assert len(alone.teller) == 0


async def test_replicas_know_of_each_others_requests_and_pass_them_to_their_workers(start, closing, room):
    one = await start(None, udp=Replicas, others=())
    other = await start("w0", udp=Replicas, others=(f"127.0.0.1:{one.replicas.port}",))
    third = await start("w1", udp=Replicas, others=(f"127.0.0.1:{one.replicas.port}",))
    one.replicas.reach([("127.0.0.1", other.replicas.port)])
    await until(lambda: one.hearing.peers and other.hearing.peers)
    one.core.send()
    await until(lambda: other.core.told == 1 and third.core.told == 1)


async def test_a_machine_does_not_speak_to_itself(closing):
    replicas = Replicas("127.0.0.1", 0, lambda data: None)
    closing.callback(replicas.close)
    replicas.reach([("127.0.0.1", replicas.port), ("127.0.0.1", 1), ("127.0.0.2", replicas.port)])
    assert replicas.targets == (("127.0.0.1", 1), ("127.0.0.2", replicas.port))


async def test_a_machine_without_ipv6_reaches_the_others(closing, monkeypatch):
    real = socket.socket
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    monkeypatch.setattr(
        socket, "socket", lambda family, *kind: real(family, *kind) if family != socket.AF_INET6 else 1 / 0
    )
    replicas = Replicas(None, 0, lambda data: None)
    closing.callback(replicas.close)
    replicas.reach({("192.0.2.1", 9), ("2001:db8::1", 9)})
    assert replicas.targets == (("192.0.2.1", 9),)


async def test_who_waits_is_called_in_when_a_slot_comes_free_elsewhere(start):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.hearing.peers and other.hearing.peers)
    one.core.admission._stir("base")
    one.core.send()
    await until(lambda: "base" in other.core.called)


def batch(**more) -> bytes:
    return encode(Batch(**{"life": 7, "number": 1, "at": time.time(), "live": 0, **more}))


async def test_only_what_is_sealed_now_and_is_a_batch_counts(start):
    one = await start("w0")
    key = one._keys.keys[0]
    dropped = module.metrics.DROPPED
    before = {why: dropped.labels(why)._value.get() for why in ("forged", "garbage", "stale", "repeated")}
    good = sealed(key, batch())
    for data in (b"", b"x", b"y" * 65_000, sealed(b"other", batch()), good[:-1], bytes([good[0] ^ 1]) + good[1:]):
        one.from_replica(data)
    one.from_sibling(sealed(key, b"nonsense"))
    one.from_sibling(sealed(key, batch(at=time.time() - 31)))
    one.from_sibling(sealed(key, batch(at=time.time() + 31)))
    assert one.hearing.peers == {}
    one.from_sibling(good)
    one.from_sibling(good)
    after = {why: dropped.labels(why)._value.get() - before[why] for why in before}
    assert after == {"forged": 6, "garbage": 1, "stale": 2, "repeated": 1}
    assert one.hearing.peers.keys() == {7}


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_datagram_can_break_a_gateway(data, signed):
    async def hear() -> None:
        keys = Keys.__new__(Keys)
        keys.keys = (b"k",)
        made = Company(Core(), keys)
        made.from_replica(sealed(b"k", data) if signed else data)

    asyncio.run(hear())


async def test_a_secret_may_be_rotated(room, monkeypatch):
    monkeypatch.setattr(seal, "_READ_EVERY_S", 0.01)
    keys = Keys(room / "secret")
    assert await keys.read()
    (old,) = keys.keys
    following = asyncio.create_task(keys.follow())
    (room / "secret").write_text("another")
    await until(lambda: len(keys.keys) == 2)
    following.cancel()
    assert keys.keys == (derived(b"another"), old)
    assert opened(keys.keys, sealed(old, b"x")) == b"x"
    (room / "secret").unlink()
    assert await keys.read()
    (room / "secret").write_text(" \n")
    assert await keys.read()
    assert keys.keys == (derived(b"another"), old)
    assert not await Keys(room / "none").read()


async def test_datagrams_that_do_not_fit_are_dropped_and_never_waited_for(closing, room):
    def fill() -> float:
        return links.metrics.DROPPED.labels("full")._value.get()

    heard: list[bytes] = []
    sender = Siblings(room, "a", heard.append)
    closing.callback(sender.close)
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    closing.callback(deaf.close)
    deaf.bind(str(room / "b.gossip"))
    sender.look()
    before = fill()
    for _ in range(5_000):
        sender.send(b"x" * 1_000)
    assert fill() > before
    assert sender.targets


async def test_a_socket_that_cannot_be_made_leaves_nothing_open(room):
    with pytest.raises(OSError, match="too long"):
        Siblings(room / ("x" * 120), "a", lambda data: None)
    with pytest.raises(OSError, match="assign"):
        Replicas("192.0.2.1", 0, lambda data: None)


async def test_names_are_resolved_and_what_is_not_found_stays_as_it_was(monkeypatch, logged):
    monkeypatch.setattr(finding, "EVERY_S", 0.01)
    found: list[set] = []
    peers = PeersConfig(dns=("127.0.0.1", "127.0.0.2:9", "nowhere.invalid"))
    running = asyncio.create_task(Finder(peers, None, 7).run(found.append))
    await until(lambda: len(found) > 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert found[-1] == {("127.0.0.1", 7), ("127.0.0.2", 9)}
    assert [event["where"] for event in logged if event["event"] == "gateways_not_found"] == ["nowhere.invalid"]


def test_pods_that_run_are_found_in_a_list():
    status = [
        {"podIP": "10.0.0.1", "phase": "Running"},
        {"phase": "Running"},
        {"podIP": "10.0.0.2", "phase": "Failed"},
        None,
    ]
    assert pod_addresses({"items": [{"status": each} for each in status]}) == {"10.0.0.1"}
    for broken in ({}, [], {"items": [1]}, {"items": [{"status": 1}]}, None):
        with pytest.raises(ValueError, match="not a list of pods"):
            pod_addresses(broken)
