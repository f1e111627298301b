"""A replacement is warmed with what was hot on the pod that goes, before it takes requests and never for long."""

import asyncio
import hashlib
import json

import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401
from gateway_raw_servers import response

CHAT = "/v1/chat/completions"
SYSTEM = "You answer in verse. " * 150


def long(text: str, served: str = "base", **more) -> dict:
    return chat(served, **more) | {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    }


def warmed(world, place: int) -> list[dict]:
    seen = world.engines[place].seen
    return [one.json for one in seen if one.path == CHAT and one.json.get("max_tokens") == 1]


async def heated(make_world, ask, count=6, headers=None, served="base", **given):  # noqa: F811
    """A fleet whose third pod is not ready yet, and the pod that has had the long prompts."""
    world = await make_world(pods={"base": 3}, agents=given.pop("agents", False), **given)
    ready(world, 2, ready=False, uid="v")
    await world.settled()
    asked = []
    for turn in range(count):
        status, found, body = await ask(world, "POST", CHAT, long(f"turn {turn}", served), headers)
        assert status == 200, body
        asked.append(found["x-sheaf-pod"])
    return world, int(asked[-1].removeprefix("base-"))


def ready(world, place: int, **state) -> None:
    world.snapshot["pods"][place].update(state)
    world.write()


async def over(world) -> None:
    warming = world.gateway.inference.warming
    await world.until(lambda: world.pod("base-2").ready and not warming.tasks)


async def test_the_replacement_computes_the_hottest_prefix_before_it_takes_a_request(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(seen, writer):
        begun.set()
        await goes_on.wait()
        writer.write(response(200, json.dumps(world.engines[2].document(seen, "base")).encode()))

    world.engines[2].script = slow
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await asyncio.wait_for(begun.wait(), 5)
    assert not world.pod("base-2").ready
    _, headers, _ = await ask(world, "POST", CHAT, long("meanwhile"))
    assert headers["x-sheaf-pod"] == f"base-{1 - hot}"
    goes_on.set()
    await over(world)
    (sent,) = warmed(world, 2)
    assert sent["messages"][0]["content"] == SYSTEM
    assert (sent["stream"], sent["model"]) == (False, "base")
    _, _, told = await ask(world, "GET", "/metrics")
    assert b'sheaf_gateway_warmed_prefixes_total{result="warmed"} 1.0' in told
    assert b"sheaf_gateway_pods_held 0.0" in told
    _, _, record = await ask(world, "GET", "/sheaf/v1/decisions/warm-base-2-1")
    (attempt,) = json.loads(record)["attempts"]
    assert (attempt["decision"]["pod"], attempt["outcome"]) == ("base-2", "ok")


async def test_the_next_request_is_expected_to_hit_there(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    ready(world, hot, draining=True)
    ready(world, 1 - hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: warmed(world, 2))
    await over(world)
    _, headers, _ = await ask(world, "POST", CHAT, long("after", max_tokens=9), {"x-request-id": "after"})
    assert headers["x-sheaf-pod"] == "base-2"
    _, _, record = await ask(world, "GET", "/sheaf/v1/decisions/after")
    assert json.loads(record)["attempts"][0]["expected_cached"] > 700


async def test_a_pod_that_comes_back_alone_takes_requests_at_once_and_is_warmed_beside_them(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    never = asyncio.Event()

    async def hang(seen, writer):
        await (never.wait() if seen.json.get("max_tokens") == 1 else asyncio.sleep(0))
        writer.write(response(200, json.dumps(world.engines[2].document(seen, "base")).encode()))

    world.engines[2].script = hang
    world.snapshot["pods"] = [world.snapshot["pods"][2]]
    ready(world, 0, ready=True)
    await world.until(lambda: warmed(world, 2))
    assert world.pod("base-2").ready
    status, headers, _ = await ask(world, "POST", CHAT, long("now"))
    assert (status, headers["x-sheaf-pod"]) == (200, "base-2")
    assert world.gateway.inference.warming.tasks, hot


async def test_the_same_pod_under_another_uid_is_its_own_replacement(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    ready(world, hot, uid="another", ready=False)
    await world.until(lambda: not world.pod(f"base-{hot}").ready)
    ready(world, hot, ready=True)
    await world.until(lambda: warmed(world, hot))
    await world.until(lambda: not world.gateway.inference.warming.tasks)
    assert world.pod(f"base-{hot}").ready


async def test_it_can_be_turned_off(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask, limits={"maxWarmed": 0})
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: world.pod("base-2").ready)
    await asyncio.sleep(0.1)
    assert warmed(world, 2) == []


async def test_prompts_that_nobody_shares_warm_nothing(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask, count=1)
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: world.pod("base-2").ready)
    await asyncio.sleep(0.1)
    assert warmed(world, 2) == []


async def fail(_seen, writer):
    writer.write(response(500, b"{}"))


async def abort(_seen, writer):
    writer.transport.abort()


async def hang(_seen, _writer):
    await asyncio.sleep(30)


@pytest.mark.parametrize(("fault", "result"), [(fail, "failed"), (abort, "failed"), (hang, "late")])
async def test_an_engine_that_does_not_answer_is_let_go_in_time(make_world, ask, fault, result):  # noqa: F811
    world, hot = await heated(make_world, ask, times={"warming": "300ms"})
    world.engines[2].script = fault
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: world.engines[2].seen)
    await over(world)
    _, _, told = await ask(world, "GET", "/metrics")
    assert f'sheaf_gateway_warmed_prefixes_total{{result="{result}"}} 1.0'.encode() in told


async def test_a_replacement_that_goes_while_it_is_warmed_leaves_nothing_behind(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    world.engines[2].script = hang
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: warmed(world, 2))
    world.snapshot["pods"].pop(2)
    world.write()
    await world.settled()
    await world.until(lambda: not world.gateway.inference.warming.tasks)
    assert not world.gateway.store.held
    status, _, _ = await ask(world, "POST", CHAT, long("after"))
    assert status == 200


async def test_tenants_caches_stay_apart(make_world, ask):  # noqa: F811
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    keys = json.dumps(
        {"keys": [{"name": n, "tenant": n, "sha256": d, "scopes": ["inference"]} for n, d in digests.items()]}
    )
    world, hot = await heated(make_world, ask, keys=keys, headers={"authorization": "Bearer one"})
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: warmed(world, 2))
    await over(world)
    salts = {one.json["cache_salt"] for one in world.engines[hot].seen if one.path == CHAT}
    assert {one["cache_salt"] for one in warmed(world, 2)} == salts
    assert len(salts) == 1


