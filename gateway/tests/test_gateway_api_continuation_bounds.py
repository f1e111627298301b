"""A stream that is continued ends in bounded time and gives its turn back, whatever was asked and whatever engines do."""

import asyncio
import time

import gateway_dying_fleet
import pytest
from gateway_dying_fleet import CHAT, Fleet, boundary, plain, quiet, whole
from gateway_fixtures import adapter, ask, make_world  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk
from gateway_token_engine import TokenEngine, read
from sheaf_gateway.api import continuing


@pytest.fixture
def lenient(monkeypatch):
    """Engines that read numbers out of strings."""

    class Lenient(TokenEngine):
        def events(self, path, body):
            return super().events(path, {**body, "min_tokens": int(body.get("min_tokens", 0))})

    monkeypatch.setattr(gateway_dying_fleet, "TokenEngine", Lenient)


async def test_a_number_in_a_string_does_not_hang_a_lost_stream(make_world, ask, lenient):  # noqa: F811
    world = await make_world()
    body = plain(min_tokens="3")
    fleet = Fleet(world, [boundary(CHAT, plain(), 9)])
    _, _, got = await asyncio.wait_for(ask(world, "POST", CHAT, body), 5)
    assert read(got) == whole(CHAT, plain())
    assert len(fleet.answers) == 2
    await quiet(world)


@pytest.fixture
def undecidable(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(continuing, "decide", fail)


async def test_a_decision_that_fails_is_a_refusal(make_world, ask, undecidable):  # noqa: F811
    world = await make_world()
    Fleet(world, [boundary(CHAT, plain(), 9)])
    _, _, got = await asyncio.wait_for(ask(world, "POST", CHAT, plain()), 5)
    assert b"stream_interrupted" in got
    await quiet(world)


async def test_turns_come_back_from_streams_that_cannot_be_decided(make_world, ask, undecidable):  # noqa: F811
    world = await make_world(limits={"startingPerPod": 1})
    fleet = Fleet(world, [], pause=0.02)
    asking = [asyncio.create_task(ask(world, "POST", CHAT, plain(max_tokens=60))) for _ in range(4)]
    mending = world.gateway.inference.mending
    await world.until(lambda: sum(map(len, mending.streams.values())) == 4)
    place = [engine.name for engine in world.engines].index(fleet.names[0])
    world.agents[place].draining, world.agents[place].deadline = True, time.time() + 0.2
    world.agents[place].changed()
    answers = await asyncio.gather(*asking)
    assert all(read(got)["finish"] for _, _, got in answers)
    assert mending._pacings == {}
    await quiet(world)


async def test_a_turn_that_breaks_off_is_given_back(make_world, ask, monkeypatch):  # noqa: F811
    world = await make_world(limits={"startingPerPod": 1})
    Fleet(world, [boundary(CHAT, plain(), 9)] * 2)

    def fail(_stream):
        raise ZeroDivisionError

    monkeypatch.setattr(continuing.Continuing, "_choose", fail)
    answers = await asyncio.wait_for(asyncio.gather(*(ask(world, "POST", CHAT, plain()) for _ in range(2))), 5)
    assert all(b"stream_interrupted" in got for _, _, got in answers)
    await world.until(lambda: world.gateway.inference.mending._pacings == {})
    await quiet(world)


def deaf(world, *, head, dying=1):
    """The first answers die after nine events; those after say nothing more, with a head or without one."""
    asked = []

    async def script(seen, writer):
        asked.append(seen)
        if len(asked) <= dying:
            writer.write(STREAM_HEAD + chunk(b"".join(TokenEngine().events(seen.path, seen.json)[:9])))
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.transport.abort()
            return
        if head:
            writer.write(STREAM_HEAD)
        await asyncio.sleep(30)

    for engine in world.engines:
        engine.script = script
    return asked


SHORT = {"continuation": "300ms", "stall": "200ms", "idle": "20s", "firstByte": "20s"}


@pytest.mark.parametrize("head", [True, False])
async def test_the_gap_is_bounded_where_the_new_engine_says_nothing(make_world, ask, head):  # noqa: F811
    world = await make_world(times=SHORT)
    asked = deaf(world, head=head)
    _, _, got = await asyncio.wait_for(ask(world, "POST", CHAT, plain()), 5)
    assert b"stream_interrupted" in got
    assert len(asked) >= 2
    await quiet(world)


async def test_the_wait_for_a_turn_is_bounded(make_world, ask, monkeypatch):  # noqa: F811
    monkeypatch.setattr(continuing, "_TURNS", 2)
    world = await make_world(times={**SHORT, "stall": "400ms"}, limits={"startingPerPod": 1})
    deaf(world, head=False, dying=6)
    answers = await asyncio.wait_for(asyncio.gather(*(ask(world, "POST", CHAT, plain()) for _ in range(6))), 5)
    assert all(b"stream_interrupted" in got for _, _, got in answers)
    counted = world.gateway.inference.metrics.registry.get_sample_value
    assert counted("sheaf_gateway_streams_not_continued_total", {"reason": "too_late"}) >= 1
    await quiet(world)


async def test_the_wait_for_an_adapter_is_bounded(make_world, ask, monkeypatch):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")], times=SHORT)
    world.engines[0].loaded.add("pirate")
    world.agents[0].changed()
    await world.until(lambda: world.pod("base-0").resident)

    async def never(*_):
        await asyncio.sleep(30)

    monkeypatch.setattr(world.gateway.inference.loader, "load", never)
    deaf(world, head=False)
    _, _, got = await asyncio.wait_for(ask(world, "POST", CHAT, plain() | {"model": "pirate"}), 5)
    assert b"stream_interrupted" in got
    await quiet(world)
