"""Keys, scopes, tenants and limits: who may ask for what, how often, and what they are told otherwise."""

import asyncio
import difflib
import hashlib
import json

import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model, replace, slo  # noqa: F401
from sheaf_gateway.api import asking
from sheaf_gateway.api.keys import Caller, read_keys
from sheaf_gateway.fleet.view import Fleet, Served

CHAT = "/v1/chat/completions"


def entry(name: str, key: str, tenant: str = "gold", **more) -> str:
    document = {"name": name, "tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}
    return f"  - {json.dumps(document)}\n"


KEYS = (
    "keys:\n" + entry("ci", "k-ci") + entry("ops", "k-ops", scopes=["admin"]) + entry("one", "k-one", models=["pirate"])
)


def limited_entry(key: str, per_minute: int, **more) -> str:
    return entry("a", key, limits={"requestsPerMinute": per_minute}, **more)


def bearer(key: str) -> dict:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def world(make_world):  # noqa: F811
    return await make_world(pods={"base": 1}, adapters=[adapter("pirate", "base")], keys=KEYS)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        (bearer("wrong"), 401, "invalid_api_key"),
        (bearer(""), 401, "invalid_api_key"),
        (bearer("k" * 5000), 401, "invalid_api_key"),
        ({"authorization": "Basic k-ci"}, 401, "invalid_api_key"),
        ({"authorization": "k-ci"}, 401, "invalid_api_key"),
        (bearer("k-ci\xff"), 401, "invalid_api_key"),
        (bearer("k-ops"), 403, "insufficient_scope"),
        (bearer("k-one"), 404, "model_not_found"),
    ],
)
async def test_a_request_without_a_fitting_key_goes_no_further(world, ask, headers, status, code):  # noqa: F811
    got, _, body = await ask(world, "POST", CHAT, chat(), headers)
    assert (got, json.loads(body)["error"]["code"]) == (status, code)
    assert world.engines[0].seen == []


@pytest.mark.parametrize("headers", [bearer("k-ci"), {"authorization": "bearer  k-ci"}, {"x-api-key": "k-ci"}])
async def test_a_fitting_key_is_let_in(world, ask, headers):  # noqa: F811
    assert (await ask(world, "POST", CHAT, chat(), headers))[0] == 200


async def test_a_key_sees_only_its_models(world, ask):  # noqa: F811
    _, _, body = await ask(world, "GET", "/v1/models", headers=bearer("k-one"))
    assert [card["id"] for card in json.loads(body)["data"]] == ["pirate"]
    assert (await ask(world, "GET", "/v1/models/base", headers=bearer("k-one")))[0] == 404
    _, _, body = await ask(world, "POST", CHAT, chat("bas"), bearer("k-one"))
    assert "base" not in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "meant"), [("adapter-O4242", "adapter-04242"), ("dapter-07777", "adapter-07777"), ("pirte", "pirate")]
)
@pytest.mark.parametrize("models", [None, frozenset({"pirate", *(f"adapter-{n:05}" for n in range(0, 10_000, 101))})])
def test_of_ten_thousand_names_the_nearest_is_told_after_few_comparisons(monkeypatch, asked, meant, models):
    names = ["pirate", *(f"adapter-{number:05}" for number in range(10_000))]
    fleet = Fleet(served={name: Served(name=name, model="base") for name in sorted(names)})
    compared = []
    ratio = difflib.SequenceMatcher.real_quick_ratio
    monkeypatch.setattr(
        difflib.SequenceMatcher, "real_quick_ratio", lambda self: compared.append(self.a) or ratio(self)
    )
    assert f"`{meant}`" in asking.unknown(asked, fleet, Caller(models=models)).message
    assert len(compared) <= 32


def test_a_name_that_the_caller_may_not_use_is_never_told():
    fleet = Fleet(served={name: Served(name=name, model="base") for name in ("secret", "secrets")})
    assert "secret`" not in asking.unknown("secre", fleet, Caller(models=frozenset({"other"}))).message


async def test_management_needs_the_admin_scope_and_probes_need_nothing(world, ask):  # noqa: F811
    for path in ("/sheaf/v1/objects/models", "/sheaf/v1/decisions/x"):
        assert (await ask(world, "GET", path))[0] == 401
        assert (await ask(world, "GET", path, headers=bearer("k-ci")))[0] == 403
    assert (await ask(world, "GET", "/sheaf/v1/objects/models", headers=bearer("k-ops")))[0] == 200
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await ask(world, "GET", path))[0] == 200
    assert (await ask(world, "GET", "/v1/models"))[0] == 401


async def test_keys_are_read_again_when_the_file_changes_and_kept_when_it_breaks(world, ask):  # noqa: F811
    path = world.folder / "keys.yaml"
    replace(path, ("keys:\n" + entry("new", "k-new")).encode())
    ring = world.gateway.inference.keys
    await world.until(lambda: world.gateway.inference.keys is not ring)
    assert (await ask(world, "POST", CHAT, chat(), bearer("k-new")))[0] == 200
    assert (await ask(world, "POST", CHAT, chat(), bearer("k-ci")))[0] == 401
    for broken in (b"keys: [{name: x}]", b'keys: !!int ""', b"[" * 50_000, b"!!timestamp x"):
        replace(path, broken)
        await asyncio.sleep(0.25)
        assert (await ask(world, "POST", CHAT, chat(), bearer("k-new")))[0] == 200
    ring = world.gateway.inference.keys
    replace(path, ("keys:\n" + entry("last", "k-last")).encode())
    await world.until(lambda: world.gateway.inference.keys is not ring)
    assert (await ask(world, "POST", CHAT, chat(), bearer("k-last")))[0] == 200


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"keys: 5", "keys"),
        (b"", "file"),
        (b"keys: [", "not valid YAML"),
        (b"keys: [{name: a, tenant: t, sha256: xyz}]", "keys.0.sha256"),
        (b"keys: [{name: a, sha256: " + b"0" * 64 + b"}]", "keys.0.tenant"),
        (("keys:\n" + entry("a", "same") + entry("b", "same")).encode(), "listed twice"),
        (("keys:\n" + entry("a", "x", scopes=["root"])).encode(), "keys.0.scopes"),
        (("keys:\n" + limited_entry("x", 5) + limited_entry("y", 6)).encode(), "keys.1.limits.*'a' has other limits"),
        (("keys:\n" + limited_entry("x", 5) + entry("a", "y")).encode(), "keys.1.limits.*'a' has other limits"),
        (
            ("keys:\n" + limited_entry("x", 5) + limited_entry("y", 5, tenant="free")).encode(),
            "keys.1.tenant.*'a' has another tenant",
        ),
    ],
)
def test_a_broken_keys_file_says_where(text, where):
    with pytest.raises(ValueError, match=where):
        read_keys(text)


