"""A stream whose engine is lost goes on from another one, on real sockets; the books see one stream."""

import asyncio
import hashlib
import json

import pytest
from gateway_dying_fleet import CHAT, TEXT, Fleet, boundary, plain, quiet, whole
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401
from gateway_raw_servers import response
from gateway_token_engine import TokenEngine, read

ENDINGS = ["abort", "close", "end", "hang", "error"]


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


@pytest.mark.parametrize(
    "more", [{"messages": [{"role": "user", "content": "return_token_ids"}]}, {"return_token_ids": False}]
)
async def test_who_only_mentions_token_ids_or_wants_none_has_an_unbroken_stream(make_world, ask, more):  # noqa: F811
    world = await make_world()
    body = {**plain(), **more}
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    _, _, got = await ask(world, "POST", CHAT, body)
    assert read(got) == whole(CHAT, body)
    assert len(fleet.answers) == 2
    assert b'token_ids":[' not in got


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


@pytest.mark.parametrize("tenant", ["", "gold"])
async def test_the_rest_is_cached_for_whom_the_beginning_was(make_world, ask, tenant):  # noqa: F811
    entry = {"name": "ci", "tenant": tenant, "sha256": hashlib.sha256(b"sk").hexdigest()}
    world = await make_world(keys=json.dumps({"keys": [entry]}) if tenant else None)
    body = plain(cache_salt="of-the-caller")
    fleet = Fleet(world, [boundary(CHAT, body, 9)])
    await ask(world, "POST", CHAT, body, {"authorization": "Bearer sk"})
    (_, first), (_, second) = fleet.answers
    assert first.json["cache_salt"] == second.json["cache_salt"]
    assert (second.json["cache_salt"] == "of-the-caller") == (not tenant)


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
