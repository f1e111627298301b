"""Responses that engines keep: who names one reaches the pod that has it, or learns at once that nobody has."""

import asyncio
import json
import random

import pytest
from gateway_fixtures import ask, make_world, pod_of  # noqa: F401
from gateway_raw_servers import STREAM_HEAD, chunk, response
from gateway_token_engine import event
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.api.response_ids import fresh, holder, named
from sheaf_gateway.fleet.view import Pod

PATH = "/v1/responses"
KEYS = """
keys:
  - {name: one, tenant: gold, sha256: 7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed}
  - {name: two, tenant: free, sha256: 3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3, models: [base]}
  - {name: far, tenant: gold, sha256: 8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f, models: [other]}
"""
GOLD, FREE, FAR = ({"authorization": f"Bearer {key}"} for key in ("one", "two", "three"))
GONE = {"type": "invalid_request_error", "param": "previous_response_id", "code": "previous_response_not_found"}


class Keeping:
    """What an engine that keeps responses does, as vLLM does it."""

    def __init__(self, engine) -> None:
        self.engine, self.kept = engine, {}
        engine.script = self.answer

    async def answer(self, seen, writer):
        if seen.method == "POST" and seen.path == PATH:
            await self._create(seen, writer)
        else:
            name = seen.path.partition("?")[0].removeprefix(PATH + "/").removesuffix("/cancel")
            writer.write(response(200, json.dumps(self.kept[name]).encode()) if name in self.kept else unknown(name))
        await writer.drain()

    async def _create(self, seen, writer):
        body = seen.json
        before = body.get("previous_response_id")
        if before is not None and before not in self.kept:
            writer.write(unknown(before))
            return
        history = [*(self.kept[before]["history"] if before else []), body["input"]]
        made = {"id": body["request_id"], "object": "response", "history": history, "on": self.engine.name}
        self.kept[made["id"]] = made
        if body.get("stream"):
            writer.write(STREAM_HEAD + chunk(b"event: response.created\n" + event({"response": made})) + b"0\r\n\r\n")
        else:
            writer.write(response(200, json.dumps(made).encode()))


def unknown(name):
    error = {"message": f"Response with id '{name}' not found.", "type": "invalid_request_error", "code": 404}
    return response(404, json.dumps({"error": {**error, "param": "response_id"}}).encode())


@pytest.fixture
async def kept(make_world, ask):  # noqa: F811
    """`say(input, previous, **more)` gives status and document; every engine keeps what it answers."""

    async def make(pods=4, **config):
        world = await make_world(pods={"base": pods, "other": 1}, agents=False, **config)
        keeping = [Keeping(engine) for engine in world.engines]

        async def say(text, previous=None, headers=None, **more):
            body = {"model": "base", "input": text, **more}
            body |= {"previous_response_id": previous} if previous else {}
            status, _, got = await ask(world, "POST", PATH, body, headers)
            data = got.partition(b"data: ")[2] if b"data: " in got else got
            found = json.loads(data)
            return status, found.get("response", found)

        return world, keeping, say

    return make


def error(document):
    return {name: document["error"][name] for name in GONE}


async def test_a_conversation_by_ids_stays_with_the_pod_that_keeps_it(kept):
    _, keeping, say = await kept()
    talks = [await say(f"{number}") for number in range(6)]
    assert len({made["on"] for _, made in talks}) > 1
    order = random.Random(1)
    last = [made for _, made in talks]
    for turn in range(24):
        place = order.randrange(6)
        status, made = await say(f"turn {turn}", last[place]["id"], stream=bool(turn % 2))
        assert status == 200
        assert made["on"] == last[place]["on"]
        assert made["history"] == [*last[place]["history"], f"turn {turn}"]
        last[place] = made
    assert sum(len(one.kept) for one in keeping) == 30


async def test_what_no_pod_keeps_is_not_found_and_no_engine_is_asked(kept):
    world, _, say = await kept()
    status, made = await say("hello")
    asked = sum(len(engine.seen) for engine in world.engines)
    altered = made["id"][:-1] + ("0" if made["id"][-1] != "0" else "1")
    for name in ("resp_123", altered, "x" * 300):
        status, document = await say("more", name)
        assert (status, error(document)) == (404, GONE)
        shown = name if len(name) < 65 else name[:64] + "…"
        assert document["error"]["message"] == f"Previous response with id '{shown}' not found."
    assert sum(len(engine.seen) for engine in world.engines) == asked


