"""Before the first byte a failure is retried elsewhere; after it the client is told; a client that goes stops the work."""

import asyncio
import json

import msgspec
import openai
import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk, event, response

CHAT = "/v1/chat/completions"


async def reset(_seen, writer):
    writer.transport.abort()


async def hang_up_within_the_head(_seen, writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-ty")
    writer.close()


async def garbage(_seen, writer):
    writer.write(b"\x00\x01\x02 not http\r\n\r\n")
    await asyncio.sleep(1)


async def fail(_seen, writer):
    writer.write(response(500, b'{"error":"EngineDeadError at 0xdeadbeef"}'))


async def overloaded(_seen, writer):
    writer.write(response(503, b"busy"))


async def cut_short(_seen, writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{")
    writer.close()


async def head_of_a_stream_only(_seen, writer):
    writer.write(STREAM_HEAD)
    await writer.drain()
    writer.transport.close()


FAULTS = [reset, hang_up_within_the_head, garbage, fail, overloaded, cut_short, head_of_a_stream_only]


def first(world, script):
    """Make whichever engine is asked first misbehave; the other one answers."""
    asked = []

    for engine in world.engines:

        async def act(seen, writer, engine=engine):
            asked.append(engine.name)
            if asked[0] == engine.name:
                await script(seen, writer)
            else:
                writer.write(response(200, json.dumps(engine.document(seen, "base")).encode()))

        engine.script = act
    return asked


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_before_the_first_byte_is_answered_by_another_pod(make_world, ask, fault):  # noqa: F811
    world = await make_world()
    asked = first(world, fault)
    status, headers, body = await ask(world, "POST", CHAT, chat())
    assert status == 200, body
    assert len(set(asked)) == 2
    assert headers["x-sheaf-pod"] == asked[-1]


async def test_a_refused_connection_is_answered_by_another_pod(make_world, ask):  # noqa: F811
    world = await make_world()
    await world.engines[0].close()
    for turn in range(8):
        status, headers, _ = await ask(world, "POST", CHAT, chat(text=f"{turn} {turn}"))
        assert (status, headers["x-sheaf-pod"]) == (200, "base-1")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(reset, 502, "engine_unreachable"), (fail, 502, "engine_error"), (overloaded, 503, "engine_overloaded")],
)
async def test_faults_everywhere_end_in_one_clear_answer(make_world, ask, fault, status, code):  # noqa: F811
    world = await make_world(pods={"base": 5})
    for engine in world.engines:
        engine.script = fault
    got, headers, body = await ask(world, "POST", CHAT, chat())
    error = json.loads(body)["error"]
    assert (got, error["code"]) == (status, code)
    assert "0xdeadbeef" not in error["message"]
    assert int(headers["retry-after"]) >= 1
    assert sum(len(engine.seen) for engine in world.engines) == 3


async def test_attempts_that_no_engine_saw_do_not_count(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 5}, limits={"maxAttempts": 1})
    for engine in world.engines[:4]:
        await engine.close()
    status, headers, body = await ask(world, "POST", CHAT, chat())
    assert (status, headers["x-sheaf-pod"]) == (200, "base-4"), body


@pytest.mark.parametrize(("continuations", "wait_s"), [(0, 15.0), (8, 0.3)])
async def test_the_wait_for_a_pod_is_bounded_and_can_be_turned_off(make_world, ask, continuations, wait_s):  # noqa: F811
    world = await make_world(times={"continuation": f"{wait_s}s"}, limits={"maxContinuations": continuations})
    for engine in world.engines:
        await engine.close()
    began = asyncio.get_running_loop().time()
    status, _, body = await ask(world, "POST", CHAT, chat(stream=True))
    assert (status, json.loads(body)["error"]["code"]) == (502, "engine_unreachable")
    took = asyncio.get_running_loop().time() - began
    assert took >= wait_s if continuations else took < wait_s


async def test_an_engine_that_never_answers_is_504(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, times={"firstByte": "100ms"})

    async def hang(_seen, _writer):
        await asyncio.sleep(30)

    world.engines[0].script = hang
    status, _, body = await ask(world, "POST", CHAT, chat())
    assert (status, json.loads(body)["error"]["code"]) == (504, "engine_timeout")


