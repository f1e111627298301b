"""Pods that have to go: noticed ones are replaced at once and drained in time, failed ones with growing patience."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_world import NOW, World, make_adapter, make_model, make_notice, make_pod, of_kind
from sheaf_crds.agent_api import AgentState, EngineLoad
from sheaf_operator.planning import ClusterSnapshot, CreatePod, DeletePod, DrainPod, plan
from sheaf_operator.planning.failures import FAILED_POD_AGE, LONGEST_WAIT, failures
from sheaf_operator.planning.leaving import see_off
from sheaf_operator.planning.template import template_hash


def snapshot(model, *pods):
    return ClusterSnapshot(models=(model,), pods=pods)


def planned(model, *pods, now: float = NOW):
    return plan(snapshot(model, *pods), now)


def departures(actions):
    return of_kind(actions, (DeletePod, DrainPod))


@pytest.mark.parametrize(("left", "seconds"), [(30.0, 30.0), (300.0, 60.0)])
def test_a_noticed_pod_is_replaced_in_the_same_pass_and_drained_within_what_is_left_of_its_time(left, seconds):
    model = make_model(replicas=1, drainTimeout="60s")
    actions = planned(model, make_pod(model, "p", notice=make_notice(left))).actions
    assert len(of_kind(actions, CreatePod)) == 1
    (drain,) = departures(actions)
    assert (drain.name, drain.seconds, drain.reason) == ("p", seconds, "SpotInterruption: the node is taken back")


@pytest.mark.parametrize(
    "fields",
    [{"notice": make_notice(0.0)}, {"ready": False, "phase": "Starting"}, {"agent": None}],
    ids=["too late", "not serving", "mute"],
)
def test_a_noticed_pod_that_has_nothing_to_finish_or_no_time_is_deleted(fields):
    model = make_model(replicas=1)
    (gone,) = departures(planned(model, make_pod(model, "p", **({"notice": make_notice()} | fields))).actions)
    assert isinstance(gone, DeletePod)


def test_a_notice_without_a_time_waits_for_the_replacement():
    world = World(snapshot(make_model(replicas=1)), lag=3)
    world.settle()
    (first,) = world.pods
    world.become(first, notice=make_notice(None))
    served = []
    while first in world.pods and not world.pods[first].draining:
        served.append(world.serving)
        world.step()
    assert len(world.pods) == 2
    assert world.serving == 1
    world.settle()
    assert first not in world.pods
    assert len(world.pods) == 1


def test_a_pod_that_bides_is_given_adapters_until_it_is_replaced():
    """Nothing can replace it: it still gets what is declared, and the adapter is ready there."""
    world = World(snapshot(make_model(replicas=1)))
    world.settle()
    (first,) = world.pods
    world.lag = 10_000
    world.become(first, notice=make_notice(None))
    world.declare(make_adapter("a"))
    for _ in range(4):
        world.step()
    assert [state.name for state in world.pods[first].agent.adapters] == ["a"]
    assert world.snapshot.adapters[0].status.condition("Ready").reason == "Resident"
    assert world.step() == []


def test_a_noticed_pod_is_drained_once_and_then_deleted():
    world = World(snapshot(make_model(replicas=1)))
    world.settle()
    (first,) = world.pods
    world.become(first, notice=replace(make_notice(), deadline=world.now + 20))
    world.settle()
    told = [(type(action), action.name) for action in departures(world.history)]
    assert told == [(DrainPod, first), (DeletePod, first)]


def test_the_model_says_which_notice_made_it_unready():
    model = make_model(replicas=1)
    world = World(snapshot(model, make_pod(model, "p", notice=make_notice(None))), lag=3)
    world.step()
    status = world.snapshot.models[0].status
    assert status.condition("Ready").reason == "SpotInterruption"
    assert status.condition("Ready").message == (
        "0 of 1 replica ready; p has to go and is being replaced: the node is taken back"
    )
    assert status.condition("Available").status == "True"


def test_a_pod_stuck_on_a_lost_node_is_replaced_and_left_alone():
    model = make_model(replicas=1)
    stuck = make_pod(model, "p", phase="Terminating", ready=False, agent=None, notice=make_notice())
    actions = planned(model, stuck).actions
    assert len(of_kind(actions, CreatePod)) == 1
    assert departures(actions) == []


def test_a_new_pod_takes_no_name_that_a_pod_of_an_older_namesake_still_has():
    model = make_model(replicas=1)
    name = f"m-{template_hash(model)}-0"
    older = make_pod(model, name, owner_uid="uid-of-another", phase="Terminating", ready=False)
    assert [action.name for action in of_kind(planned(model, older).actions, CreatePod)] == [name[:-1] + "1"]


def test_a_pod_whose_engine_is_stopped_alone_does_not_serve_and_keeps_its_place():
    model = make_model(replicas=1)
    stopped = AgentState(engine="Ready", draining=True, drain_deadline=NOW - 1, drains_until_restart=True)
    pod = make_pod(model, "p", agent=stopped)
    assert (pod.serving, pod.answers, pod.live) == (False, False, True)
    actions = planned(model, pod).actions
    assert (of_kind(actions, CreatePod), departures(actions)) == ([], [])


def test_noticed_and_draining_pods_of_no_model_go_too():
    gone = make_model("gone")
    noticed = make_pod(gone, "p", notice=make_notice(None))
    drained = AgentState(engine="Ready", draining=True, drain_deadline=NOW - 1)
    actions = plan(ClusterSnapshot(pods=(noticed, make_pod(gone, "q", agent=drained))), NOW).actions
    assert [(type(action), action.name) for action in actions] == [(DeletePod, "q"), (DrainPod, "p")]


def test_a_drain_ends_when_all_is_done_and_told_or_when_its_time_is_up():
    model = make_model()
    idle = AgentState(engine="Ready", draining=True, drain_deadline=NOW + 60)
    busy = idle.model_copy(update={"load": EngineLoad(waiting=1)})

    def over(agent, now):
        return bool(see_off([make_pod(model, "p", agent=agent)], 60.0, now, replaced=True))

    assert [over(idle, NOW), over(idle, NOW + 2), over(busy, NOW + 59), over(busy, NOW + 60)] == [
        False,
        True,
        False,
        True,
    ]


def failed(model, name, at, **fields):
    return make_pod(model, name, phase="Failed", ready=False, created_at=at, agent=None, message="no disk", **fields)


def test_a_pod_that_failed_at_once_keeps_its_place_for_a_moment_and_is_then_replaced():
    model = make_model(replicas=1)
    decided = planned(model, failed(model, "f", NOW))
    assert of_kind(decided.actions, (CreatePod, DeletePod)) == []
    assert decided.wake_at == NOW + FAILED_POD_AGE
    later = planned(model, failed(model, "f", NOW), now=NOW + FAILED_POD_AGE).actions
    assert len(of_kind(later, CreatePod)) == 1


def test_a_pod_that_ran_for_long_and_was_evicted_is_replaced_at_once():
    model = make_model(replicas=2)
    evicted = failed(model, "f", NOW - 86_400, ended_at=NOW, reason="Evicted")
    actions = planned(model, evicted, make_pod(model, "p")).actions
    assert len(of_kind(actions, CreatePod)) == 1


def test_a_failed_pod_stays_as_the_record_until_enough_pods_serve_again():
    model = make_model(replicas=1)
    old, new = failed(model, "f", NOW - 100), make_pod(model, "p", ready=False, phase="Starting")
    assert departures(planned(model, old, new).actions) == []
    recovered = departures(planned(model, old, make_pod(model, "p")).actions)
    assert [(action.name, action.reason) for action in recovered] == [("f", "it failed: no disk")]


def test_failed_pods_of_an_older_template_are_cleared_away_and_hold_no_place():
    model = make_model(replicas=1)
    actions = planned(model, failed(model, "f", NOW, template_hash="outdated")).actions
    assert [action.name for action in departures(actions)] == ["f"]
    assert len(of_kind(actions, CreatePod)) == 1


def test_replacing_what_fails_every_time_gets_slower_and_slower_up_to_a_bound():
    world, made = World(snapshot(make_model(replicas=1))), []
    while world.now < NOW + 2_000:
        for action in world.decide():
            world.act(action)
            made += [world.now] if isinstance(action, CreatePod) else []
        for name, pod in world.pods.items():
            if pod.phase != "Failed":
                world.become(name, phase="Failed", reason="Evicted", message="no disk", ended_at=world.now + 1)
        world.tick()
    pauses = [later - sooner for sooner, later in itertools.pairwise(made)]
    assert pauses == sorted(pauses)
    assert pauses[0] == FAILED_POD_AGE
    assert pauses[-1] == pytest.approx(LONGEST_WAIT, abs=1)
    assert len(world.pods) <= 2
    assert world.snapshot.models[0].status.condition("Ready").reason == "Evicted"


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=6), st.booleans())
def test_every_failed_pod_holds_its_place_or_is_cleared_away_but_for_one_record(times, recovered):
    model, now = make_model(), NOW + 1000
    pods = [failed(model, f"f{i}", NOW + made, ended_at=NOW + made + lived) for i, (made, lived) in enumerate(times)]
    sorted_out = failures(pods, {template_hash(model)}, now, recovered=recovered)
    rest = len(pods) - len(sorted_out.holding) - len(sorted_out.spent)
    assert rest in ((0,) if recovered else (0, 1))
    assert not any(pod in sorted_out.holding for pod in sorted_out.spent)
    assert all(now < time <= now + LONGEST_WAIT for time in sorted_out.replaced_at)
