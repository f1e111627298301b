"""A Redis that is slow, stalls or is cut off: bursts wait, nothing stays leased, nothing is corrected twice."""

import asyncio
import signal
import time

import pytest
from gateway_redis import NEEDED, make_limits, prefix, scope, server, url  # noqa: F401
from redis.asyncio import Redis
from sheaf_gateway.api import pipeline, shared
from sheaf_gateway.api.shared import LimitsUnavailable

pytestmark = NEEDED


async def test_what_ended_while_redis_was_away_is_settled_when_it_is_back(start_engine, server, prefix, make_limits):  # noqa: F811
    """The way to Redis is cut, not Redis: the lease that it still holds must not count for as long as a lease lasts."""
    ways: list[asyncio.StreamWriter] = []

    async def pass_on(reader, writer):
        upstream, sink = await asyncio.open_connection("127.0.0.1", server.port)
        ways.extend((writer, sink))
        await asyncio.gather(copy(reader, sink), copy(upstream, writer))

    async def copy(source, sink):
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()

    endpoint = await start_engine(pass_on)
    limits = make_limits(f"redis://{endpoint.host}:{endpoint.port}/0", prefix=prefix, timeout_s=0.1)
    bound = scope(max_concurrent=1)
    assert await limits.charge("1", bound, 0.0) is None
    for way in ways:
        way.transport.abort()
    with pytest.raises(LimitsUnavailable):
        await limits.charge("2", bound, 0.0)
    limits.settle("1", bound, 0.0, refund=False)
    await asyncio.gather(*limits._tasks)
    assert [debt[1][0] for debt in limits._owed] == ["2", "1"]
    limits._away_until = time.monotonic()
    refused = await limits.charge("3", bound, 0.0)
    assert refused.limit == "max_concurrent"
    await asyncio.gather(*limits._tasks)
    assert await limits.charge("4", bound, 0.0) is None


@pytest.fixture
async def detour(start_engine, server):  # noqa: F811
    """A way to Redis whose answers take as long as it says."""

    class Detour:
        delay_s = 0.0

    async def pass_on(reader, writer):
        upstream, sink = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, sink, answers=False), copy(upstream, writer, answers=True))

    async def copy(source, sink, *, answers):
        while data := await source.read(1_048_576):
            await asyncio.sleep(Detour.delay_s if answers else 0.0)
            sink.write(data)
        sink.close()

    endpoint = await start_engine(pass_on)
    Detour.url = f"redis://{endpoint.host}:{endpoint.port}/0"
    return Detour


async def test_a_burst_waits_for_its_turn_and_is_not_taken_for_a_failure(detour, prefix, make_limits):  # noqa: F811
    limits = make_limits(detour.url, prefix=prefix, timeout_s=1.0)
    bound = scope(requests_per_minute=300)
    assert await asyncio.gather(*(limits.charge(f"w{n}", bound, 0.0) for n in range(4))) == [None] * 4
    detour.delay_s = 0.2
    answers = await asyncio.gather(*(limits.charge(str(n), bound, 0.0) for n in range(400)))
    detour.delay_s = 0.0
    assert 296 <= answers.count(None) <= 301
    assert limits.failures == 0


async def test_what_was_not_sent_when_redis_fails_is_not_owed(server, prefix, make_limits, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pipeline, "_BATCH", 2)
    limits = make_limits(server.url, prefix=prefix)
    bound = scope(requests_per_minute=300)
    assert await limits.charge("0", bound, 0.0) is None
    server.process.send_signal(signal.SIGSTOP)
    limits._pipeline._timeout_s = 0.1
    answers = await asyncio.gather(*(limits.charge(str(n), bound, 0.0) for n in range(1, 101)), return_exceptions=True)
    assert all(isinstance(answer, LimitsUnavailable) for answer in answers)
    assert 1 <= len(limits._owed) == limits.failures <= 8
    server.process.send_signal(signal.SIGCONT)


