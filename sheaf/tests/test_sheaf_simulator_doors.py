"""The simulated door is told what the gateway's is: how much pods take, what is cached, what was said, how it ended."""

from typing import Any

import pytest
from sheaf.simulator.calls import GATEWAY_TOKENS, Call, block_hashes
from sheaf.simulator.figures import bounds_of, figures
from sheaf.simulator.flights import Flight
from sheaf.simulator.policies.base import Policy
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.slots import REPORT_S
from sheaf.simulator.world import Setting, World
from sheaf_crds import SLO, KubeObject, Model
from sheaf_gateway.admission.admission import Admit, Wait
from sheaf_gateway.admission.slots import reserve

COLD_S = 5.0
START = 2 * COLD_S + 10.0


def meta(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "uid": f"{kind}-{name}", "generation": 1}


def model(seqs: int = 4, replicas: int = 1, **spec: Any) -> Model:
    engine = {"name": "vllm", "args": [f"--max-num-seqs={seqs}", "--max-model-len=8192"]}
    spec = {"source": "hf://a/b", "accelerators": [{"type": "nvidia-l4"}], "engine": engine, **spec}
    return Model.model_validate({"metadata": meta("Model", "chat"), "spec": {"replicas": replicas, **spec}})


def slo(**spec: Any) -> SLO:
    return SLO.model_validate({"metadata": meta("SLO", "fast"), "spec": spec})


def promised(**spec: Any) -> list[KubeObject]:
    return [model(sloRef={"name": "fast"}), slo(**spec)]


def call(at: float, tenant: str = "", tokens: int = 100, output: int = 50, prefix: int = 0) -> Call:
    segments = ((prefix, 64), (hash((at, tenant)) & 0xFFFF, tokens - 64)) if prefix else ((int(at * 1e6), tokens),)
    return Call(at, "chat", segments, tokens, output, None, tenant)


def world(objects: list[KubeObject], policy: str = "sheaf") -> World:
    found = World(objects, POLICIES[policy](1), Setting(cold_start_s=COLD_S))
    found.clock.run(START)
    return found


def arrive(found: World, *calls: Call) -> None:
    for one in calls:
        found._arrive(one.at(found.clock.now))


def test_a_pod_takes_no_more_than_its_engine_runs_and_a_reserve_once_requests_wait_there():
    found = world([model(seqs=4)])
    assert found._door.slots.of("chat", START) == 256
    arrive(found, *(call(n / 1000, output=900) for n in range(60)))
    for second in range(1, 10):
        found.clock.run(START + second * REPORT_S)
        bound = found._door.slots.of("chat", found.clock.now)
    pod = found._routable["chat"][0]
    assert (pod.engine.running, pod.engine.waiting) == (4, 56)
    assert bound == 4 + reserve(4)
    arrive(found, call(0.5))
    assert found._door.admission.waiting("chat") == 1


def test_who_waits_goes_in_when_a_pod_is_found_to_take_more_though_nothing_ended():
    found = world([model(seqs=8)])
    name = found._routable["chat"][0].name
    found._door.slots._bounds._found[name] = 1
    found._door.slots.changed("chat", found._routable["chat"])
    arrive(found, call(0.001, output=4000), call(0.002, output=4000))
    assert found._door.admission.running("chat") == 1
    found.clock.run(START + REPORT_S + 0.5)
    assert found._door.admission.running("chat") == 2


def test_bounds_of_pods_that_are_gone_are_forgotten():
    found = world([model()])
    slots, pods = found._door.slots, found._routable["chat"]
    slots._bounds.hear(pods[0].name, own=256, running=4, waiting=200)
    slots.changed("chat", pods)
    assert slots.of("chat", START) == slots._bounds.of(pods[0].name) < 256
    slots.changed("chat", [])
    assert slots.of("chat", START) == 0
    slots.changed("chat", pods)
    assert slots.of("chat", START + 0.001) == 256
    assert slots.of("nobody", START) == 0