@pytest.mark.parametrize("how", ["gone", "draining"])
async def test_a_pod_that_goes_takes_its_responses_along(kept, how):
    world, _, say = await kept(pods=3)
    _, made = await say("hello")
    pods = world.snapshot["pods"]
    entry = next(pod for pod in pods if pod["name"] == made["on"])
    if how == "gone":
        pods.remove(entry)
    else:
        entry["draining"] = True
    world.write()
    await world.settled()
    status, document = await say("more", made["id"])
    assert (status, error(document)) == (404, GONE)


async def test_an_engine_that_started_again_has_forgotten(kept, ask):  # noqa: F811
    world, keeping, say = await kept(pods=1)
    _, made = await say("hello")
    keeping[0].kept.clear()
    assert json.loads((await ask(world, "GET", f"{PATH}/{made['id']}"))[2])["error"]["code"] == "response_not_found"
    status, document = await say("more", made["id"])
    assert (status, error(document)) == (404, GONE)


async def test_a_pod_that_fails_is_not_replaced_by_one_without_the_history(kept):
    world, _, say = await kept(pods=3)
    _, made = await say("hello")
    asked = {engine.name: len(engine.seen) for engine in world.engines}
    await next(engine for engine in world.engines if engine.name == made["on"]).close()
    status, document = await say("more", made["id"])
    assert status == 502
    assert document["error"]["code"] == "engine_unreachable"
    assert {engine.name: len(engine.seen) for engine in world.engines} == asked


async def test_a_pod_that_goes_while_a_request_waits_for_it_is_told(kept):
    world, _, say = await kept(pods=2, limits={"maxInflightPerPod": 1})
    _, made = await say("hello")
    holding, going = asyncio.Event(), world.engines

    async def hold(seen, writer):
        await holding.wait()
        writer.write(response(200, json.dumps({"id": seen.json["request_id"], "history": [], "on": "x"}).encode()))
        await writer.drain()

    for engine in going:
        engine.script = hold
    busy = [asyncio.create_task(say("wait")) for _ in range(2)]
    await world.until(lambda: world.gateway.router.ledgers["base-0"].running == 1)
    await world.until(lambda: world.gateway.router.ledgers["base-1"].running == 1)
    waiting = asyncio.create_task(say("more", made["id"]))
    await world.until(lambda: world.gateway.inference.admission.waiting("base") == 1)
    next(pod for pod in world.snapshot["pods"] if pod["name"] == made["on"])["draining"] = True
    world.write()
    await world.settled()
    holding.set()
    status, document = await waiting
    assert (status, error(document)) == (404, GONE)
    assert {status for status, _ in await asyncio.gather(*busy)} == {200}


async def test_ids_of_one_tenant_are_none_to_another(kept, ask):  # noqa: F811
    world, keeping, say = await kept(keys=KEYS)
    _, made = await say("secret", headers=GOLD, request_id="mine")
    assert made["id"] != "mine"
    status, document = await say("tell me", made["id"], headers=FREE)
    assert (status, error(document)) == (404, GONE)
    assert (await say("more", made["id"], headers=GOLD))[0] == 200
    for headers in (FREE, FAR):
        status, _, got = await ask(world, "GET", f"{PATH}/{made['id']}", headers=headers)
        assert status == 404
        assert json.loads(got)["error"]["code"] == "response_not_found"
    await say("mine now", headers=FREE, request_id=made["id"])
    assert [one.kept[made["id"]]["history"] for one in keeping if made["id"] in one.kept] == [["secret"]]
    assert (await ask(world, "GET", f"{PATH}/{made['id']}"))[0] == 401


async def test_a_kept_response_is_looked_at_and_cancelled_where_it_is(kept, ask):  # noqa: F811
    world, _, say = await kept()
    for number in range(6):
        _, made = await say(f"{number}")
        status, headers, got = await ask(world, "GET", f"{PATH}/{made['id']}?starting_after=2&secret=1")
        assert (status, json.loads(got), headers["x-sheaf-pod"]) == (200, made, made["on"])
        status, headers, got = await ask(world, "POST", f"{PATH}/{made['id']}/cancel")
        assert (status, json.loads(got)["id"], headers["x-sheaf-pod"]) == (200, made["id"], made["on"])
        seen = next(engine for engine in world.engines if engine.name == made["on"]).seen
        assert [one.path.partition("?")[2] for one in seen[-2:]] == ["starting_after=2", ""]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/resp_1", 404, "response_not_found"),
        ("POST", "/resp_1/cancel", 404, "response_not_found"),
        ("DELETE", "/resp_1", 405, "method_not_allowed"),
        ("GET", "/resp_1/cancel", 405, "method_not_allowed"),
        ("GET", "/resp_1/input_items", 404, "not_found"),
        ("GET", "/a/../../metrics", 404, "not_found"),
    ],
)
async def test_what_is_not_there_is_told(kept, ask, method, path, status, code):  # noqa: F811
    world, _, _ = await kept(pods=1)
    found, _, got = await ask(world, method, PATH + path)
    assert (found, json.loads(got)["error"]["code"]) == (status, code)
    assert not world.engines[0].seen


