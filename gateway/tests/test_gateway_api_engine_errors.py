"""An engine's error event is the loss of the engine, on every route, in every dialect and however it is cut."""

import asyncio

import pytest
from gateway_dying_fleet import CHAT, plain, quiet, whole
from gateway_fixtures import ask, chat, make_world  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk
from gateway_token_engine import TokenEngine, event, read
from sheaf_gateway.api.answers import fault

DEAD = event({"error": {"message": "CUDA at /srv/secret.py", "type": "InternalServerError", "code": 500}})
SPACED = b'data: {"error": {"message": "CUDA at /srv/secret.py", "code": 500}}\n\n'
REFUSED = event({"error": {"message": "it cannot be parsed", "type": "BadRequestError", "code": 400}})
STARTED = b'event: message_start\ndata: {"type":"message_start"}\n\n'
ANTHROPIC = b'event: error\ndata: {"type":"error","error":{"message":"CUDA at /srv/secret.py"}}\n\n'
RESPONSE = b'event: response.created\ndata: {"type":"response.created"}\n\n'


def saying(*parts):
    async def script(_seen, writer):
        writer.write(STREAM_HEAD)
        for each in parts:
            writer.write(chunk(each))
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return script


ONE = event({"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})
SHORT = {"max_tokens": 9, "messages": chat()["messages"], "model": "base", "stream": True}


@pytest.mark.parametrize(
    ("path", "body", "parts"),
    [
        (CHAT, plain(n=2), [ONE, SPACED, b"data: [DONE]\n\n"]),
        (CHAT, plain(n=2), [ONE, DEAD[:12], DEAD[12:], b"data: [DONE]\n\n"]),
        (CHAT, plain(n=2), [ONE + ONE + DEAD + b"data: [DONE]\n\n"]),
        ("/v1/messages", SHORT, [STARTED, ANTHROPIC]),
        ("/v1/responses", {"model": "base", "stream": True, "input": "a"}, [RESPONSE, ANTHROPIC]),
    ],
)
async def test_an_error_within_a_stream_is_a_failure_of_the_pod(make_world, ask, path, body, parts):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.engines[0].script = saying(*parts)
    _, _, got = await ask(world, "POST", path, body, {"x-request-id": "one"})
    assert b"secret" not in got
    assert b"[DONE]" not in got
    assert (b"event: error" in got) == (path == "/v1/messages")
    record = world.gateway.inference.records.get("one")
    assert (record.error, record.attempts[-1].outcome) == ("stream_interrupted", "engine_error")
    assert world.gateway.router.ledgers["base-0"].breaker.bad
    await quiet(world)


async def test_an_error_cut_in_two_is_continued(make_world, ask):  # noqa: F811
    world = await make_world()
    asked = []

    async def script(seen, writer):
        asked.append(seen)
        events = TokenEngine(created=len(asked)).events(seen.path, seen.json)
        await saying(*([*events[:6], DEAD[:12], DEAD[12:]] if len(asked) == 1 else events))(seen, writer)

    for engine in world.engines:
        engine.script = script
    _, _, got = await ask(world, "POST", CHAT, plain())
    assert read(got) == whole(CHAT, plain())
    assert len(asked) == 2
    await quiet(world)


async def test_an_error_before_all_else_is_retried_unseen(make_world, ask):  # noqa: F811
    world = await make_world()
    asked = []

    async def script(seen, writer):
        asked.append(seen)
        await saying(*([SPACED] if len(asked) == 1 else [ONE, b"data: [DONE]\n\n"]))(seen, writer)

    for engine in world.engines:
        engine.script = script
    status, _, got = await ask(world, "POST", CHAT, plain(n=2))
    assert (status, got) == (200, ONE + b"data: [DONE]\n\n")
    assert len(asked) == 2


@pytest.mark.parametrize("more", [{}, {"n": 2}])
async def test_what_an_engine_says_against_the_request_passes(make_world, ask, more):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.engines[0].script = saying(ONE, REFUSED, b"data: [DONE]\n\n")
    _, _, got = await ask(world, "POST", CHAT, plain(**more))
    assert got == ONE + REFUSED + b"data: [DONE]\n\n"
    assert not world.gateway.router.ledgers["base-0"].breaker.bad


def test_an_error_is_one_only_where_an_event_begins():
    assert fault(event({"choices": [{"delta": {"content": 'data: {"error"'}}]})) == -1
    assert fault(event({"choices": [{"delta": {"content": "\nevent: error"}}]})) == -1
    assert fault(ONE + SPACED) == len(ONE)
    assert fault(ONE + REFUSED + DEAD) == len(ONE + REFUSED)
