"""The door over real HTTP: early refusals with their reason, holding while a Model wakes, classes, salts, figures."""

import asyncio
import hashlib
import json

import pytest
from gateway_fixtures import ask, chat, make_world, model, slo  # noqa: F401

CHAT = "/v1/chat/completions"


def key(name: str, tenant: str, **more) -> str:
    document = {"name": name, "tenant": tenant, "sha256": hashlib.sha256(f"k-{name}".encode()).hexdigest(), **more}
    return f"  - {json.dumps(document)}\n"


def bearer(name: str) -> dict:
    return {"authorization": f"Bearer k-{name}"}


def promised(**spec) -> dict:
    return {"models": [model("base", sloRef={"name": "chat"})], "slos": [slo("chat", **spec)]}


def code(body: bytes) -> str:
    return json.loads(body)["error"]["code"]


async def read(world, ask, path):  # noqa: F811
    status, _, body = await ask(world, "GET", path)
    assert status == 200
    return json.loads(body)


async def test_what_cannot_begin_in_time_is_429_with_retry_after_and_the_reason(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, limits={"maxInflightPerPod": 1}, **promised(ttft={"p95": "100ms"}))
    world.engines[0].pause = 0.3
    assert (await ask(world, "POST", CHAT, chat()))[0] == 200
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat()) for _ in range(3)))
    assert sorted(status for status, _, _ in answers) == [200, 429, 429]
    refused = [(headers, body) for status, headers, body in answers if status == 429]
    for headers, body in refused:
        assert code(body) == "slo_unattainable"
        assert headers["x-sheaf-reason"].startswith("slo_unattainable; predicted_ttft=0.")
        assert headers["x-sheaf-reason"].endswith("; promised_ttft=0.100")
        assert int(headers["retry-after"]) >= 1
    shown = await read(world, ask, "/sheaf/v1/slos")
    (window, _) = shown["slos"][0]["windows"]
    assert (shown["slos"][0]["slo"], window["window"], window["requests"], window["failed"]) == ("chat", "5m", 4, 2)
    assert window["burn"] == pytest.approx(20.0)


async def test_requests_for_a_model_that_starts_are_held_and_answered_when_it_is_there(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.snapshot["pods"][0]["ready"] = False
    world.write()
    await world.settled()
    waiting = [asyncio.create_task(ask(world, "POST", CHAT, chat())) for _ in range(3)]
    await world.until(lambda: world.gateway.inference.admission.waiting("base") == 3)
    (shown,) = (await read(world, ask, "/sheaf/v1/demand"))["models"]
    assert (shown["model"], shown["held"], shown["waiting"], shown["running"]) == ("base", 3, 0, 0)
    assert (shown["readyPods"], shown["slots"]) == (0, 0)
    assert shown["arrivalRate"] > 0
    _, _, metrics = await ask(world, "GET", "/metrics")
    assert b'sheaf_gateway_held{model="base"} 3.0' in metrics
    world.snapshot["pods"][0]["ready"] = True
    world.write()
    assert [(await task)[0] for task in waiting] == [200, 200, 200]


async def test_a_model_at_zero_is_waited_for_where_a_policy_may_wake_it(make_world, ask):  # noqa: F811
    models = [model("base", replicas=0, autoscalingPolicyRef={"name": "steady"}), model("never", replicas=0)]
    world = await make_world(pods={"base": 1}, models=models)
    (pod,) = world.snapshot["pods"]
    world.snapshot["pods"] = []
    policy = {"signal": "SLO", "minReplicas": 0, "maxReplicas": 2, "scaleToZero": {"after": "10m"}}
    world.snapshot["autoscalingPolicies"] = [
        {
            "apiVersion": "sheaf.dev/v1alpha1",
            "kind": "AutoscalingPolicy",
            "metadata": {"name": "steady"},
            "spec": policy,
        }
    ]
    world.write()
    await world.settled()
    status, headers, body = await ask(world, "POST", CHAT, chat("never"))
    assert (status, code(body), headers["retry-after"]) == (503, "model_at_zero", "10")
    waiting = asyncio.create_task(ask(world, "POST", CHAT, chat()))
    await world.until(lambda: world.gateway.inference.admission.waiting("base") == 1)
    world.snapshot["pods"] = [pod]
    world.write()
    assert (await waiting)[0] == 200


async def test_holding_is_bounded_in_number_and_in_time(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    rules = type(world.gateway.inference.admission.rules)(max_held=1, hold_s=0.2)
    world.gateway.inference.admission.rules = rules
    world.snapshot["pods"][0]["ready"] = False
    world.write()
    await world.settled()
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat()) for _ in range(2)))
    assert [(status, code(body)) for status, _, body in answers] == [(503, "model_starting")] * 2
    assert all(int(headers["retry-after"]) >= 1 for _, headers, _ in answers)
    assert any("0.2 s" in json.loads(body)["error"]["message"] for _, _, body in answers)


