"""Notices, plug-ins, parsers, other dialects, and what is told of a stream that moved."""

import asyncio
import json
import time

import pytest
from gateway_dying_fleet import CHAT, Fleet, boundary, plain, quiet, whole
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk
from gateway_token_engine import TokenEngine, read


@pytest.mark.parametrize(("left", "moves"), [(0.5, True), (60.0, False)])
async def test_on_notice_streams_that_would_not_end_in_time_move_and_the_others_stay(make_world, ask, left, moves):  # noqa: F811
    world = await make_world()
    body = plain(max_tokens=60)
    fleet = Fleet(world, [], pause=0.02)
    asking = asyncio.create_task(ask(world, "POST", CHAT, body))
    mending = world.gateway.inference.mending
    await world.until(
        lambda: mending.streams and next(iter(next(iter(mending.streams.values())))).progress().tokens > 3
    )
    place = [engine.name for engine in world.engines].index(fleet.names[0])
    world.agents[place].draining, world.agents[place].deadline = True, time.time() + left
    world.agents[place].changed()
    _, _, got = await asking
    assert read(got) == whole(CHAT, body)
    assert len(fleet.answers) == (2 if moves else 1)
    await quiet(world)


async def streaming(world, ask, body, pause=0.02):  # noqa: F811
    """A stream under way, the fleet of its engines, and the place of the pod that it comes from."""
    fleet = Fleet(world, [], pause=pause)
    asking = asyncio.create_task(ask(world, "POST", CHAT, body))
    mending = world.gateway.inference.mending
    await world.until(
        lambda: mending.streams and next(iter(next(iter(mending.streams.values())))).progress().tokens > 3
    )
    return asking, fleet, [engine.name for engine in world.engines].index(fleet.names[0])


async def test_a_stream_returns_at_once_to_the_pod_that_it_left_before(make_world, ask):  # noqa: F811
    world = await make_world()
    body = plain(max_tokens=60)
    fleet = Fleet(world, [boundary(CHAT, body, 20), boundary(CHAT, body, 20)])
    began = asyncio.get_running_loop().time()
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body)
    assert fleet.names == [fleet.names[0], fleet.names[1], fleet.names[0]]
    assert len(set(fleet.names)) == 2
    assert asyncio.get_running_loop().time() - began < 0.9


async def test_the_wait_for_a_turn_is_no_wait_for_a_pod(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 4}, times={"continuation": "300ms"}, limits={"startingPerPod": 1})
    body, lost, failed = plain(max_tokens=30), [], set()
    Fleet(world, [boundary(CHAT, body, 8)] * 12, pause=0.01)
    for engine in world.engines:

        async def busy(seen, writer, script=engine.script):
            key = seen.headers["x-request-id"]
            if len(lost) < 12:
                lost.append(key)
            elif key not in failed:
                failed.add(key)
                writer.transport.abort()
                return
            else:
                await asyncio.sleep(0.25)
            await script(seen, writer)

        engine.script = busy
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, body) for _ in range(12)))
    assert {read(got)["text"] for _, _, got in answers if b"stream_interrupted" not in got} == {
        whole(CHAT, body)["text"]
    }
    assert [got for _, _, got in answers if b"stream_interrupted" in got] == []
    assert len(failed) == 12
    await quiet(world)


@pytest.mark.parametrize(("drain", "moves"), [("1s", True), ("60s", False)])
async def test_a_pod_that_drains_without_a_deadline_has_the_drain_timeout_of_its_model(make_world, ask, drain, moves):  # noqa: F811
    world = await make_world(models=[model("base", drainTimeout=drain)])
    body = plain(max_tokens=60)
    asking, fleet, place = await streaming(world, ask, body)
    world.snapshot["pods"][place]["draining"] = True
    world.write()
    _, _, got = await asking
    assert read(got) == whole(CHAT, body)
    assert len(fleet.answers) == (2 if moves else 1)
    await quiet(world)


async def test_a_deadline_that_is_told_after_the_drain_counts(make_world, ask):  # noqa: F811
    world = await make_world()
    body = plain(max_tokens=60)
    asking, fleet, place = await streaming(world, ask, body)
    world.snapshot["pods"][place]["draining"] = True
    world.write()
    await world.until(lambda: world.pod(fleet.names[0]).draining)
    assert len(fleet.answers) == 1
    world.snapshot["pods"][place]["deadline"] = time.time() + 1.0
    world.write()
    _, _, got = await asking
    assert read(got) == whole(CHAT, body)
    assert len(fleet.answers) == 2
    await quiet(world)


