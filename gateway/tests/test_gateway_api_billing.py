"""What a stream costs its caller: its tokens, in however few events they come."""

import asyncio
import hashlib

import pytest
from gateway_dying_fleet import CHAT, TEXT, plain, quiet
from gateway_fixtures import ask, make_world  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk
from gateway_token_engine import TokenEngine, event

KEYS = "keys:\n- name: ci\n  tenant: gold\n  sha256: %s\n  limits: {tokensPerMinute: 1000}\n"
AUTH = {"authorization": "Bearer sk-1"}
KEY_FILE = KEYS % hashlib.sha256(b"sk-1").hexdigest()


def words(count, last=False):
    choice = {"index": 0, "delta": {"content": "w " * count}, "finish_reason": "length" if last else None}
    told = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "base"}
    return event({**told, "choices": [{**choice, "token_ids": [5] * count}]})


def streaming(*parts, end=True):
    async def script(_seen, writer):
        writer.write(STREAM_HEAD)
        for each in parts:
            writer.write(chunk(each))
            await writer.drain()
            await asyncio.sleep(0.002)
        if end:
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()
        else:
            await asyncio.sleep(1)

    return script


async def test_large_events_cost_what_they_hold(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, keys=KEY_FILE)
    world.engines[0].script = streaming(words(300), words(300), words(300, last=True))
    body = plain(max_tokens=900, stream_interval=300)
    answers = [(await ask(world, "POST", CHAT, body, AUTH))[0] for _ in range(3)]
    assert answers == [200, 429, 429]
    (served,) = world.gateway.inference.admission.served("base").values()
    assert served >= 2 * 900
    await quiet(world)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("most", [1, 7])
async def test_a_stream_is_charged_its_tokens_exactly(make_world, ask, path, most):  # noqa: F811
    world = await make_world(pods={"base": 1})

    async def script(seen, writer):
        engine = TokenEngine(most=most)
        await streaming(b"".join(engine.events(path, seen.json)[:-1]))(seen, writer)

    world.engines[0].script = script
    closed = []
    right = world.gateway.inference.finished
    world.gateway.inference.finished = lambda asked, record, ending, now: (
        closed.append(ending),
        right(asked, record, ending, now),
    )
    await ask(world, "POST", path, plain(path, max_tokens=200))
    assert closed[0].produced == 200
    await quiet(world)


async def test_large_events_count_while_the_stream_runs(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, keys=KEY_FILE)
    world.engines[0].script = streaming(*[words(100)] * 20, end=False)
    asking = asyncio.create_task(ask(world, "POST", CHAT, plain(max_tokens=4000), AUTH))
    admission = world.gateway.inference.admission
    await world.until(lambda: sum(admission.served("base").values()) >= 2 * 1600)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