async def test_keys_of_one_name_share_its_limits(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, keys="keys:\n" + limited_entry("k-old", 2) + limited_entry("k-new", 2))
    keys = ("k-old", "k-new", "k-old")
    assert [(await ask(world, "POST", CHAT, chat(), bearer(key)))[0] for key in keys] == [200, 200, 429]


def test_keys_of_one_name_without_limits_may_be_of_different_tenants():
    read_keys(("keys:\n" + entry("default", "x", "gold") + entry("default", "y", "free")).encode())


async def test_an_empty_list_of_keys_lets_nobody_in(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, keys="keys: []\n")
    assert (await ask(world, "POST", CHAT, chat(), bearer("any")))[0] == 401


async def test_a_keys_requests_per_minute_are_kept(make_world, ask):  # noqa: F811
    keys = "keys:\n" + entry("a", "k-a", limits={"requestsPerMinute": 2}) + entry("b", "k-b")
    world = await make_world(pods={"base": 1}, keys=keys)
    answers = [await ask(world, "POST", CHAT, chat(), bearer("k-a")) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert json.loads(answers[2][2])["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[2][1]["retry-after"]) <= 30
    assert (await ask(world, "POST", CHAT, chat(), bearer("k-b")))[0] == 200


async def test_a_tenants_tokens_per_minute_count_what_engines_report(make_world, ask):  # noqa: F811
    limited = slo("chat", limits={"tokensPerMinute": 18})
    world = await make_world(pods={"base": 1}, models=[model("base", sloRef={"name": "chat"})], slos=[limited])
    statuses = [(await ask(world, "POST", CHAT, chat(text="hi")))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_a_tenants_concurrency_is_kept(make_world, ask):  # noqa: F811
    limited = slo("chat", limits={"maxConcurrent": 2})
    world = await make_world(pods={"base": 1}, models=[model("base", sloRef={"name": "chat"})], slos=[limited])
    world.engines[0].pause = 0.2
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat()) for _ in range(4)))
    assert sorted(status for status, _, _ in answers) == [200, 200, 429, 429]
    world.engines[0].pause = 0.0
    assert (await ask(world, "POST", CHAT, chat()))[0] == 200


async def test_what_the_pods_cannot_take_at_once_waits_its_turn(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, limits={"maxInflightPerPod": 1})
    world.engines[0].pause = 0.02
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat()) for _ in range(6)))
    assert [status for status, _, _ in answers] == [200] * 6


async def test_a_full_queue_and_too_long_a_wait_are_503_with_retry_after(make_world, ask):  # noqa: F811
    short = slo("chat", queue={"maxRequests": 1, "maxWait": "150ms"})
    models = [model("base", sloRef={"name": "chat"})]
    world = await make_world(pods={"base": 1}, models=models, slos=[short], limits={"maxInflightPerPod": 1})
    world.engines[0].pause = 0.5
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat()) for _ in range(3)))
    codes = {json.loads(body)["error"]["code"]: headers for status, headers, body in answers if status == 503}
    assert sorted(status for status, _, _ in answers) == [200, 503, 503]
    assert set(codes) == {"queue_full", "queue_timeout"}
    assert all(int(headers["retry-after"]) >= 1 for headers in codes.values())


async def test_a_waiter_that_goes_away_leaves_the_queue(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, limits={"maxInflightPerPod": 1})
    world.engines[0].pause = 0.3
    running = asyncio.create_task(ask(world, "POST", CHAT, chat()))
    await world.until(lambda: world.engines[0].seen)
    body = json.dumps(chat()).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    admission = world.gateway.inference.admission
    await world.until(lambda: admission.waiting("base") == 1)
    writer.transport.abort()
    await world.until(lambda: admission.waiting("base") == 0)
    assert (await running)[0] == 200
    assert len(world.engines[0].seen) == 1


async def test_a_waiter_is_called_in_when_a_pod_becomes_ready(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 2}, limits={"maxInflightPerPod": 1})
    world.engines[0].pause = world.engines[1].pause = 0.4
    world.snapshot["pods"][1]["ready"] = False
    world.write()
    await world.settled()
    first = asyncio.create_task(ask(world, "POST", CHAT, chat(text="one")))
    await world.until(lambda: world.engines[0].seen)
    second = asyncio.create_task(ask(world, "POST", CHAT, chat(text="two")))
    await world.until(lambda: world.gateway.inference.admission.waiting("base") == 1)
    world.snapshot["pods"][1]["ready"] = True
    world.write()
    await world.until(lambda: world.engines[1].seen)
    assert [(await task)[0] for task in (first, second)] == [200, 200]