def dies_after(events: int, tail: bytes = b""):
    async def script(_seen, writer):
        writer.write(STREAM_HEAD)
        for place in range(events):
            writer.write(chunk(event({"n": place})))
        if tail:
            writer.write(chunk(tail))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    return script


@pytest.mark.parametrize("tail", [b"", b'data: {"n": 2', b"data: half a \xf0\x9f"])
async def test_a_stream_that_breaks_ends_with_an_error_event_between_events(make_world, ask, tail):  # noqa: F811
    world = await make_world()
    for engine in world.engines:
        engine.script = dies_after(2, tail)
    status, headers, body = await ask(world, "POST", CHAT, chat(stream=True))
    events = [json.loads(part.removeprefix(b"data: ")) for part in body.split(b"\n\n") if part]
    assert status == 200
    assert [found.get("n") for found in events] == [0, 1, None]
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert sum(len(engine.seen) for engine in world.engines) == 1
    assert headers["transfer-encoding"] == "chunked"


async def test_the_official_client_raises_on_a_broken_stream(make_world):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.engines[0].script = dies_after(1)
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="base", messages=chat()["messages"], stream=True)
        with pytest.raises(openai.APIError, match="lost while it answered"):
            async for _ in stream:
                pass


async def test_events_cut_anywhere_arrive_byte_for_byte(make_world, ask):  # noqa: F811
    sent = b"".join(event({"text": "h\u00e9llo \U0001f600", "n": n}) for n in range(5)) + b"data: [DONE]\n\n"
    world = await make_world(pods={"base": 1})

    async def dribble(_seen, writer):
        writer.write(STREAM_HEAD)
        for start in range(0, len(sent), 7):
            writer.write(chunk(sent[start : start + 7]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    world.engines[0].script = dribble
    _, _, body = await ask(world, "POST", CHAT, chat(stream=True))
    assert body == sent


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_stops_the_engine_at_once(make_world, stream):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.engines[0].tokens, world.engines[0].pause = 1000, 0.01 if stream else 30.0
    body = json.dumps(chat(stream=stream)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (CHAT.encode(), len(body), body)
    )
    if stream:
        await reader.readuntil(b"data:")
    else:
        await world.until(lambda: world.engines[0].seen)
    writer.transport.abort()
    async with asyncio.timeout(1):
        await world.engines[0].gone.wait()
    inference = world.gateway.inference
    await world.until(lambda: inference.admission.running("base") == 0)
    assert world.gateway.router.ledger("base-0").running == 0


async def test_an_answer_larger_than_what_is_held_passes_through(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    large = b'"' + b"a" * (5 * 2**20) + b'"'

    async def answer(_seen, writer):
        writer.write(response(200, large))
        await writer.drain()

    world.engines[0].script = answer
    status, headers, body = await ask(world, "POST", CHAT, chat())
    assert (status, headers["content-length"]) == (200, str(len(large)))
    assert body == large


async def test_a_sick_pod_is_out_after_five_failures_and_comes_back(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 3})
    sick = world.engines[0]
    sick.script = reset
    for turn in range(40):
        status, _, _ = await ask(world, "POST", CHAT, chat(text=str(turn) * 300))
        assert status == 200
    assert len(sick.seen) == 5
    assert world.gateway.router.ledger("base-0").breaker.phase == "Open"
    sick.script = None
    ledger = world.gateway.router.ledger("base-0")
    ledger.breaker = msgspec.structs.replace(ledger.breaker, until=0.0)
    for turn in range(20):
        await ask(world, "POST", CHAT, chat(text=f"{turn} again" * 60))
    assert world.gateway.router.ledger("base-0").breaker.phase == "Closed"
    assert len(sick.seen) > 6


async def test_an_adapter_that_is_not_resident_is_loaded_first(make_world, ask):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")])
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat("pirate", text="same")) for _ in range(6)))
    assert [status for status, _, _ in answers] == [200] * 6
    loads = [seen for agent in world.agents for seen in agent.seen if seen.path == "/v1/adapters/pirate/load"]
    assert 1 <= len(loads) <= 2
    assert all(seen.method == "POST" for seen in loads)


