"""A generation whose pods are all lost waits for one, with all others, and a refusal is no loss however it comes."""

import asyncio
import json

import pytest
from gateway_fixtures import ask, chat, make_world  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk, event, response

CHAT = "/v1/chat/completions"


async def reset(_seen, writer):
    writer.transport.abort()


async def test_a_generation_whose_pods_are_all_lost_waits_until_one_is_back(make_world, ask):  # noqa: F811
    world = await make_world()
    asked = []

    async def dead_for_a_moment(seen, writer):
        asked.append(seen)
        await (reset(seen, writer) if len(asked) < 3 else answer(seen, writer))

    async def answer(seen, writer):
        writer.write(response(200, json.dumps(world.engines[0].document(seen, "base")).encode()))

    for engine in world.engines:
        engine.script = dead_for_a_moment
    status, _, body = await ask(world, "POST", CHAT, chat())
    assert (status, len(asked)) == (200, 3), body


async def test_all_who_lost_their_pods_together_go_on_when_one_is_back_and_nobody_learns_from_the_wait(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, agents=False)
    away = asyncio.Event()

    async def dead(seen, writer):
        await (answer(seen, writer) if away.is_set() else reset(seen, writer))

    async def answer(seen, writer):
        writer.write(response(200, json.dumps(world.engines[0].document(seen, "base")).encode()))

    world.engines[0].script = dead
    world.gateway.inference.max_attempts = 1000
    asked = [asyncio.create_task(ask(world, "POST", CHAT, chat())) for _ in range(8)]
    await asyncio.sleep(0.3)
    away.set()
    assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 8
    waited = [record for record in world.gateway.inference.records._records.values() if len(record.attempts) > 1]
    assert len(waited) == 8
    gate = world.gateway.inference.admission._gates["base"]
    assert not gate.learnt


@pytest.mark.parametrize("cut", [20, 1500, 3100])
async def test_a_refusal_within_a_stream_is_passed_on_however_it_is_cut(make_world, ask, cut):  # noqa: F811
    world, asked = await make_world(), []
    refusal = {"message": "y" * 3000, "type": "BadRequestError", "param": None, "code": 400}
    said = event({"error": refusal}) + b"data: [DONE]\n\n"

    async def refuse(seen, writer):
        asked.append(seen)
        writer.write(STREAM_HEAD + chunk(said[:cut]))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(chunk(said[cut:]) + b"0\r\n\r\n")

    for engine in world.engines:
        engine.script = refuse
    status, _, body = await ask(world, "POST", CHAT, chat(stream=True))
    assert (status, len(asked), body) == (200, 1, said)
