"""Limits shared through a real Redis: two gateways count as one, and Redis may die at any moment."""

import asyncio
import hashlib
import json
import time

import pytest
from gateway_fixtures import ask, chat, make_world, model, slo  # noqa: F401
from gateway_redis import NEEDED, make_limits, prefix, scope, server, url  # noqa: F401
from redis.asyncio import Redis
from sheaf_gateway.api.shared import LimitsUnavailable, bounded
from sheaf_gateway.fleet.view import Rate

CHAT = "/v1/chat/completions"

pytestmark = NEEDED


async def test_two_gateways_share_requests_per_minute(url, prefix, make_limits):  # noqa: F811
    gateways = [make_limits(url, prefix=prefix) for _ in range(2)]
    bound = scope(requests_per_minute=5)
    answers = [await gateways[n % 2].charge(str(n), bound, 0.0) for n in range(6)]
    assert answers[:5] == [None] * 5
    assert (answers[5].limit, answers[5].bound, answers[5].scope) == ("requests_per_minute", 5, "tenant `a`")
    assert 11.0 < answers[5].retry_after <= 12.0
    assert await gateways[0].charge("other", scope("tenant `b`", requests_per_minute=5), 0.0) is None


async def test_tokens_are_corrected_and_debt_is_waited_for(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(tokens_per_minute=600)
    assert [await limits.charge(lease, bound, tokens) for lease, tokens in (("0", 0.0), ("1", 100.0))] == [None, None]
    limits.settle("1", bound, 800.0, refund=False)
    await asyncio.gather(*limits._tasks)
    refused = await limits.charge("2", bound, 100.0)
    assert refused.limit == "tokens_per_minute"
    assert refused.retry_after == pytest.approx(40.0, abs=0.5)
    limits.settle("0", bound, -800.0, refund=False)
    await asyncio.gather(*limits._tasks)
    assert await limits.charge("3", bound, 5000.0) is not None
    assert await limits.charge("4", bound, 400.0) is None


async def test_what_is_under_way_counts_until_it_is_over_and_dead_gateways_leases_end(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(max_concurrent=2)
    assert [await limits.charge(str(n), bound, 0.0) for n in range(2)] == [None, None]
    refused = await limits.charge("2", bound, 0.0)
    assert (refused.limit, refused.retry_after) == ("max_concurrent", 1.0)
    limits.settle("0", bound, 0.0, refund=False)
    await asyncio.gather(*limits._tasks)
    assert await limits.charge("3", bound, 0.0) is None
    key = limits._keys(bound, "0")[1]
    client = Redis.from_url(url)
    assert 0 < await client.pttl(key) <= 900_000
    await client.zadd(key, dict.fromkeys(await client.zrange(key, 0, -1), 1.0))
    await client.aclose()
    assert await limits.charge("4", bound, 0.0) is None


async def test_all_scopes_are_charged_or_none(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    both = (*scope("key `k`", requests_per_minute=10), *scope("tenant `t`", requests_per_minute=1))
    assert await limits.charge("first", both, 0.0) is None
    for number in range(20):
        refused = await limits.charge(str(number), both, 0.0)
        assert refused.scope == "tenant `t`"
    assert [await limits.charge(str(n), both[:1], 0.0) for n in range(9)] == [None] * 9
    assert await limits.charge("x", both[:1], 0.0) is not None


async def test_a_request_that_was_never_let_in_is_given_back_whole(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(requests_per_minute=1, tokens_per_minute=100, max_concurrent=1)
    for number in range(5):
        assert await limits.charge(str(number), bound, 100.0) is None
        limits.settle(str(number), bound, -100.0, refund=True)
        await asyncio.gather(*limits._tasks)


async def test_every_key_expires_by_itself(url, prefix, make_limits):  # noqa: F811
    limits = make_limits(url, prefix=prefix)
    bound = scope(requests_per_minute=60, tokens_per_minute=600, max_concurrent=5)
    await limits.charge("1", bound, 300.0)
    client = Redis.from_url(url)
    keys = [key async for key in client.scan_iter(match=f"{{{prefix}}}:*")]
    ends = [await client.pttl(key) for key in keys]
    await client.aclose()
    assert len(keys) == 3
    assert all(0 < end <= 3_600_000 for end in ends)
    assert min(ends) <= 31_000


def test_scopes_that_bound_nothing_are_not_asked_for():
    assert bounded((*scope("a"), *scope("b", max_concurrent=1))) == scope("b", max_concurrent=1)


async def test_while_redis_is_away_nobody_waits_for_it_and_it_is_found_again(server, prefix, make_limits):  # noqa: F811
    limits = make_limits(server.url, prefix=prefix)
    bound = scope(requests_per_minute=1000)
    assert await limits.charge("1", bound, 0.0) is None
    await server.kill()
    started = time.monotonic()
    for number in range(200):
        with pytest.raises(LimitsUnavailable):
            await limits.charge(str(number), bound, 0.0)
    assert time.monotonic() - started < 5.0
    assert limits.failures == 1
    limits.settle("1", bound, 0.0, refund=False)
    await server.start()
    limits._away_until = time.monotonic()
    assert await limits.charge("2", bound, 0.0) is None
    assert limits._away_until == 0.0


def entry(name: str, **limits) -> str:
    digest = hashlib.sha256(f"k-{name}".encode()).hexdigest()
    return f"  - {json.dumps({'name': name, 'tenant': name, 'sha256': digest, 'limits': limits})}\n"


def bearer(name: str) -> dict:
    return {"authorization": f"Bearer k-{name}"}


@pytest.fixture
async def limited(make_world, prefix, make_limits):  # noqa: F811
    """A gateway whose key `a` may ask five times a minute, with shared limits."""

    async def make(url: str, **options):  # noqa: F811
        keys = "keys:\n" + entry("a", requestsPerMinute=5, tokensPerMinute=100_000, maxConcurrent=4) + entry("free")
        spec = {"models": [model("base", sloRef={"name": "chat"})], "slos": [slo("chat")]}
        world = await make_world(pods={"base": 1}, keys=keys, **spec)
        world.gateway.inference.shared = make_limits(url, prefix=prefix, timeout_s=2.0, **options)
        return world

    return make


async def test_a_gateway_asks_the_shared_limits_and_settles_with_them(limited, url, ask):  # noqa: F811
    world = await limited(url)
    answers = [await ask(world, "POST", CHAT, chat(), bearer("a")) for _ in range(6)]
    assert [status for status, _, _ in answers] == [200] * 5 + [429]
    refused = answers[5]
    assert json.loads(refused[2])["error"]["code"] == "rate_limit_exceeded"
    assert refused[1]["x-sheaf-reason"] == "rate_limit_exceeded; limit=requests_per_minute"
    assert int(refused[1]["retry-after"]) == 12
    assert len(world.gateway.inference.admission.limits) == 0
    shared = world.gateway.inference.shared
    await asyncio.gather(*shared._tasks)
    key = next(key for key in shared._keys((("key `a`", Rate()),), "") if "lease" in key)
    client = Redis.from_url(url)
    assert await client.zcard(key) == 0
    await client.aclose()
    assert (await ask(world, "POST", CHAT, chat(), bearer("free")))[0] == 200


async def test_a_refusal_by_the_queue_is_not_charged(limited, url, ask):  # noqa: F811
    world = await limited(url)
    world.snapshot["pods"][0]["ready"] = False
    world.snapshot["models"][0]["spec"]["replicas"] = 0
    world.snapshot["pods"], kept = [], world.snapshot["pods"]
    world.write()
    await world.settled()
    for _ in range(8):
        status, _, body = await ask(world, "POST", CHAT, chat(), bearer("a"))
        assert (status, json.loads(body)["error"]["code"]) == (503, "model_at_zero")
        await asyncio.gather(*world.gateway.inference.shared._tasks)
    world.snapshot["pods"] = [{**kept[0], "ready": True}]
    world.write()
    await world.settled()
    assert (await ask(world, "POST", CHAT, chat(), bearer("a")))[0] == 200


async def test_a_client_that_leaves_while_the_limits_are_asked_is_given_its_charge_back(limited, server, ask):  # noqa: F811
    world = await limited(server.url)
    shared, held = world.gateway.inference.shared, asyncio.Event()
    charge = shared.charge

    async def slow(*arguments):
        answer = await charge(*arguments)
        await held.wait()
        return answer

    shared.charge = slow
    body = json.dumps(chat()).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k-a\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    records = world.gateway.inference.records
    await world.until(lambda: len(records) == 1)
    writer.transport.abort()
    await world.until(lambda: next(iter(records._records.values())).status == 499)
    held.set()
    shared.charge = charge
    await asyncio.sleep(0.02)
    await asyncio.gather(*shared._tasks)
    assert [(await ask(world, "POST", CHAT, chat(), bearer("a")))[0] for _ in range(6)] == [200] * 5 + [429]
    assert len(world.engines[0].seen) == 5


@pytest.mark.parametrize("fail_open", [True, False])
async def test_redis_killed_under_load_lets_in_or_refuses_as_configured(limited, server, ask, fail_open):  # noqa: F811
    world = await limited(server.url, fail_open=fail_open)
    world.engines[0].pause = 0.01
    answers: list[tuple[int, dict, bytes]] = []

    async def client() -> None:
        for _ in range(12):
            answer = await ask(world, "POST", CHAT, chat(), bearer("a"))
            answers.append(answer)

    tasks = [asyncio.create_task(client()) for _ in range(3)]
    await world.until(lambda: len(answers) >= 6)
    await server.kill()
    await asyncio.gather(*tasks)
    codes = {json.loads(body)["error"]["code"] for status, _, body in answers if status != 200}
    allowed = {"rate_limit_exceeded", "concurrency_limit_exceeded"}
    assert codes <= (allowed if fail_open else allowed | {"limits_unavailable"})
    assert ("limits_unavailable" in codes) is not fail_open
    assert all("retry-after" in headers for status, headers, _ in answers if status != 200)
    served = sum(status == 200 for status, _, _ in answers)
    assert 5 <= served <= (10 if fail_open else 5)
    assert (await ask(world, "POST", CHAT, chat(), bearer("free")))[0] == 200