@pytest.mark.parametrize("way", ["flex", "key"])
async def test_who_declares_itself_batch_lets_others_go_first(make_world, ask, way):  # noqa: F811
    keys = "keys:\n" + key("a", "a") + key("b", "b", **{"class": "Batch"} if way == "key" else {})
    world = await make_world(pods={"base": 1}, keys=keys, limits={"maxInflightPerPod": 1})
    engine, admission = world.engines[0], world.gateway.inference.admission
    engine.pause = 0.1
    more = {"service_tier": "flex"} if way == "flex" else {}
    tasks = [asyncio.create_task(ask(world, "POST", CHAT, chat(text="first"), bearer("a")))]
    await world.until(lambda: engine.seen)
    tasks.append(asyncio.create_task(ask(world, "POST", CHAT, chat(text="batch", **more), bearer("b"))))
    await world.until(lambda: admission.waiting("base") == 1)
    tasks.append(asyncio.create_task(ask(world, "POST", CHAT, chat(text="interactive"), bearer("a"))))
    assert [status for status, _, _ in await asyncio.gather(*tasks)] == [200] * 3
    assert [seen.json["messages"][0]["content"] for seen in engine.seen] == ["first", "interactive", "batch"]


async def test_in_a_full_queue_a_light_tenant_takes_the_place_of_a_crowd(make_world, ask):  # noqa: F811
    keys = "keys:\n" + key("crowd", "crowd") + key("light", "light")
    spec = promised(fairness={"policy": "VTC"}, queue={"maxRequests": 3})
    world = await make_world(pods={"base": 1}, keys=keys, limits={"maxInflightPerPod": 1}, **spec)
    world.engines[0].pause = 0.05
    crowd = [asyncio.create_task(ask(world, "POST", CHAT, chat(), bearer("crowd"))) for _ in range(4)]
    await world.until(lambda: world.gateway.inference.admission.waiting("base") == 3)
    assert (await ask(world, "POST", CHAT, chat(), bearer("light")))[0] == 200
    answers = await asyncio.gather(*crowd)
    assert sorted(status for status, _, _ in answers) == [200, 200, 200, 503]
    (refused,) = [(headers, body) for status, headers, body in answers if status == 503]
    assert code(refused[1]) == "queue_full"
    assert refused[0]["x-sheaf-reason"] == "queue_full; waiting=3"
    assert int(refused[0]["retry-after"]) >= 1


async def test_each_tenant_has_a_salt_that_no_caller_can_choose(make_world, ask):  # noqa: F811
    keys = "keys:\n" + key("a", "gold") + key("b", "gold") + key("c", "free")
    world = await make_world(pods={"base": 1}, keys=keys)
    for name in "abc":
        body = json.dumps(chat(cache_salt="mine", x=[1, {"y": "é"}])).encode() + b" \n"
        assert (await ask(world, "POST", CHAT, body, bearer(name)))[0] == 200
    salts = [seen.json["cache_salt"] for seen in world.engines[0].seen]
    assert salts[0] == salts[1] != salts[2]
    assert all(len(salt) == 64 for salt in salts)
    assert all(seen.json["x"] == [1, {"y": "é"}] for seen in world.engines[0].seen)
    await ask(world, "POST", "/v1/tokenize", {"model": "base", "prompt": "x"}, bearer("a"))
    assert "cache_salt" not in world.engines[0].seen[-1].json


async def test_tenants_do_not_meet_in_the_gateways_own_index(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 2}, keys="keys:\n" + key("a", "gold") + key("c", "free"))
    text = "x" * 2000
    for name in "aac":
        await ask(world, "POST", CHAT, chat(text=text), {**bearer(name), "x-request-id": f"r-{name}"})
    records = world.gateway.inference.records
    assert records.get("r-a").attempts[0].decision.chosen().cached_bytes > 1000
    assert records.get("r-c").attempts[0].decision.chosen().cached_bytes == 0


