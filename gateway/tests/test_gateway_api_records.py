"""What the gateway tells of itself: decisions term by term, objects, probes, metrics, documentation."""

import json

import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model, slo  # noqa: F401
from gateway_raw_servers import DIGEST
from sheaf_gateway.admission.ending import Usage
from sheaf_gateway.api.records import Record, Records
from sheaf_gateway.api.usage import find_usage, reported

CHAT = "/v1/chat/completions"


async def get(world, ask, path):  # noqa: F811
    status, _, body = await ask(world, "GET", path)
    return status, json.loads(body)


async def test_a_decision_can_be_read_term_by_term(make_world, ask):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")])
    await ask(world, "POST", CHAT, chat("pirate", text="x" * 2000), {"x-request-id": "why"})
    status, record = await get(world, ask, "/sheaf/v1/decisions/why")
    assert status == 200
    assert (record["served"], record["model"], record["adapter"], record["status"]) == ("pirate", "base", "pirate", 200)
    (attempt,) = record["attempts"]
    assert attempt["outcome"] == "ok"
    assert attempt["loaded_adapter"] is True
    candidates = attempt["decision"]["candidates"]
    assert {candidate["pod"] for candidate in candidates} == {"base-0", "base-1"}
    for candidate in candidates:
        terms = candidate["terms"]
        assert terms["total"] == pytest.approx(terms["queue"] + terms["prefill"] + terms["adapter"] + terms["harm"])
    assert (record["prompt_tokens"], record["output_tokens"]) == (7, 3)


async def test_the_second_request_with_a_prefix_goes_where_the_prefix_is(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 4})
    prefix = "All that was said before. " * 100
    pods = []
    for turn in range(6):
        _, headers, _ = await ask(world, "POST", CHAT, chat(text=f"{prefix}{turn}"), {"x-request-id": f"p-{turn}"})
        pods.append(headers["x-sheaf-pod"])
    assert len(set(pods)) == 1
    _, record = await get(world, ask, "/sheaf/v1/decisions/p-1")
    by_pod = {c["pod"]: c["cached_bytes"] for c in record["attempts"][0]["decision"]["candidates"]}
    assert by_pod.pop(pods[0]) > 2000
    assert set(by_pod.values()) == {0}


async def test_an_unknown_decision_is_404_and_records_are_bounded(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, limits={"maxDecisions": 3})
    for turn in range(5):
        await ask(world, "POST", CHAT, chat(), {"x-request-id": f"r{turn}"})
    assert [(await get(world, ask, f"/sheaf/v1/decisions/r{turn}"))[0] for turn in range(5)] == [
        404,
        404,
        200,
        200,
        200,
    ]


async def test_objects_are_as_declared_and_pods_as_they_really_are(make_world, ask):  # noqa: F811
    world = await make_world(adapters=[adapter("pirate", "base")], slos=[slo("chat")])
    world.engines[0].loaded.add("pirate")
    world.agents[0].changed()
    await world.until(lambda: world.pod("base-0").resident)
    assert [item["metadata"]["name"] for item in (await get(world, ask, "/sheaf/v1/objects/models"))[1]["items"]] == [
        "base"
    ]
    assert (await get(world, ask, "/sheaf/v1/objects/adapters"))[1]["items"][0]["spec"]["modelRef"] == {"name": "base"}
    assert (await get(world, ask, "/sheaf/v1/objects/slos"))[1]["items"][0]["metadata"]["name"] == "chat"
    assert (await get(world, ask, "/sheaf/v1/objects/autoscalingpolicies"))[1]["items"] == []
    pods = (await get(world, ask, "/sheaf/v1/objects/pods"))[1]["items"]
    assert [pod["name"] for pod in pods] == ["base-0", "base-1"]
    assert pods[0]["residentAdapters"] == [{"name": "pirate", "digest": DIGEST}]
    assert (pods[1]["residentAdapters"], pods[1]["breaker"], pods[1]["ready"]) == ([], "Closed", True)
    status, body = await get(world, ask, "/sheaf/v1/objects/secrets")
    assert (status, body["error"]["code"]) == (404, "not_found")


