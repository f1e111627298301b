"""A stream whose engine is lost goes on from another one, on real sockets; the books see one stream."""

import asyncio
import json
import time
from random import Random

import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk, response
from gateway_token_engine import TokenEngine, event, read

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ENDINGS = ["abort", "close", "end", "hang", "error"]


class Fleet:
    """Engines that answer with tokens; the n-th answer dies after `cuts[n]` bytes in the way of `endings[n]`."""

    def __init__(self, world, cuts, endings=("abort",), pause=0.0, most=1):
        self.world = world
        self.cuts = list(cuts)
        self.endings = list(endings) * len(self.cuts)
        self.answers = []
        self.pause = pause
        self.most = most
        for engine in world.engines:
            engine.script = self._script(engine)

    def _script(self, engine):
        async def script(seen, writer):
            number = len(self.answers)
            self.answers.append((engine.name, seen))
            events = TokenEngine(created=1 + number, most=self.most, merge=Random(number)).events(seen.path, seen.json)
            stream = b"".join(events)
            cut = self.cuts[number] if number < len(self.cuts) else None
            writer.write(STREAM_HEAD)
            data = stream if cut is None else stream[:cut]
            for start in range(0, len(data), 700):
                writer.write(chunk(data[start : start + 700]))
                await writer.drain()
                await asyncio.sleep(self.pause)
            if cut is None:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            else:
                await self._end(self.endings[number], writer)

        return script

    async def _end(self, ending, writer):
        await asyncio.sleep(0.02)
        if ending == "hang":
            await asyncio.sleep(30)
        elif ending == "error":
            writer.write(
                chunk(event({"error": {"message": "EngineDeadError", "type": "InternalServerError", "code": 500}}))
            )
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()
        elif ending == "end":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            writer.transport.abort() if ending == "abort" else writer.close()

    @property
    def names(self):
        return [name for name, _ in self.answers]


def plain(path=CHAT, **more):
    body = {"model": "base", "stream": True, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **more}
    return {**body, **({"messages": chat()["messages"]} if path == CHAT else {"prompt": "hello"})}


def whole(path, body):
    return read(b"".join(TokenEngine().events(path, {**body, "return_token_ids": None})))


def boundary(path, body, events):
    """Bytes of so many events as the first engine sends them."""
    return len(b"".join(TokenEngine().events(path, {**body, "return_token_ids": True})[:events]))


async def quiet(world):
    """Nothing is left on any book."""
    inference, router = world.gateway.inference, world.gateway.router
    await world.until(lambda: inference.admission.running("base") == 0)
    await world.until(lambda: all(ledger.running == 0 for ledger in router.ledgers.values()))
    assert inference.mending.purse.used == 0
    assert inference.mending.streams == {}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_lost_engine_is_not_noticed(make_world, ask, path, ending):  # noqa: F811
    world = await make_world(times={"stall": "200ms"})
    body = plain(path, stream_options={"include_usage": True})
    fleet = Fleet(world, [boundary(path, body, 9)], [ending])
    status, headers, got = await ask(world, "POST", path, body, {"x-request-id": "one"})
    assert status == 200
    assert read(got) == whole(path, body)
    assert len(set(fleet.names)) == 2
    assert headers["x-sheaf-pod"] == fleet.names[0]
    record = world.gateway.inference.records.get("one")
    assert [attempt.outcome for attempt in record.attempts][1:] == ["ok"]
    assert record.attempts[1].continues > 0
    assert (record.error, record.output_tokens) == (None, 40)
    await quiet(world)


@pytest.mark.parametrize("cut", [1, 150, 400, 1001, 2002, 3003])
async def test_a_cut_in_the_middle_of_anything_is_not_noticed(make_world, ask, cut):  # noqa: F811
    world = await make_world(pods={"base": 3})
    body = plain(stop="op", max_tokens=60)
    Fleet(world, [cut, cut // 2, cut])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body) | {"heads": read(got)["heads"]}
    assert len(read(got)["heads"]) == 1
    await quiet(world)


@pytest.mark.parametrize("back", [1, 2, 3])
async def test_nothing_is_asked_for_when_only_the_end_is_missing(make_world, ask, back):  # noqa: F811
    """After the last token: before [DONE], before the usage; and before the last token itself."""
    world = await make_world()
    body = plain(stream_options={"include_usage": True})
    events = TokenEngine().events(CHAT, body)
    fleet = Fleet(world, [boundary(CHAT, body, len(events) - back)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body)
    assert len(fleet.answers) == (2 if back == 3 else 1)
    await quiet(world)


async def test_token_ids_are_for_those_who_ask(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    fleet = Fleet(world, [])
    _, _, got = await ask(world, "POST", CHAT, plain())
    assert b'token_ids":[' not in got
    assert fleet.answers[0][1].json["return_token_ids"] is True
    _, _, got = await ask(world, "POST", CHAT, plain(return_token_ids=True))
    assert len(read(got)["tokens"]) == 40


async def test_a_continuation_asks_for_the_rest_only(make_world, ask):  # noqa: F811
    world = await make_world()
    body = plain(min_tokens=12, logit_bias={"3": 1}, user="me", stream_options={"include_usage": True})
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    await ask(world, "POST", CHAT, body)
    (_, first), (_, second) = fleet.answers
    asked = second.json
    assert second.path == TEXT
    assert len(asked["prompt"]) - len(TokenEngine().prompt(CHAT, first.json)) == 40 - asked["max_tokens"]
    assert asked["min_tokens"] == 12 - (40 - asked["max_tokens"])
    assert (asked["logit_bias"], asked["user"], asked["temperature"]) == ({"3": 1}, "me", 0)
    assert "messages" not in asked


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"n": 2}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "temperature": 1}, "tools"),
        ({"response_format": {"type": "json_object"}, "temperature": 1}, "structured_output"),
        ({"temperature": 1, "presence_penalty": 1}, "penalties"),
        ({"temperature": 1, "bad_words": ["x"]}, "parameter"),
        ({"temperature": 1, "stop": "a long stop string"}, "sampled_text_held_back"),
        ({"use_beam_search": True}, "beam_search"),
        ({"echo": True}, "echo"),
    ],
)
async def test_what_cannot_be_continued_rightly_ends_with_a_clear_error(make_world, ask, more, reason):  # noqa: F811
    world = await make_world()
    body = plain(**more)
    fleet = Fleet(world, [boundary(CHAT, body, 30)])
    _, _, got = await ask(world, "POST", CHAT, body)
    last = json.loads(got.split(b"\n\n")[-2].removeprefix(b"data: "))
    assert last["error"]["code"] == "stream_interrupted"
    assert len(fleet.answers) == 1
    counted = world.gateway.inference.metrics.registry.get_sample_value
    assert reason is None or counted("sheaf_gateway_streams_not_continued_total", {"reason": reason}) == 1
    await quiet(world)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"presence_penalty": 1},
        {"logprobs": True, "top_logprobs": 0},
    ],
)
async def test_greedy_generations_of_any_kind_are_repeated_and_compared(make_world, ask, more):  # noqa: F811
    world = await make_world()
    body = plain(**more)
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body)
    assert fleet.answers[1][1].path == CHAT
    assert fleet.answers[1][1].json.items() >= {**body, **more}.items()