async def test_an_adapter_that_was_hot_is_loaded_first(make_world, ask):  # noqa: F811
    pirate = adapter("pirate", "base")
    world, hot = await heated(make_world, ask, agents=True, served="pirate", adapters=[pirate])
    assert "pirate" not in world.engines[2].loaded
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: warmed(world, 2))
    assert "pirate" in world.engines[2].loaded
    await over(world)


async def test_an_adapter_that_is_gone_is_left_out(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask, agents=True, served="pirate", adapters=[adapter("pirate", "base")])
    world.snapshot["adapters"] = []
    ready(world, hot, draining=True)
    await world.settled()
    ready(world, 2, ready=True)
    await over(world)
    _, _, told = await ask(world, "GET", "/metrics")
    assert b'sheaf_gateway_warmed_prefixes_total{result="gone"} 1.0' in told
    assert warmed(world, 2) == []


async def test_a_replacement_that_starts_anew_while_it_is_warmed_is_warmed_again(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    world.engines[2].script = hang
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: warmed(world, 2))
    world.engines[2].script = None
    before = len(warmed(world, 2))
    ready(world, 2, uid="again")
    await world.until(lambda: len(warmed(world, 2)) > before)
    await over(world)


def hang_when_warmed(world):
    async def script(seen, writer):
        if seen.json.get("max_tokens") == 1:
            await hang(seen, writer)
        writer.write(response(200, json.dumps(world.engines[2].document(seen, "base")).encode()))

    return script


async def test_the_last_pod_left_takes_requests_though_it_is_being_warmed(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    world.engines[2].script = hang_when_warmed(world)
    ready(world, hot, draining=True)
    ready(world, 2, ready=True)
    await world.until(lambda: warmed(world, 2))
    assert not world.pod("base-2").ready
    world.snapshot["pods"].pop(hot)
    world.write()
    await world.settled()
    await world.engines[1 - hot].close()
    status, headers, body = await ask(world, "POST", "/v1/responses", {"model": "base", "input": "hi"})
    assert (status, headers["x-sheaf-pod"]) == (200, "base-2"), body


async def test_what_nobody_came_for_is_forgotten(make_world, ask):  # noqa: F811
    world, hot = await heated(make_world, ask)
    warming = world.gateway.inference.warming
    ready(world, hot, draining=True)
    await world.until(lambda: warming._left)
    warming._now = lambda: 1e9
    ready(world, 1 - hot, uid="another")
    await world.until(lambda: not warming._left)