async def test_a_kept_stream_is_followed(kept, ask):  # noqa: F811
    world, _, say = await kept(pods=1)
    _, made = await say("hello")
    events = [b"event: response.x\n" + event({"type": "response.x", "n": number}) for number in range(4)]

    async def follow(_seen, writer):
        writer.write(STREAM_HEAD)
        for each in events:
            writer.write(chunk(each[:9]) + chunk(each[9:]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    world.engines[0].script = follow
    status, headers, got = await ask(world, "GET", f"{PATH}/{made['id']}?stream=true")
    assert (status, got) == (200, b"".join(events))
    assert headers["content-type"] == "text/event-stream"


FAILURES = [
    (response(404, b'{"error": {"message": "it was never here", "code": 404}}'), 404, b"response_not_found"),
    (response(500, b'{"error": {}}'), 502, b"engine_error"),
    (response(200, b"<html>"), 502, b"engine_error"),
    (response(403, b"<html>"), 403, b"engine_refused"),
    (response(200, b'{"a": "' + b"b" * (17 * 2**20) + b'"}'), 502, b"engine_error"),
    (STREAM_HEAD + chunk(b"<html>") + b"0\r\n\r\n", 502, b"engine_error"),
    (STREAM_HEAD + b"0\r\n\r\n", 502, b"engine_error"),
    (STREAM_HEAD + chunk(b'data: {"a": 1}\n\n') + chunk(b"data: <\n\n"), 200, b"stream_interrupted"),
    (STREAM_HEAD + chunk(b'data: {"a": 1}\n\n'), 200, b"stream_interrupted"),
    (b"", 502, b"engine_unreachable"),
]


@pytest.mark.parametrize(("said", "status", "code"), FAILURES)
async def test_whatever_else_an_engine_says_does_not_pass(kept, ask, said, status, code):  # noqa: F811
    world, _, say = await kept(pods=1)
    _, made = await say("hello")

    async def answer(_seen, writer):
        writer.write(said)
        await writer.drain()
        writer.close()

    world.engines[0].script = answer
    found, _, got = await ask(world, "GET", f"{PATH}/{made['id']}")
    assert found == status
    assert code in got
    assert b"<html>" not in got


async def test_a_decision_says_that_one_pod_alone_would_do(kept, ask):  # noqa: F811
    world, _, say = await kept()
    _, made = await say("hello")
    await ask(world, "POST", PATH, {"model": "base", "input": "b", "previous_response_id": made["id"]},
              {"x-request-id": "it"})  # fmt: skip
    record = world.gateway.inference.records.get("it")
    assert record.held_by == made["on"]
    assert [one.pod for one in record.attempts[0].decision.candidates] == [made["on"]]


PODS = [Pod(name=f"p{place}", model="m", engine_url="http://e") for place in range(4)]
salts = st.text("0123456789abcdef", max_size=64)


@given(st.sampled_from(PODS), salts, salts, st.integers(0, 52), st.characters())
def test_an_id_finds_its_pod_for_its_tenant_and_nothing_else_does(pod, salt, other, place, letter):
    made = fresh(pod.name, salt)
    assert holder(made, salt, PODS) == pod
    assert holder(made, salt, [one for one in PODS if one is not pod]) is None
    assert (holder(made, other, PODS) is None) == (salt != other)
    changed = made[:place] + letter + made[place + 1 :]
    assert changed == made or holder(changed, salt, PODS) is None


@given(st.dictionaries(st.text(), st.integers(), min_size=1), st.text(" \n", max_size=3))
def test_the_id_that_the_gateway_gives_counts(document, rest):
    raw = json.dumps({**document, "request_id": "x"}).encode() + rest.encode()
    assert json.loads(named(raw, "resp_1")) == {**document, "request_id": "resp_1"}