def test_a_tenant_is_charged_for_what_its_pod_computes_and_has_said_so_far():
    found = world(promised(fairness={"policy": "VTC"}))
    arrive(found, call(0.001, "a", 640, 400))
    found.clock.run(START + 5.0)
    arrive(found, call(0.002, "b", 640, 400))
    pod = found._routable["chat"][0]
    said = next(tokens for flight, tokens in pod.produced() if flight.call.tenant == "a")
    served = found._door.admission.served("chat")
    assert said > 16
    assert served["a"] == pytest.approx(640.0 + 2.0 * (said // 8 * 8), abs=1.0)
    assert served["b"] == pytest.approx(640.0, abs=1.0)


def test_what_was_cached_is_not_charged_from_the_start():
    found = world(promised(fairness={"policy": "DLPM"}))
    arrive(found, call(0.001, "a", 640, 10, prefix=3), call(0.002, "a", 640, 10, prefix=3))
    books = [bill.prompt for bill in found._door.admission._gates["chat"].bills.values()]
    assert books[0] == pytest.approx(640.0, abs=1.0)
    assert books[1] < books[0]


def test_at_the_end_books_say_what_was_computed_and_said():
    found = world(promised(fairness={"policy": "VTC"}))
    calls = [call(0.001 * n, "ab"[n % 2], 640, 40 + n, prefix=3) for n in range(20)]
    result = found.run(calls)
    outcome = result.outcome
    computed = sum(outcome.prompt) - sum(outcome.cached)
    assert sum(found._door.admission.served("chat").values()) == pytest.approx(computed + 2 * sum(outcome.output))
    assert found._door.admission.running("chat") == 0


@pytest.mark.parametrize("policy", ["sheaf", "round-robin"])
def test_a_request_that_waits_is_measured_as_the_gateway_measures_it(policy):
    found = world(promised(fairness={"policy": "DLPM"}), policy)
    found.run([call(0.001, "a", 640, 10, prefix=3)])
    found._door.slots._bounds._found[found._routable["chat"][0].name] = 0
    found._door.slots.changed("chat", found._routable["chat"])
    arrive(found, call(0.5, "a", 640, 10, prefix=3))
    (waiter,) = found._door.admission._gates["chat"].line
    if policy == "sheaf":
        assert waiter.work.cached > 0.0
        assert waiter.work.prefill_s > 0.0
        assert waiter.kin
    else:
        assert waiter.work.uncached == 640.0


def test_of_many_pods_the_deepest_match_is_the_same_as_asked_one_by_one():
    found = world([model(replicas=30)])
    arrive(found, *(call(n / 100, "a", 1280, 10, prefix=3 + n % 5) for n in range(200)))
    policy, pods = found.policy, found._routable["chat"]
    for number in range(8):
        flight = Flight(9000 + number, call(0.0, "a", 1280, 10, prefix=3 + number), [], [])
        flight.chain = list(block_hashes(flight.call, "a", (16, GATEWAY_TOKENS))[1])
        assert policy.expected(flight, pods) == policy.expected(flight, list(pods))


def test_a_limit_of_the_caller_breaks_no_promise():
    objects = promised(limits={"requestsPerMinute": 5}, ttft={"p95": "5s"})
    result = world(objects).run([call(0.01 * n, "a", output=5) for n in range(12)])
    assert (result.outcome.refused, result.outcome.limited) == (7, 7)
    assert figures("x", result, bounds_of(objects)).attainment == 1.0


def test_who_makes_room_for_another_is_refused_at_once():
    found = world(promised(fairness={"policy": "VTC"}, queue={"maxRequests": 2, "maxWait": "20s"}))
    found._door.slots._bounds._found[found._routable["chat"][0].name] = 1
    found._door.slots.changed("chat", found._routable["chat"])
    arrive(found, *(call(0.01 * n, "flood", output=4000) for n in range(3)))
    assert found.result.outcome.refused == 0
    arrive(found, call(0.9, "other"))
    assert found.result.outcome.refused == 1
    windows = found._watch.report({"chat": 1}, {"chat": 1}, found.clock.now, 0.0).windows["fast"]
    assert windows[0].failed == 1


def test_a_model_that_declares_replicas_holds_requests_while_it_has_no_pod_at_all():
    for replicas, answer in ((1, Wait), (0, None)):
        found = World([model(replicas=replicas)], POLICIES["sheaf"](1), Setting(cold_start_s=COLD_S))
        flight = Flight(1, call(0.0), [], [])
        said = found._door.knock(flight, 0, 0, None, 0.0)
        assert isinstance(said, Wait) is (answer is Wait)
        assert not isinstance(said, Admit)


def test_policies_that_tell_nothing_leave_the_estimate():
    flight = Flight(1, call(0.0), [], [])
    assert Policy().expected(flight, []) is None
    assert Policy().uncached(flight) is None
