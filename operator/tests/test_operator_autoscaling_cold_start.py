"""What is learnt as a cold start: the first start of a pod, seen from its beginning, and nothing that looks like one."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from operator_autoscaling import SPEED
from operator_world import NOW, make_model, make_pod, make_policy
from sheaf_crds.agent_api import AgentState
from sheaf_operator.planning import FleetIndex, PodFacts
from sheaf_operator.planning.autoscaling import Demand, Report, Scaler

HOURS = 6 * 3600.0
MODEL = make_model(autoscalingPolicyRef={"name": "steady"})


def starting(**fields: object) -> PodFacts:
    return make_pod(MODEL, "one", **{"ready": False, "phase": "Starting", "created_at": NOW, **fields})


def ready(**fields: object) -> PodFacts:
    return starting(**{"ready": True, "phase": "Ready", **fields})


def learnt(looks: Iterable[tuple[float, PodFacts | None]]) -> float | None:
    """The cold start after these looks (seconds from now, the pod). More is asked each time, so each is recorded."""
    index = FleetIndex()
    index.upsert(MODEL)
    index.upsert(make_policy(signal="Concurrency", target=10, maxReplicas=20))
    scaler = Scaler(index, lambda _: SPEED)
    for number, (passed, pod) in enumerate(looks):
        if pod is not None:
            index.upsert(pod)
        demand = Demand(running=10 * number + 5, rate=1.0)
        scaler.observe({"gateway": Report(NOW + passed, {MODEL.name: demand}, {})}, NOW + passed)
    scaling = index.scaling(MODEL.name)
    assert scaling is not None
    return scaling.record.cold_start


@pytest.mark.parametrize("restarts", [0, 1])
def test_what_starts_anew_or_blinks_is_no_cold_start(restarts: int):
    again = {"restarts": restarts}
    looks = [(-5, None), (0, starting()), (40, ready()), (HOURS, starting(**again)), (HOURS + 4, ready(**again))]
    assert learnt(looks) == 40.0


def test_an_engine_that_ended_before_it_was_ready_is_no_measure_of_a_start():
    assert learnt([(-5, None), (0, starting()), (900, ready(restarts=3))]) is None
    assert learnt([(-5, None), (0, starting()), (30, starting(restarts=1)), (900, ready(restarts=1))]) is None


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (starting(agent=AgentState(engine="Starting")), 60.0),
        (starting(phase="Pending", agent=None), 60.0),
        (starting(agent=AgentState(engine="Unhealthy", engine_epoch=7)), None),
        (starting(agent=None), None),
    ],
)
def test_a_new_leader_takes_no_pod_that_may_have_served_for_one_that_starts(shown: PodFacts, expected: float | None):
    assert learnt([(40, shown), (60, ready())]) == expected


def test_a_pod_that_leaves_before_it_is_ready_teaches_nothing():
    assert learnt([(-5, None), (0, starting()), (30, replace(starting(), phase="Terminating")), (60, ready())]) is None