async def test_what_waits_for_redis_is_bounded(server, prefix, make_limits, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pipeline, "_MAX_ASKED", 10)
    limits = make_limits(server.url, prefix=prefix, timeout_s=1.0)
    bound = scope(requests_per_minute=300)
    answers = await asyncio.gather(*(limits.charge(str(n), bound, 0.0) for n in range(12)), return_exceptions=True)
    assert answers[:10] == [None] * 10
    assert [type(answer) for answer in answers[10:]] == [LimitsUnavailable] * 2
    assert (limits.failures, len(limits._owed)) == (0, 0)


async def test_scripts_that_redis_forgot_are_loaded_again(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(requests_per_minute=2)
    assert await limits.charge("1", bound, 0.0) is None
    client = Redis.from_url(url)
    await client.script_flush()
    await client.aclose()
    assert await limits.charge("2", bound, 0.0) is None
    assert await limits.charge("3", bound, 0.0) is not None
    assert limits.failures == 0


async def test_a_call_is_settled_once_however_often_it_is_tried(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(tokens_per_minute=600)
    assert await limits.charge("1", bound, 600.0) is None
    for _ in range(3):
        limits.settle("1", bound, -100.0, refund=False)
        await asyncio.gather(*limits._tasks)
    assert await limits.charge("2", bound, 250.0) is not None
    assert await limits.charge("3", bound, 100.0) is None


async def test_a_charge_that_comes_after_its_settlement_charges_nothing(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(requests_per_minute=1, max_concurrent=1)
    limits.settle("1", bound, 0.0, refund=True)
    await asyncio.gather(*limits._tasks)
    assert await limits.charge("1", bound, 0.0) is None
    assert await limits.charge("2", bound, 0.0) is None


async def test_a_stall_of_redis_leaves_no_leases_and_corrects_nothing_twice(server, prefix, make_limits):  # noqa: F811
    """What was sent before the stall runs after it, though nobody waits for its answer any more."""
    limits = make_limits(server.url, prefix=prefix)
    bound = scope(tokens_per_minute=600, max_concurrent=2)
    assert await limits.charge("1", bound, 600.0) is None
    server.process.send_signal(signal.SIGSTOP)
    limits._pipeline._timeout_s = 0.1
    with pytest.raises(LimitsUnavailable):
        await limits.charge("2", bound, 0.0)
    limits._away_until = 0.0
    limits.settle("1", bound, -100.0, refund=False)
    await asyncio.gather(*limits._tasks)
    server.process.send_signal(signal.SIGCONT)
    limits._pipeline._timeout_s = 2.0
    limits._away_until = 0.0
    limits._repay()
    await asyncio.gather(*limits._tasks)
    assert [await limits.charge(str(number), bound, 0.0) for number in (3, 4)] == [None, None]
    assert (await limits.charge("5", bound, 0.0)).limit == "max_concurrent"
    limits.settle("3", bound, 0.0, refund=False)
    await asyncio.gather(*limits._tasks)
    assert (await limits.charge("6", bound, 150.0)).limit == "tokens_per_minute"


async def test_what_is_owed_is_settled_soon_though_nobody_asks(server, prefix, make_limits, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shared, "_RETRY_S", 0.1)
    limits = make_limits(server.url, prefix=prefix)
    bound = scope(max_concurrent=1)
    assert await limits.charge("1", bound, 0.0) is None
    server.process.send_signal(signal.SIGSTOP)
    limits._pipeline._timeout_s = 0.1
    limits.settle("1", bound, 0.0, refund=False)
    await asyncio.gather(*limits._tasks)
    assert len(limits._owed) == 1
    server.process.send_signal(signal.SIGCONT)
    limits._pipeline._timeout_s = 2.0
    for _ in range(150):
        await asyncio.sleep(0.01)
        if not limits._owed and not limits._tasks:
            break
    assert await limits.charge("2", bound, 0.0) is None


async def test_a_redis_that_hangs_is_given_up_in_time(start_engine, prefix, make_limits):  # noqa: F811
    async def silent(reader, _writer):
        await reader.read()

    endpoint = await start_engine(silent)
    limits = make_limits(f"redis://{endpoint.host}:{endpoint.port}/0", prefix=prefix, timeout_s=0.05)
    with pytest.raises(LimitsUnavailable):
        await asyncio.wait_for(limits.charge("1", scope(max_concurrent=1), 0.0), 5.0)