async def test_requests_for_an_adapter_go_where_it_is_resident(make_world, ask):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")])
    world.engines[1].loaded.add("pirate")
    world.agents[1].changed()
    await world.until(lambda: world.pod("base-1").resident)
    for turn in range(6):
        _, headers, _ = await ask(world, "POST", CHAT, chat("pirate", text=f"{turn}" * 300))
        assert headers["x-sheaf-pod"] == "base-1"


async def test_an_adapter_that_just_vanished_is_loaded_again(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, adapters=[adapter("pirate", "base")])
    world.engines[0].loaded.add("pirate")
    world.agents[0].changed()
    await world.until(lambda: world.pod("base-0").resident)
    world.engines[0].loaded.clear()
    status, _, body = await ask(world, "POST", CHAT, chat("pirate"))
    assert status == 200, body
    assert [seen.path for seen in world.agents[0].seen if seen.method == "POST"] == ["/v1/adapters/pirate/load"]


async def test_an_adapter_that_cannot_be_loaded_is_503_and_the_base_still_answers(make_world, ask):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")])
    for agent in world.agents:
        agent.refusal = (422, {"error": {"code": "DigestMismatch", "message": "file:///secret/path differs"}})
    status, headers, body = await ask(world, "POST", CHAT, chat("pirate"))
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "adapter_unavailable")
    assert "DigestMismatch" in error["message"]
    assert "secret" not in error["message"]
    assert headers["retry-after"]
    assert (await ask(world, "POST", CHAT, chat("base")))[0] == 200


@pytest.mark.parametrize(("kind", "status"), [("application/octet-stream", 200), ("text/html", 502)])
async def test_bytes_that_an_engine_calls_so_are_an_answer_and_a_page_is_none(make_world, ask, kind, status):  # noqa: F811
    world = await make_world(pods={"base": 1})

    async def answer(_seen, writer):
        writer.write(response(200, b"\x00\xff\x01", kind))

    world.engines[0].script = answer
    assert (await ask(world, "POST", CHAT, chat()))[0] == status


async def test_a_refusal_in_words_that_nobody_can_read_comes_as_an_error_with_its_status(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})

    async def refuse(_seen, writer):
        writer.write(response(422, b"<html>no</html>", "text/html"))

    world.engines[0].script = refuse
    status, _, body = await ask(world, "POST", CHAT, chat())
    assert (status, json.loads(body)["error"]["code"]) == (422, "engine_refused")
    assert world.gateway.router.ledger("base-0").running == 0


async def test_a_stream_that_ends_without_its_end_is_said_to_be_broken(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})

    async def stop_early(_seen, writer):
        writer.write(STREAM_HEAD + chunk(event({"n": 0})) + b"0\r\n\r\n")

    world.engines[0].script = stop_early
    _, _, body = await ask(world, "POST", CHAT, chat(stream=True))
    events = [json.loads(part.removeprefix(b"data: ")) for part in body.split(b"\n\n") if part]
    assert [found.get("n") for found in events] == [0, None]
    assert events[-1]["error"]["code"] == "stream_interrupted"


async def test_an_answer_that_dribbles_is_given_up_in_time(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, times={"firstByte": "200ms"})

    async def dribble(_seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    world.engines[0].script = dribble
    status, _, body = await ask(world, "POST", CHAT, chat())
    assert (status, json.loads(body)["error"]["code"]) == (504, "engine_timeout")


async def test_a_sink_that_raises_ends_its_own_request_only(make_world, ask, monkeypatch):  # noqa: F811
    world = await make_world(pods={"base": 1})

    def fail(*_arguments):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("sheaf_gateway.api.call.find_usage", fail)
        await ask(world, "POST", CHAT, chat())
        await ask(world, "POST", CHAT, chat(stream=True))
    assert world.gateway.router.ledger("base-0").running == world.gateway.inference.admission.running("base") == 0
    assert (await ask(world, "POST", CHAT, chat()))[0] == 200