async def test_an_engine_that_goes_on_otherwise_is_not_believed(make_world, ask):  # noqa: F811
    world = await make_world(limits={"maxContinuations": 2})
    body = plain(presence_penalty=1)
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    right = world.engines[0].script

    async def lie(seen, writer):
        if len(fleet.answers):
            seen.body = json.dumps({**seen.json, "messages": [{"role": "user", "content": "other"}]}).encode()
        await right(seen, writer)

    for engine in world.engines:
        engine.script = lie
    _, _, got = await ask(world, "POST", CHAT, body)
    assert b"stream_interrupted" in got
    assert len(fleet.answers) == 3
    record = list(world.gateway.inference.records._records.values())[-1]
    assert [attempt.outcome for attempt in record.attempts][1:] == ["not_the_same", "not_the_same"]
    await quiet(world)


async def test_a_client_that_went_away_is_not_continued(make_world):  # noqa: F811
    world = await make_world()
    body = json.dumps(plain(max_tokens=400)).encode()
    fleet = Fleet(world, [5000], ["hang"])
    _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (CHAT.encode(), len(body), body)
    )
    await world.until(lambda: world.gateway.inference.mending.streams)
    writer.transport.abort()
    await quiet(world)
    assert len(fleet.answers) == 1


async def test_a_stream_waits_for_its_only_pod_to_come_back(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    body = plain()
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body)
    assert fleet.names == ["base-0", "base-0"]


async def test_without_a_pod_the_wait_is_bounded(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, times={"continuation": "300ms"})
    body = plain()
    Fleet(world, [boundary(CHAT, body, 9)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert b"stream_interrupted" in got
    await quiet(world)


async def test_an_engine_that_refuses_the_rest_ends_the_stream(make_world, ask):  # noqa: F811
    world = await make_world()
    body = plain()
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    right = world.engines[0].script

    async def refuse(seen, writer):
        if fleet.answers:
            writer.write(response(400, b'{"error":{"message":"no"}}'))
        else:
            await right(seen, writer)

    for engine in world.engines:
        engine.script = refuse
    _, _, got = await ask(world, "POST", CHAT, body)
    assert b"stream_interrupted" in got
    await quiet(world)


async def test_an_adapter_is_loaded_where_its_stream_goes_on(make_world, ask):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")])
    world.engines[0].loaded.add("pirate")
    world.agents[0].changed()
    await world.until(lambda: world.pod("base-0").resident)
    body = plain() | {"model": "pirate"}
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body)
    assert fleet.names == ["base-0", "base-1"]
    assert world.engines[1].loaded == {"pirate"}


async def test_a_journal_beyond_its_bound_is_given_up(make_world, ask):  # noqa: F811
    world = await make_world(limits={"maxJournal": "2Ki"})
    body = plain(max_tokens=400)
    Fleet(world, [boundary(CHAT, body, 390)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert b"stream_interrupted" in got
    counted = world.gateway.inference.metrics.registry.get_sample_value
    assert counted("sheaf_gateway_streams_not_continued_total", {"reason": "journal_full"}) == 1


async def test_continuing_can_be_switched_off(make_world, ask):  # noqa: F811
    world = await make_world(limits={"maxContinuations": 0})
    body = plain()
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert b"stream_interrupted" in got
    assert "return_token_ids" not in fleet.answers[0][1].json


async def test_a_storm_is_spread_out_and_nothing_breaks(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 3}, limits={"startingPerPod": 2})
    body = plain(max_tokens=80)
    fleet = Fleet(world, [boundary(CHAT, body, 20)] * 30, pause=0.001)
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, body) for _ in range(30)))
    assert all(read(got) == whole(CHAT, body) | {"heads": read(got)["heads"]} for _, _, got in answers)
    assert len(fleet.answers) >= 60
    await quiet(world)


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