async def test_without_tenants_bodies_pass_unchanged(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    body = json.dumps(chat(cache_salt="theirs")).encode()
    await ask(world, "POST", CHAT, body)
    assert world.engines[0].seen[-1].body == body


async def test_the_gateway_gives_an_engine_no_more_than_it_runs_and_a_reserve(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.engines[0].pause = 0.4
    tasks = [asyncio.create_task(ask(world, "POST", CHAT, chat())) for _ in range(32)]
    await world.until(lambda: len(world.engines[0].seen) == 32)
    core = world.gateway.inference
    for running in (4, 4, 4, 4, 4, 4, 4):
        world.agents[0].load = {"running": running, "waiting": 28, "kvUsage": 0.5 + len(tasks) / 1000}
        world.agents[0].changed()
        seen = world.gateway.store.states["base-0"]
        await world.until(lambda seen=seen: world.gateway.store.states["base-0"] is not seen)
        core.capacity._slots.clear()
        core.slots("base")
    assert core.slots("base") == 5
    late = asyncio.create_task(ask(world, "POST", CHAT, chat(text="late")))
    await world.until(lambda: core.admission.waiting("base") == 1)
    assert {status for status, _, _ in await asyncio.gather(*tasks, late)} == {200}


async def test_who_waits_goes_in_when_pods_take_more_though_nothing_ended(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    core = world.gateway.inference
    core.capacity._bounds._found["base-0"] = 1
    world.engines[0].pause = 1.2
    tasks = [asyncio.create_task(ask(world, "POST", CHAT, chat())) for _ in range(2)]
    await world.until(lambda: core.admission.waiting("base") == 1)
    world.agents[0].load = {"running": 1, "waiting": 0, "kvUsage": 0.0}
    world.agents[0].changed()
    await world.until(lambda: len(world.engines[0].seen) == 2, within=1.0)
    assert core.slots("base") == 2
    assert [(await task)[0] for task in tasks] == [200, 200]


async def test_figures_of_an_slo_follow_what_was_measured(make_world, ask):  # noqa: F811
    spec = promised(ttft={"p95": "5s"}, tpot={"p95": "2s"}, e2e={"p99": "10s"})
    world = await make_world(pods={"base": 1}, **spec)
    for _ in range(3):
        await ask(world, "POST", CHAT, chat(stream=True))
    await ask(world, "POST", CHAT, {"model": "base", "messages": 5})
    five, hour = (await read(world, ask, "/sheaf/v1/slos"))["slos"][0]["windows"]
    assert (five["requests"], five["failed"], five["attainedPercent"], five["burn"]) == (3, 0, 100.0, 0.0)
    assert set(five["ttft"]) == set(hour["e2e"]) == {"p50", "p90", "p95", "p99"}
    assert five["goodput"] > 0
    _, _, metrics = await ask(world, "GET", "/metrics")
    for name in (
        b'slo_attained_ratio{slo="chat",window="5m"} 1.0',
        b'slo_budget_burn{slo="chat",window="1h"} 0.0',
        b'slo_latency_seconds{latency="ttft",quantile="0.95",slo="chat",window="5m"}',
        b'slots{model="base"} 256.0',
    ):
        assert b"sheaf_gateway_" + name in metrics


async def test_an_slo_that_changes_holds_at_once_and_one_that_goes_is_forgotten(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, **promised(ttft={"p95": "5s"}))
    core = world.gateway.inference
    await ask(world, "POST", CHAT, chat(stream=True))
    before = core.terms.of("base")
    world.snapshot["slos"] = [
        slo("chat", ttft={"p50": "1s", "p99": "3s"}, fairness={"policy": "VTC", "weights": {"a": 2}})
    ]
    world.write()
    await world.settled()
    after = core.terms.of("base")
    assert (before.policy, before.ttft, before.ttft_limit) == ("DLPM", 5.0, 5.0)
    assert (after.policy, after.ttft, after.ttft_limit, dict(after.weights)) == ("VTC", 1.0, 3.0, {"a": 2})
    assert core.terms.of("base") is after
    world.snapshot["slos"] = []
    world.write()
    await world.settled()
    assert core.terms.of("base").ttft is None
    assert (await read(world, ask, "/sheaf/v1/slos"))["slos"] == []
    assert (await ask(world, "POST", CHAT, chat()))[0] == 200


async def test_a_client_that_leaves_midway_is_charged_what_it_was_given(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, **promised(fairness={"policy": "VTC"}))
    world.engines[0].tokens, world.engines[0].pause = 500, 0.002
    body = json.dumps(chat(stream=True, text="x" * 400)).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    admission = world.gateway.inference.admission
    await world.until(lambda: admission.served("base").get("", 0.0) > 150.0)
    writer.transport.abort()
    await world.until(lambda: admission.running("base") == 0)
    assert admission.served("base")[""] > 150.0


async def test_figures_need_the_admin_scope(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, keys="keys:\n" + key("a", "gold") + key("ops", "x", scopes=["admin"]))
    for path in ("/sheaf/v1/demand", "/sheaf/v1/slos"):
        assert (await ask(world, "GET", path, headers=bearer("a")))[0] == 403
        assert (await ask(world, "GET", path, headers=bearer("ops")))[0] == 200