async def test_metrics_count_requests_tokens_and_times_by_declared_name(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    await ask(world, "POST", CHAT, chat())
    await ask(world, "POST", CHAT, chat(stream=True, stream_options={"include_usage": True}))
    await ask(world, "POST", CHAT, chat("invented-name"))
    text = (await ask(world, "GET", "/metrics"))[2].decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert lines['sheaf_gateway_requests_total{served="base",status="200"}'] == "2.0"
    assert lines['sheaf_gateway_errors_total{code="model_not_found"}'] == "1.0"
    assert lines['sheaf_gateway_tokens_total{kind="output",served="base"}'] == "6.0"
    assert lines['sheaf_gateway_ttft_seconds_count{served="base"}'] == "1.0"
    assert lines['sheaf_gateway_tpot_seconds_count{served="base"}'] == "1.0"
    assert lines['sheaf_gateway_in_flight{model="base"}'] == "0.0"
    assert lines['sheaf_gateway_breaker_state{pod="base-0"}'] == "0.0"
    assert "invented-name" not in text


async def test_series_of_names_that_are_gone_go_too(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1}, adapters=[adapter("pirate", "base")])
    await ask(world, "POST", CHAT, chat("pirate"))
    world.snapshot["adapters"] = []
    world.write()
    await world.settled()
    assert 'served="pirate"' not in (await ask(world, "GET", "/metrics"))[2].decode()


async def test_probes_and_documentation(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    assert await get(world, ask, "/healthz") == (200, {"status": "ok"})
    assert await get(world, ask, "/readyz") == (200, {"status": "ready"})
    status, document = await get(world, ask, "/openapi.json")
    assert status == 200
    assert "/v1/models" in document["paths"]
    assert (await ask(world, "GET", "/docs"))[0] == 200


async def test_not_ready_without_a_fleet(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.gateway.store.known = False
    world.gateway.store._snapshot = None
    assert (await get(world, ask, "/readyz"))[0] == 503
    assert (await get(world, ask, "/sheaf/v1/objects/pods"))[0] == 503


def record(name: str) -> Record:
    return Record(name, "s", "m", None, "", "/", 0.0, 0, [])


def test_records_keep_the_newest_and_replace_the_same_id():
    records = Records(2)
    for name in ("a", "b", "a", "c"):
        records.add(record(name))
    assert len(records) == 2
    assert records.get("b") is None
    assert records.get("a")


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'..."usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}}', Usage(5, 4, None)),
        (b'"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}', Usage(5, None, 4)),
        (b'"usage":{"input_tokens":3,"output_tokens":2,"cache_read_input_tokens":1}', Usage(3, 2, 1)),
        (rb'"content":"\"usage\":{\"prompt_tokens\":999}"', Usage()),
        (b'"usage":null', Usage()),
        (b"", Usage()),
    ],
)
def test_usage_is_found_at_the_end_and_never_in_text(tail, usage):
    assert find_usage(tail) == usage
    assert (usage.total() is None) == (usage == Usage())


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}}', Usage(5, 4)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":4}},"id":"x"}', Usage(5, None, 4)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":null,"completion_tokens":0}}', Usage(5, 0)),
        (b'{"usage":{"input_tokens":3,"output_tokens":2,"cache_read_input_tokens":1}}', Usage(3, 2, 1)),
        (b'{"response":{"usage":{"prompt_tokens":7}}}', Usage(7)),
        (b'{"usage":{"prompt_tokens":6,"completion_tokens":"many"}}', Usage(6)),
        (b'{"usage":{"prompt_tokens":-6,"completion_tokens":2}}', Usage(None, 2)),
        (b'{"usage":[]}', Usage()),
        (b'{"usage":null}', Usage()),
        (b"{}", Usage()),
        (b'{"usage":{"prompt_tokens":5}', None),
        (b'{"a":"\xff","usage":{"prompt_tokens":5}}', None),
        (b'[{"usage":{"prompt_tokens":5}}]', None),
        (b"", None),
    ],
)
def test_a_whole_answer_reports_what_its_engine_counted_whatever_its_form(body, usage):
    assert reported(body) == usage
