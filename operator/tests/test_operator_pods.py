"""Pods: rollouts never cost capacity, the cheapest pod goes first, names make creation idempotent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_world import NOW, World, make_adapter, make_model, make_pod, make_policy, of_kind, resident
from sheaf_crds.agent_api import AgentState, EngineLoad
from sheaf_operator.planning import ClusterSnapshot, CreatePod, DeletePod, DrainPod, PodFacts, plan
from sheaf_operator.planning.leaving import drained
from sheaf_operator.planning.scaling import desired_replicas
from sheaf_operator.planning.template import template_hash

OLD = "00000"


def snapshot(model, *pods, adapters=()):
    return ClusterSnapshot(models=(model,), adapters=tuple(adapters), pods=pods)


def removed(actions) -> list[str]:
    return [action.name for action in of_kind(actions, (DeletePod, DrainPod))]


def test_missing_replicas_are_created_under_the_lowest_free_names():
    model = make_model(replicas=3)
    kept = f"m-{template_hash(model)}-1"
    actions = plan(snapshot(model, make_pod(model, kept)), NOW).actions
    made = of_kind(actions, CreatePod)
    assert [action.name for action in made] == [f"m-{template_hash(model)}-{i}" for i in (0, 2)]
    assert made[0].reason == "3 replicas are wanted, 1 is there"


def test_a_repeated_pass_on_the_same_snapshot_asks_for_the_same_pods():
    seen = snapshot(make_model(replicas=4))
    assert plan(seen, NOW).actions == plan(seen, NOW).actions


def test_scaling_down_takes_what_does_not_serve_first_then_fewest_adapters_then_the_youngest():
    model = make_model(replicas=1)
    full = make_pod(model, "full", agent=resident("a"))
    old, young = make_pod(model, "old"), make_pod(model, "young", created_at=NOW - 1)
    starting = make_pod(model, "starting", ready=False, phase="Starting", created_at=NOW - 500)
    actions = plan(snapshot(model, full, old, young, starting), NOW).actions
    assert removed(actions) == ["starting", "young", "old"]


def test_a_pod_that_serves_is_drained_and_deleted_when_idle():
    model = make_model(replicas=0, drainTimeout="30s")
    world = World(snapshot(model, make_pod(model, "p")))
    drains = of_kind(world.step(), DrainPod)
    assert [(d.name, d.uid, d.seconds) for d in drains] == [("p", "uid-p", 30.0)]
    assert "p" in world.pods
    world.settle()
    assert world.pods == {}


def test_a_busy_pod_keeps_its_time_to_drain_and_then_goes():
    model = make_model(replicas=0, drainTimeout="20s")
    world = World(snapshot(model, make_pod(model, "p")), busy=True)
    while "p" in world.pods:
        world.step()
    assert 20 <= world.now - NOW <= 24


def test_without_time_to_drain_or_an_agent_a_pod_is_deleted_at_once():
    model = make_model(replicas=0, drainTimeout="0s")
    impatient = plan(snapshot(model, make_pod(model, "p")), NOW).actions
    lasting = make_model(replicas=0)
    mute = plan(snapshot(lasting, make_pod(lasting, "q", agent=None)), NOW).actions
    assert [type(a) for a in of_kind(impatient, (DrainPod, DeletePod))] == [DeletePod]
    assert [type(a) for a in of_kind(mute, (DrainPod, DeletePod))] == [DeletePod]


def test_a_drain_whose_agent_fell_silent_is_over():
    silent = make_pod(make_model(), "q", agent=None)
    assert drained(silent, 60.0, NOW)


def test_a_draining_pod_is_replaced_at_once():
    model = make_model(replicas=1)
    noticed = make_pod(model, "spot", agent=AgentState(engine="Ready", draining=True, drain_deadline=NOW + 30))
    made = of_kind(plan(snapshot(model, noticed), NOW).actions, CreatePod)
    assert len(made) == 1


def test_pods_of_no_model_or_of_its_namesake_before_it_go():
    model = make_model(replicas=0)
    stray = make_pod(make_model("gone"), "stray", ready=False, phase="Starting")
    namesake = make_pod(model, "namesake", owner_uid="uid-of-another", agent=None, phase="Terminating")
    serving = make_pod(make_model("gone"), "serving")
    actions = plan(snapshot(model, stray, namesake, serving), NOW).actions
    assert sorted(removed(actions)) == ["serving", "stray"]
    assert {a.reason for a in of_kind(actions, (DeletePod, DrainPod))} == {"Model gone is gone"}


def test_a_model_that_is_being_deleted_is_treated_as_gone():
    model = make_model(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    actions = plan(snapshot(model, make_pod(model, "p", agent=None)), NOW).actions
    assert removed(actions) == ["p"]


def test_the_plan_says_when_time_alone_would_change_it():
    model = make_model(replicas=0, drainTimeout="60s")
    draining = AgentState(engine="Ready", draining=True, drain_deadline=NOW + 60)
    assert plan(snapshot(model, make_pod(model, "p", agent=draining)), NOW).wake_at == NOW + 2
    busy = draining.model_copy(update={"load": EngineLoad(waiting=1)})
    assert plan(snapshot(model, make_pod(model, "p", agent=busy)), NOW + 5).wake_at == NOW + 60
    assert plan(snapshot(model), NOW).wake_at is None


replica_counts = st.integers(0, 4)


@settings(deadline=None, max_examples=12)
@given(
    before=replica_counts, after=replica_counts, lag=st.integers(1, 4), busy=st.booleans(), adapters=st.integers(0, 3)
)
def test_a_rollout_with_any_rescaling_never_costs_capacity_and_never_exceeds_the_surge(
    before, after, lag, busy, adapters
):
    declared = [make_adapter(f"a{i}", replicas=2) for i in range(adapters)]
    world = World(ClusterSnapshot(models=(make_model(replicas=before),), adapters=tuple(declared)), lag=lag, busy=busy)
    world.settle()
    assert len(world.pods) == before
    world.replace_model(make_model(replicas=after, source="hf://org/other"))
    for _ in range(300):
        idle = not world.step()
        serving = sum(pod.serving for pod in world.snapshot.pods)
        live = sum(pod.live for pod in world.snapshot.pods)
        assert serving >= min(before, after)
        assert live <= max(before, after + 1)
        if idle and len(world.pods) == after:
            break
    assert {pod.template_hash for pod in world.snapshot.pods} <= {template_hash(world.snapshot.models[0])}
    assert len(world.pods) == after


@settings(deadline=None, max_examples=8)
@given(replicas=st.integers(1, 4))
def test_a_template_that_never_comes_up_leaves_the_old_pods_serving(replicas):
    world = World(ClusterSnapshot(models=(make_model(replicas=replicas),)))
    world.settle()
    bad = make_model(replicas=replicas, source="hf://org/broken")
    world.broken = frozenset({template_hash(bad)})
    world.replace_model(bad)
    world.settle()
    assert sum(pod.serving for pod in world.snapshot.pods) == replicas
    assert len(world.pods) == replicas + 1
    world.replace_model(make_model(replicas=replicas))
    world.settle()
    assert len(world.pods) == replicas


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_from_any_snapshot_the_plan_reaches_a_fixpoint_without_double_pods(data):
    models = tuple(make_model(name, replicas=data.draw(replica_counts)) for name in ("m", "n"))
    adapters = tuple(
        make_adapter(f"a{i}", data.draw(st.sampled_from(["m", "n", "nowhere"])), replicas=data.draw(st.integers(0, 3)))
        for i in range(3)
    )
    world = World(ClusterSnapshot(models, adapters, pods=tuple(data.draw(strays(models)))))
    world.settle()
    for model in models:
        mine = [pod for pod in world.snapshot.pods if pod.model == model.name]
        assert len(mine) == model.spec.replicas
        assert all(pod.template_hash == template_hash(model) and pod.serving for pod in mine)
    assert len(world.snapshot.pods) == sum(model.spec.replicas for model in models)
    assert len({pod.name for pod in world.snapshot.pods}) == len(world.snapshot.pods)


@st.composite
def strays(draw, models):
    """Pods as an earlier life may have left them."""
    pods: list[PodFacts] = []
    for index in range(draw(st.integers(0, 5))):
        model = draw(st.sampled_from([*models, make_model("gone")]))
        phase = draw(st.sampled_from(["Pending", "Starting", "Ready", "Failed"]))
        agent = draw(st.sampled_from([None, AgentState(engine="Ready"), resident("a0", "stray")]))
        if draw(st.booleans()) and agent is not None:
            agent = agent.model_copy(update={"draining": True, "drain_deadline": NOW + draw(st.integers(-5, 20))})
        hashed = draw(st.sampled_from([OLD, template_hash(model)]))
        name = f"{model.name}-{hashed}-{index}"
        pods.append(make_pod(model, name, phase=phase, ready=phase == "Ready", agent=agent, template_hash=hashed))
    return pods


@pytest.mark.parametrize(
    ("fields", "goes"),
    [
        ({"engine_restarts": 1}, True),
        ({"engine_restarts": 0, "restarts": 2}, False),
        ({"engine_restarts": 1, "startup_limit": 600.0}, False),
        ({"engine_restarts": 1, "startup_limit": 0.0}, False),
        ({"engine_restarts": 1, "agent": AgentState(engine="Unhealthy", engine_epoch=3)}, False),
        ({"engine_restarts": 1, "phase": "Ready", "ready": True}, False),
    ],
)
def test_a_pod_that_was_ended_too_early_begins_anew_when_it_may_take_longer(fields, goes):
    model = make_model(replicas=1, startupTimeout="10m")
    values = {"phase": "Starting", "ready": False, "startup_limit": 60.0, "agent": AgentState(), **fields}
    actions = plan(ClusterSnapshot((model,), pods=(make_pod(model, "one", **values),)), NOW).actions
    deleted = of_kind(actions, DeletePod)
    assert [(one.name, one.reason) for one in deleted] == [("one", "its engine may take 10m to start by now")] * goes


@pytest.mark.parametrize(
    ("spec", "policy", "expected"),
    [
        ({"replicas": 2}, None, 2),
        ({"replicas": 5, "maxReplicas": 3}, None, 3),
        ({"replicas": 0, "minReplicas": 1}, None, 1),
        ({"replicas": 9}, {"maxReplicas": 4}, 4),
        ({"replicas": 0}, {"minReplicas": 2, "maxReplicas": 4}, 2),
        ({"replicas": 0}, {"minReplicas": 2, "maxReplicas": 4, "scaleToZero": {}}, 0),
        ({"replicas": 0, "minReplicas": 1}, {"minReplicas": 2, "maxReplicas": 4, "scaleToZero": {}}, 2),
        ({"replicas": 1}, {"minReplicas": 2, "maxReplicas": 4, "scaleToZero": {}}, 2),
        ({"replicas": 5, "maxReplicas": 1}, {"minReplicas": 3, "maxReplicas": 4}, 1),
    ],
)
def test_bounds_of_model_and_policy(spec, policy, expected):
    desired = desired_replicas(make_model(**spec), make_policy(**policy) if policy else None)
    assert desired.replicas == expected
    assert bool(desired.note) == (expected != spec["replicas"])
