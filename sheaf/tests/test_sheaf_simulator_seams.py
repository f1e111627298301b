"""Streams that lose their pod, or have to leave it, go on in turns and within bounds, as the gateway's do."""

from typing import Any

import pytest
from sheaf.simulator.calls import Call
from sheaf.simulator.figures import bounds_of, figures
from sheaf.simulator.market import Market, Zone
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.seams import ATTEMPTS
from sheaf.simulator.world import Result, Setting, World
from sheaf_crds import KubeObject, Model

COLD_S = 5.0
START = 2 * COLD_S + 10.0


def model(replicas: int, **spec: Any) -> Model:
    engine = {"name": "vllm", "args": ["--max-model-len=16384"]}
    spec = {"source": "hf://a/b", "accelerators": [{"type": "nvidia-h100"}], "engine": engine, **spec}
    metadata = {"name": "chat", "uid": "chat", "generation": 1}
    return Model.model_validate({"metadata": metadata, "spec": {"replicas": replicas, **spec}})


def calls(count: int, output: int = 600, tokens: int = 200) -> list[Call]:
    return [Call(n / 1000, "chat", ((n + 1, tokens),), tokens, output) for n in range(count)]


def world(objects: list[KubeObject], **setting: Any) -> World:
    found = World(objects, POLICIES["sheaf"](1), Setting(cold_start_s=COLD_S, **setting))
    found.clock.run(START)
    return found


def begin(found: World, asked: list[Call], seconds: float) -> None:
    for one in asked:
        found._arrive(one.at(found.clock.now))
    found.clock.run(found.clock.now + seconds)


def lose(found: World, name: str) -> None:
    found.fleet._end(found.fleet.members[name])


def test_after_a_loss_no_more_begin_at_once_than_pods_can_take_beside_what_they_run():
    found = world([model(2)])
    begin(found, calls(160), 3.0)
    first, second = sorted(found.fleet.members)
    left = len(found.fleet.members[first].engine.flights)
    here = len(found.fleet.members[second].engine.flights)
    assert left > 20
    lose(found, first)
    assert len(found.fleet.members[second].engine.flights) == here + 16
    found.clock.run(found.clock.now + 20.0)
    outcome = found.result.outcome
    assert (len(outcome.ttft), outcome.broken, found._seams.moved) == (160, 0, left)
    assert not found._seams._seams
    assert found._door.admission.running("chat") == 0


def test_streams_that_find_no_pod_for_half_a_minute_are_broken_off_and_give_all_back():
    gone = Zone("z", 10.0, (1,) * 3 + (0,) * 100)
    objects = [model(1, spot={"policy": "Required"})]
    result = world(objects, market=Market((gone,), notice_s=0.0)).run(calls(10, output=4000))
    assert (result.outcome.broken, result.outcome.refused) == (10, 0)
    assert figures("x", result, bounds_of(objects)).attainment == 0.0
    assert result.outcome.asked == 10


def test_a_pod_that_comes_in_time_saves_them():
    back = Zone("z", 10.0, (1,) * 3 + (0,) + (1,) * 100)
    objects = [model(1, spot={"policy": "Required"})]
    found = world(objects, market=Market((back,), notice_s=0.0))
    result = found.run(calls(10, output=2500))
    assert (result.outcome.broken, len(result.outcome.ttft)) == (0, 10)
    assert found._seams.moved == 10
    assert found._door.admission.running("chat") == 0


def test_a_request_of_which_nothing_was_seen_is_asked_anew_so_often_and_no_more():
    found = world([model(ATTEMPTS + 1)])
    begin(found, calls(1, output=5, tokens=15_000), 0.05)
    (flight,) = [one for pod in found._routable["chat"] for one in pod.flights.values()]
    for attempt in range(ATTEMPTS):
        assert flight.attempts == attempt + 1
        assert flight.first_at == 0.0
        lose(found, flight.pod.name)
        found.clock.run(found.clock.now + 0.05)
    assert (found.result.outcome.broken, found._seams.moved) == (1, 0)
    assert found._door.admission.running("chat") == 0


def test_a_stream_moves_so_often_and_no_more():
    found = world([model(2)])
    begin(found, calls(1, output=15_000), 1.0)
    for moves in range(1, found._seams.rules.max_continuations + 1):
        (pod,) = [pod for pod in found._routable["chat"] if pod.flights]
        lose(found, pod.name)
        found.clock.run(found.clock.now + 2 * COLD_S)
        assert (found._seams.moved, found.result.outcome.broken) == (moves, 0)
    (pod,) = [pod for pod in found._routable["chat"] if pod.flights]
    lose(found, pod.name)
    assert found.result.outcome.broken == 1


def test_one_that_is_lost_again_before_it_said_anything_waits_a_while():
    found = world([model(3)])
    begin(found, calls(1, output=600), 1.0)
    flight = next(iter(next(pod for pod in found._routable["chat"] if pod.flights).flights.values()))
    lose(found, flight.pod.name)
    lose(found, flight.pod.name)
    assert flight.pod is None
    found.clock.run(found.clock.now + 0.2)
    assert flight.pod is not None
    found.clock.run(found.clock.now + 20.0)
    assert len(found.result.outcome.ttft) == 1


def noticed(notice_s: float, output: int) -> tuple[World, Result]:
    zone = Zone("z", 10.0, (2,) * 3 + (1,) * 100)
    spot = model(2, spot={"policy": "Preferred", "onDemandFloor": 0}, drainTimeout="60s")
    found = world([spot], market=Market((zone,), notice_s=notice_s))
    late = [Call(9.0 + n / 1000, "chat", ((n + 1, 200),), 200, output) for n in range(40)]
    return found, found.run(late)


def test_before_a_deadline_those_leave_that_would_not_end_by_then_and_the_pod_goes_when_it_is_empty():
    found, result = noticed(8.0, 4000)
    assert len(result.outcome.ttft) == 40
    assert found._seams.moved > 0
    short, kept = noticed(30.0, 200)
    assert (short._seams.moved, len(kept.outcome.ttft)) == (0, 40)


def test_where_no_other_pod_serves_one_that_has_to_go_still_takes_requests():
    zone = Zone("z", 10.0, (1,) * 3 + (0,) * 100)
    spot = model(1, spot={"policy": "Required"})
    found = world([spot], market=Market((zone,), notice_s=20.0))
    found.clock.run(START + 9.0)
    begin(found, calls(1, output=2000), 3.0)
    assert [found.fleet.members[pod.name].stays for pod in found._routable["chat"]] == [False]
    begin(found, calls(3, output=10), 2.0)
    assert len(found.result.outcome.ttft) == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_lost_when_every_request_ends_once_and_all_is_given_back(seed):
    market = Market((Zone("z", 12.0, (4, 4, *((seed * n * 7) % 5 for n in range(20)))),), notice_s=seed - 1.0)
    found = world([model(4, spot={"policy": "Required"})], market=market)
    asked = [Call(n / 4, "chat", ((n % 9 + 1, 400),), 400, 50 + n * 7 % 800) for n in range(160)]
    outcome = found.run(asked).outcome
    assert outcome.asked == 160
    assert outcome.moved > 0
    assert not found._seams._seams
    assert not found._seams._turns
    assert found._door.admission.running("chat") == found._door.admission.waiting("chat") == 0
    assert {pacing.starting for pacing in found._seams._pacings.values()} == {0}
    assert {ledger.running for ledger in found.policy.router.ledgers.values()} == {0}