async def test_a_stream_that_begins_after_the_notice_moves_too(make_world, ask):  # noqa: F811
    world = await make_world()
    body, goes_on = plain(max_tokens=60), asyncio.Event()
    fleet = Fleet(world, [], pause=0.08)
    asked = []
    for engine in world.engines:

        async def late(seen, writer, script=engine.script, engine=engine):
            asked.append(engine.name)
            await goes_on.wait()
            await script(seen, writer)

        engine.script = late
    asking = asyncio.create_task(ask(world, "POST", CHAT, body))
    await world.until(lambda: asked)
    place = [engine.name for engine in world.engines].index(asked[0])
    world.snapshot["pods"][place] |= {"draining": True, "deadline": time.time() + 1.0}
    world.write()
    await world.until(lambda: world.pod(asked[0]).draining)
    goes_on.set()
    _, _, got = await asking
    assert read(got) == whole(CHAT, body)
    assert len(fleet.answers) == 2
    await quiet(world)


async def test_a_sampled_stream_with_a_stop_string_moves_where_the_plug_in_is(make_world, ask):  # noqa: F811
    world = await make_world()
    for agent in world.agents:
        agent.continues = True
        agent.changed()
    await world.until(lambda: all(world.pod(engine.name).continues for engine in world.engines))
    body = plain(temperature=1, stop="a long stop string")
    fleet = Fleet(world, [boundary(CHAT, body, 30)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got)["finish"] == [("length", None)]
    assert fleet.answers[1][1].json["vllm_xargs"]["sheaf_forced"]


async def test_an_engine_that_queues_before_its_first_token_is_not_taken_for_stalled(make_world, ask):  # noqa: F811
    world = await make_world(times={"stall": "50ms"})

    async def slow(seen, writer):
        writer.write(STREAM_HEAD)
        await writer.drain()
        await asyncio.sleep(0.3)
        for each in TokenEngine().events(seen.path, seen.json):
            writer.write(chunk(each))
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    for engine in world.engines:
        engine.script = slow
    _, _, got = await ask(world, "POST", CHAT, plain())
    assert read(got) == whole(CHAT, plain())
    assert sum(len(engine.seen) for engine in world.engines) == 1


async def test_a_model_whose_engine_parses_reasoning_is_only_repeated_whole(make_world, ask):  # noqa: F811
    engine = {"name": "vllm", "args": ["--reasoning-parser=qwen3"]}
    world = await make_world(models=[model("base", engine=engine)])
    fleet = Fleet(world, [boundary(CHAT, plain(), 9)])
    _, _, got = await ask(world, "POST", CHAT, plain())
    assert read(got) == whole(CHAT, plain())
    assert fleet.answers[1][1].path == CHAT


async def test_a_lost_stream_of_another_dialect_ends_with_its_error(make_world, ask):  # noqa: F811
    world = await make_world()

    async def die(_seen, writer):
        writer.write(STREAM_HEAD + chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n'))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    for engine in world.engines:
        engine.script = die
    body = {"model": "base", "stream": True, "max_tokens": 9, "messages": chat()["messages"]}
    _, _, got = await ask(world, "POST", "/v1/messages", body)
    assert b"event: error" in got
    assert sum(len(engine.seen) for engine in world.engines) == 1


async def test_what_happened_can_be_read(make_world, ask):  # noqa: F811
    world = await make_world()
    Fleet(world, [boundary(CHAT, plain(), 9)])
    await ask(world, "POST", CHAT, plain(), {"x-request-id": "seen"})
    _, _, told = await ask(world, "GET", "/sheaf/v1/decisions/seen")
    attempts = json.loads(told)["attempts"]
    assert [attempt["continues"] is not None for attempt in attempts] == [False, True]
    _, _, page = await ask(world, "GET", "/metrics")
    assert b"sheaf_gateway_streams_continued_total 1.0" in page
    assert b"sheaf_gateway_continuation_gap_seconds_count 1.0" in page
    assert b"sheaf_gateway_journal_bytes 0.0" in page
