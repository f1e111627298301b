"""Any field may change at any time, pods may fail and nodes may go: capacity is kept, and the end is what is declared."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_world import NOW, World, make_adapter, make_model, make_notice, make_pod, of_kind, resident
from sheaf_crds.agent_api import AgentState
from sheaf_operator.planning import ClusterSnapshot, CreatePod, DeletePod, DrainPod, UpdateStatus, plan
from sheaf_operator.planning.pods import surge
from sheaf_operator.planning.template import template_hash

SPOTS = [
    {"policy": "Never"},
    {"policy": "Required"},
    {"policy": "Preferred"},
    {"policy": "Preferred", "onDemandFloor": 1},
    {"policy": "Preferred", "onDemandFloor": 3},
]

specs = st.fixed_dictionaries(
    {
        "replicas": st.integers(0, 3),
        "source": st.sampled_from(["hf://org/name", "hf://org/b"]),
        "task": st.sampled_from(["Generate", "Generate", "Embed"]),
        "lora": st.sampled_from([{"slots": 8}, {"slots": 0}, {"slots": 1, "maxAdapters": 1}]),
        "spot": st.sampled_from(SPOTS),
        "engine": st.sampled_from([{"name": "emulator"}, {"name": "vllm"}, {"name": "emulator", "args": ["--seed=1"]}]),
        "drainTimeout": st.sampled_from(["0s", "3s"]),
        "startupTimeout": st.sampled_from(["4s", "15m"]),
    }
)
accidents = st.sampled_from(["", "", "notice", "far notice", "fail", "lose"])


def befall(world: World, accident: str) -> None:
    """Something happens to the first pod that serves."""
    name = next((pod.name for pod in world.snapshot.pods if pod.serving), None)
    if name is None or not accident:
        return
    deadline = world.now + 5 if accident == "notice" else None
    events = {
        "notice": {"notice": replace(make_notice(), deadline=deadline)},
        "far notice": {"notice": make_notice(None)},
        "fail": {"phase": "Failed", "ready": False, "reason": "Evicted", "agent": None, "ended_at": world.now},
        "lose": {"phase": "Terminating", "ready": False, "agent": None},
    }
    world.become(name, **events[accident])


def checked_step(world: World) -> None:
    """One pass: it takes no pod from service that is needed, and keeps within the surge."""
    model = world.snapshot.models[0]
    before, wanted = world.serving, model.spec.replicas
    actions = world.decide()
    for action in actions:
        world.act(action)
    assert world.serving >= min(before, wanted)
    if of_kind(actions, CreatePod):
        live = [pod for pod in world.snapshot.pods if pod.live]
        stand_ins = sum(pod.reason == "Unschedulable" for pod in live)
        assert len(live) <= max(before, wanted + surge(wanted) + stand_ins)
    world.tick()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(specs, accidents, st.integers(0, 4)), min_size=1, max_size=6), st.integers(1, 3))
def test_whatever_changes_and_whenever_capacity_is_kept_and_the_end_is_as_declared(edits, lag):
    world = World(
        ClusterSnapshot((make_model(replicas=2),), (make_adapter("a"), make_adapter("b", replicas=2))), lag=lag
    )
    world.settle()
    for spec, accident, passes in edits:
        world.replace_model(make_model(**spec))
        befall(world, accident)
        for _ in range(passes):
            checked_step(world)
    world.settle()
    model = world.snapshot.models[0]
    there = [pod for pod in world.snapshot.pods if pod.phase != "Terminating"]
    assert len(there) == model.spec.replicas
    assert all(pod.serving for pod in there)
    floor = {"Never": 9, "Required": 0, "Preferred": model.spec.spot.on_demand_floor}[model.spec.spot.policy]
    assert sum(not pod.spot for pod in there) == min(floor, model.spec.replicas)
    assert {pod.template_hash for pod in there} <= {template_hash(model), template_hash(model, spot=True)}
    assert model.status.condition("Ready").status == "True"
    assert model.status.condition("Progressing").reason == "Complete"


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_pass_takes_a_pod_from_service_that_is_needed(data):
    """From any state of the pods, however it came about."""
    model = make_model(**data.draw(specs))
    hashes = st.sampled_from([template_hash(model), template_hash(model, spot=True), "outdated"])
    agents = st.sampled_from([None, AgentState(engine="Ready"), AgentState(engine="Ready", catalog_generation=9)])
    shapes = data.draw(st.lists(st.tuples(hashes, st.booleans(), agents), max_size=8))
    pods = [
        make_pod(model, f"p{i}", template_hash=hashed, ready=up, phase="Ready" if up else "Starting", agent=agent)
        for i, (hashed, up, agent) in enumerate(shapes)
    ]
    gone = {
        action.name
        for action in of_kind(plan(ClusterSnapshot((model,), pods=tuple(pods)), NOW).actions, (DeletePod, DrainPod))
    }
    left = sum(pod.ready for pod in pods if pod.name not in gone)
    assert left >= min(sum(pod.ready for pod in pods), model.spec.replicas)


@pytest.mark.parametrize(("replicas", "expected"), [(0, 1), (1, 1), (10, 1), (11, 2), (95, 10)])
def test_a_larger_fleet_rolls_with_a_larger_surge(replicas, expected):
    assert surge(replicas) == expected
    model = make_model(replicas=replicas)
    old = tuple(make_pod(model, f"p{i}", template_hash="outdated") for i in range(replicas))
    made = of_kind(plan(ClusterSnapshot((model,), pods=old), NOW).actions, CreatePod)
    assert len(made) == min(expected, replicas)


def gone(model, *pods, adapters=()) -> set[str]:
    """The names of the pods that one pass sends away."""
    actions = plan(ClusterSnapshot((model,), tuple(adapters), pods=pods), NOW).actions
    return {action.name for action in of_kind(actions, (DeletePod, DrainPod))}


def holding(*names: str) -> AgentState:
    return resident(*names, catalog_generation=9)


@pytest.mark.parametrize(("agent", "leaves"), [(holding(), set()), (holding("a"), {"old"})])
def test_an_outdated_pod_stays_until_the_new_one_has_loaded_its_adapters(agent, leaves):
    model, adapter = make_model(replicas=1), make_adapter("a", replicas=2)
    old = make_pod(model, "old", template_hash="outdated", agent=holding("a"))
    assert gone(model, old, make_pod(model, "new", agent=agent), adapters=[adapter]) == leaves


@pytest.mark.parametrize(("agent", "leaves"), [(holding(), set()), (holding("a"), {"old"})])
def test_a_pod_of_the_other_capacity_stays_until_the_new_one_has_loaded_its_adapters(agent, leaves):
    model, adapter = make_model(replicas=1, spot={"policy": "Required"}), make_adapter("a", replicas=2)
    old = make_pod(model, "old", agent=holding("a"))
    new = make_pod(model, "new", agent=agent, template_hash=template_hash(model, spot=True))
    assert gone(model, old, new, adapters=[adapter]) == leaves


def test_a_pod_whose_agent_is_silent_takes_over_from_none_and_the_model_says_so():
    model = make_model(replicas=1)
    pods = make_pod(model, "old", template_hash="outdated"), make_pod(model, "new", agent=None)
    assert gone(model, *pods) == set()
    (status,) = (a.status for a in of_kind(plan(ClusterSnapshot((model,), pods=pods), NOW).actions, UpdateStatus))
    assert status.condition("Progressing").message == (
        "1 of 2 replicas is of the new template; new: its agent cannot be reached; see whether a network policy keeps "
        "the operator away"
    )


def test_outdated_and_surplus_pods_are_not_spared_twice():
    """Two replicas are wanted and three pods serve: one may go, of whichever sort."""
    model = make_model(replicas=2, spot={"policy": "Preferred", "onDemandFloor": 1})
    spot = {"template_hash": template_hash(model, spot=True), "ready": False, "phase": "Starting"}
    starting = [make_pod(model, name, **spot) for name in ("s1", "s2")]
    serving = [make_pod(model, name, agent=holding()) for name in ("d1", "d2")]
    old = make_pod(model, "old", template_hash="outdated", agent=holding())
    assert gone(model, *starting, *serving, old) & {"d1", "d2", "old"} == {"old"}


def stalled() -> World:
    world = World(ClusterSnapshot((make_model(replicas=2, startupTimeout="60s"),)))
    world.settle()
    bad = make_model(replicas=2, source="hf://org/broken", startupTimeout="60s")
    world.broken = frozenset({template_hash(bad)})
    world.replace_model(bad)
    return world


def conditions(world: World):
    status = world.snapshot.models[0].status
    return {kind: status.condition(kind) for kind in ("Ready", "Available", "Progressing")}


def test_a_template_that_never_gets_ready_is_told_and_takes_nothing_from_service():
    world = stalled()
    world.step()
    world.step()
    said = conditions(world)
    assert (said["Progressing"].status, said["Progressing"].reason) == ("True", "RollingUpdate")
    name = next(pod.name for pod in world.snapshot.pods if not pod.ready)
    world.become(name, reason="ImagePullBackOff", message="there is no such image")
    world.step()
    assert (
        conditions(world)["Progressing"].message
        == f"1 of 3 replicas is of the new template; {name}: there is no such image"
    )
    world.settle()
    said = conditions(world)
    assert (said["Ready"].status, said["Ready"].reason) == ("True", "Serving")
    assert (said["Progressing"].status, said["Progressing"].reason) == ("False", "RolloutStalled")
    assert said["Progressing"].message == (
        f"{name} is not ready 1m after it was made: there is no such image; the replicas before the change go on "
        "serving; correct the Model, or change it back"
    )
    warnings = [event.reason for event in world.history if getattr(event, "type", "") == "Warning"]
    assert warnings == ["RolloutStalled"]
    world.replace_model(make_model(replicas=2))
    world.settle()
    assert len(world.pods) == world.serving == 2
    assert conditions(world)["Progressing"].reason == "Complete"


@pytest.mark.parametrize(
    ("state", "reason", "backs_off", "leaves"),
    [
        (AgentState(engine="Stopped", draining=True, drains_until_restart=True), "", False, False),
        (AgentState(engine="Unhealthy", engine_epoch=7), "", False, False),
        (AgentState(engine="Stopped", engine_epoch=7), "OOMKilled", False, False),
        (AgentState(engine="Stopped", engine_epoch=7), "OOMKilled", True, True),
        (AgentState(engine="Stopped", engine_epoch=7), "CrashLoopBackOff", True, True),
        (AgentState(engine="Starting"), "", False, True),
    ],
)
def test_a_rollout_that_stalls_leaves_a_pod_of_before_that_starts_anew(state, reason, backs_off, leaves):
    before, model = make_model(replicas=2), make_model(replicas=2, engine={"name": "emulator", "args": ["--bad=1"]})
    outdated = template_hash(before)
    unready = {"phase": "Starting", "ready": False}
    stuck = make_pod(model, "stuck", **unready, reason="CrashLoopBackOff", backs_off=True, restarts=9)
    serving = make_pod(before, "serving", template_hash=outdated)
    fallen = make_pod(
        before, "fallen", template_hash=outdated, agent=state, reason=reason, backs_off=backs_off, **unready
    )
    assert gone(model, stuck, serving, fallen) == ({"fallen"} if leaves else set())
    new = make_pod(model, "new", agent=holding())
    assert "fallen" in gone(model, new, serving, fallen)
    scaled = make_model(replicas=1, engine={"name": "emulator", "args": ["--bad=1"]})
    assert "fallen" in gone(scaled, serving, fallen)


def test_the_mend_of_a_loop_without_memory_takes_the_place_of_the_pod_that_has_it():
    """Where there is no room for one pod more, the only room is that of the pod which never serves again."""
    before, model = make_model(replicas=1), make_model(replicas=1, engine={"name": "emulator", "args": ["--less=1"]})
    state = AgentState(engine="Stopped", engine_epoch=7)
    unready = {"ready": False, "restarts": 5, "template_hash": template_hash(before), "agent": state}
    looping = make_pod(before, "looping", phase="Starting", reason="OOMKilled", backs_off=True, **unready)
    waits = make_pod(model, "waits", phase="Pending", ready=False, reason="Unschedulable", agent=None)
    assert gone(model, looping, waits) == {"looping"}


def test_a_model_that_never_got_ready_says_so_when_its_time_is_up():
    model = make_model(replicas=1, startupTimeout="60s")
    world = World(ClusterSnapshot((model,)), broken=frozenset({template_hash(model)}))
    world.settle()
    said = conditions(world)["Progressing"]
    assert (said.reason, said.status) == ("StartupTimeout", "False")
    assert "nothing is known of why" in said.message


def test_a_pod_that_served_for_long_and_crashed_is_not_called_late():
    world = World(ClusterSnapshot((make_model(replicas=1, startupTimeout="60s"),)))
    world.settle()
    world.now += 1000
    name = world.snapshot.pods[0].name
    world.become(name, ready=False, phase="Starting", reason="CrashLoopBackOff", restarts=1)
    world.lag = 10_000
    world.step()
    assert conditions(world)["Progressing"].reason == "Starting"
    assert conditions(world)["Ready"].reason == "CrashLoopBackOff"
    world.now += 60
    world.step()
    assert conditions(world)["Progressing"].reason == "StartupTimeout"
