"""Where adapters are kept: declared replicas first; popular ones and unlucky ones further, where there is room."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_world import NOW, World, make_adapter, make_model, make_pod, of_kind, resident
from sheaf_crds import Adapter, AdapterStatus
from sheaf_crds.agent_api import AdapterState, AgentState
from sheaf_operator.planning import ClusterSnapshot, EmitEvent, SetCatalog, UpdateStatus, plan
from sheaf_operator.planning.pinning import pinning
from sheaf_operator.planning.popularity import wished_replicas

ROOMY = {"slots": 4, "maxAdapters": 8}
TIGHT = {"slots": 2, "maxAdapters": 2}


def with_desired(adapter: Adapter, replicas: int) -> Adapter:
    return adapter.model_copy(update={"status": AdapterStatus(desired_replicas=replicas)})


def active(*tenths: int) -> list[AdapterState]:
    return [AdapterState(name="a", state="Resident", activity=tenth / 10) for tenth in tenths]


@pytest.mark.parametrize(
    ("declared", "before", "tenths", "expected"),
    [
        (1, 1, (), 1),
        (1, 1, (7,), 1),
        (1, 1, (8,), 2),
        (1, 2, (8, 0), 2),
        (1, 2, (3, 3), 2),
        (1, 2, (3, 2), 1),
        (1, 2, (9, 9), 3),
        (1, 9, (3, 0), 1),
        (1, 1, (2, 2, 2, 2), 2),
        (2, 2, (1, 1), 2),
        (0, 0, (10, 10), 0),
        (5, 1, (), 5),
    ],
)
def test_an_adapter_rises_when_busy_and_falls_when_fewer_would_do(declared, before, tenths, expected):
    adapter = with_desired(make_adapter("a", replicas=declared), before)
    assert wished_replicas(adapter, active(*tenths)) == expected


@given(st.integers(1, 4), st.integers(0, 8), st.lists(st.integers(0, 10), max_size=8))
def test_what_is_wished_once_is_wished_again_while_nothing_changes(declared, before, tenths):
    adapter = with_desired(make_adapter("a", replicas=declared), before)
    once = wished_replicas(adapter, active(*tenths))
    assert wished_replicas(with_desired(adapter, once), active(*tenths)) == once
    assert once >= declared


@settings(max_examples=300)
@given(st.integers(1, 8), st.lists(st.integers(0, 10), min_size=1, max_size=8), st.integers(0, 7))
def test_a_step_of_activity_up_and_down_again_does_not_flutter(before, tenths, which):
    """After one change, going one step to and fro changes nothing any more."""
    more = list(tenths)
    more[which % len(more)] = min(10, more[which % len(more)] + 1)
    adapter = with_desired(make_adapter("a"), before)
    wishes = []
    for _ in range(3):
        for now in (more, tenths):
            adapter = with_desired(adapter, wished_replicas(adapter, active(*now)))
            wishes.append(adapter.status.desired_replicas)
    assert len(set(wishes[2:])) == 1


def holders(model, adapters, pods) -> dict[str, set[str]]:
    return {name: set(on) for name, on in pinning(model, adapters, pods).by_adapter.items()}


def busy_pod(model, name, **fields):
    states = (AdapterState(name="hot", state="Resident", activity=0.9),)
    return make_pod(model, name, agent=AgentState(engine="Ready", adapters=states), **fields)


def test_a_popular_adapter_gets_further_replicas():
    model = make_model(replicas=3, lora=ROOMY)
    pods = [busy_pod(model, "p"), make_pod(model, "q"), make_pod(model, "r")]
    placed = holders(model, [make_adapter("hot"), make_adapter("cold")], pods)
    assert len(placed["hot"]) == 2
    assert len(placed["cold"]) == 1


def test_a_popular_adapter_takes_no_slot_that_another_declares_nor_the_last_one_of_a_pod():
    model = make_model(replicas=2, lora=TIGHT)
    pods = [busy_pod(model, "p"), busy_pod(model, "q")]
    others = [make_adapter(name) for name in ("a", "b")]
    placed = holders(model, [make_adapter("hot", priority=9), *others], pods)
    assert {name: len(on) for name, on in placed.items()} == {"hot": 1, "a": 1, "b": 1}


counts = st.integers(0, 3)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(counts, st.integers(0, 10)), max_size=12), st.integers(1, 5), st.integers(1, 6))
def test_popularity_moves_no_declared_replica(declared, pods, capacity):
    model = make_model(replicas=pods, lora={"slots": 1, "maxAdapters": capacity})
    adapters = [make_adapter(f"a{i}", replicas=replicas) for i, (replicas, _) in enumerate(declared)]
    states = tuple(AdapterState(name=f"a{i}", state="Resident", activity=t / 10) for i, (_, t) in enumerate(declared))
    quiet = [make_pod(model, f"p{i}") for i in range(pods)]
    loud = [replace(pod, agent=AgentState(engine="Ready", adapters=states)) for pod in quiet]
    before, after = pinning(model, adapters, quiet).by_pod, pinning(model, adapters, loud).by_pod
    assert all(before[pod] <= after[pod] for pod in before)
    assert all(len(after[pod]) <= max(len(before[pod]), capacity - 1) for pod in before)


def failing(reason: str) -> AgentState:
    return AgentState(engine="Ready", adapters=(AdapterState(name="a", state="Failed", reason=reason, message="no"),))


@pytest.mark.parametrize(("reason", "pods"), [("DiskFull", 2), ("DigestMismatch", 1), ("RankTooHigh", 1)])
def test_what_fails_for_a_reason_of_its_pod_is_tried_on_another_one_and_what_fails_everywhere_is_not(reason, pods):
    model, adapter = make_model(replicas=3), make_adapter("a")
    fine = [make_pod(model, name) for name in "pqr"]
    (first,) = holders(model, [adapter], fine)["a"]
    placed = holders(
        model, [adapter], [replace(pod, agent=failing(reason)) if pod.name == first else pod for pod in fine]
    )
    assert first in placed["a"]
    assert len(placed["a"]) == pods


def test_what_fails_on_pod_after_pod_is_tried_on_few():
    model, adapter = make_model(replicas=6), make_adapter("a")
    pods = [make_pod(model, f"p{i}", agent=failing("EngineRefused")) for i in range(6)]
    assert len(holders(model, [adapter], pods)["a"]) == 3


def test_a_failure_on_a_pod_that_need_not_hold_it_changes_nothing():
    model, adapter = make_model(replicas=3), make_adapter("a")
    fine = [make_pod(model, name) for name in "pqr"]
    (first,) = holders(model, [adapter], fine)["a"]
    elsewhere = [pod if pod.name == first else replace(pod, agent=failing("DiskFull")) for pod in fine]
    assert holders(model, [adapter], elsewhere)["a"] == {first}


def test_an_adapter_that_was_unlucky_on_one_pod_gets_ready_on_another():
    world = World(ClusterSnapshot((make_model(replicas=2),), (make_adapter("a"),)))
    world.settle()
    (first,) = (pod.name for pod in world.snapshot.pods if pod.agent and pod.agent.adapters)
    agent = world.pods[first].agent
    broken = agent.model_copy(update={"adapters": failing("DiskFull").adapters})
    world.become(first, agent=broken)
    world.step()
    assert world.snapshot.adapters[0].status.condition("Ready").reason == "DiskFull"
    world.step()
    status = world.snapshot.adapters[0].status
    assert status.condition("Ready").reason == "Resident"
    assert {placement.state for placement in status.placements} == {"Failed", "Resident"}
    assert (status.ready_replicas, status.desired_replicas) == (1, 1)


def settled_world(**spec) -> World:
    adapters = make_adapter("a"), make_adapter("b", replicas=2), make_adapter("c", replicas=0)
    world = World(ClusterSnapshot((make_model(replicas=3, **spec),), adapters))
    world.settle()
    return world


def flutter(world: World, turn: int) -> None:
    """Load, activity and what requests load and unload change on every pod."""
    for pod in world.snapshot.pods:
        states = [
            state.model_copy(update={"activity": (turn % 6) / 10}) for state in pod.agent.adapters if state.name != "c"
        ]
        asked = [AdapterState(name="c", state="Resident", digest="sha256:x")] if turn % 2 else []
        load = pod.agent.load.model_copy(update={"running": turn, "kv_usage": (turn % 10) / 10})
        update = {"version": turn, "load": load, "adapters": (*states, *asked)}
        world.become(pod.name, agent=pod.agent.model_copy(update=update))


def test_load_activity_and_what_requests_load_cause_no_writes():
    world = settled_world()
    for turn in range(30):
        flutter(world, turn)
        assert world.step() == []


def test_a_popular_adapter_is_spread_over_further_pods_and_withdrawn_when_it_is_quiet():
    world = settled_world()
    (first,) = (pod.name for pod in world.snapshot.pods if any(s.name == "a" for s in pod.agent.adapters))

    def show(activity: float) -> None:
        agent = world.pods[first].agent
        states = [s.model_copy(update={"activity": activity if s.name == "a" else 0.0}) for s in agent.adapters]
        world.become(first, agent=agent.model_copy(update={"adapters": tuple(states)}))

    def status(name: str = "a") -> AdapterStatus:
        return next(one.status for one in world.snapshot.adapters if one.name == name)

    show(0.9)
    catalogs = of_kind(world.step(), SetCatalog)
    assert len(catalogs) == 1
    show(0.9)
    world.step()
    assert (status().desired_replicas, status().ready_replicas) == (2, 2)
    assert status().condition("Ready").message == "resident on 2 replicas"
    for _ in range(4):
        show(0.6)
        assert world.step() == []
    show(0.0)
    world.settle()
    assert (status().desired_replicas, status().ready_replicas) == (1, 1)
    assert {event.reason for event in of_kind(world.history, EmitEvent) if event.name == "a"} <= {
        "Loading",
        "NoReplicas",
        "Resident",
    }


def test_an_extra_replica_that_still_loads_does_not_make_an_adapter_unready():
    model = make_model(replicas=2, lora=ROOMY)
    snapshot = ClusterSnapshot((model,), (make_adapter("hot"),), pods=(busy_pod(model, "p"), make_pod(model, "q")))
    (status,) = (a.status for a in of_kind(plan(snapshot, NOW).actions, UpdateStatus) if a.kind == "Adapter")
    assert status.desired_replicas == 2
    assert status.condition("Ready").status == "True"
    assert status.condition("Ready").message == "resident on 1 replica"


def test_a_status_holds_a_bounded_number_of_placements_and_rather_those_with_trouble():
    model = make_model(replicas=300)
    failed = make_pod(model, "z", agent=failing("DiskFull"))
    pods = (*(make_pod(model, f"p{i:03}", agent=resident("a")) for i in range(299)), failed)
    snapshot = ClusterSnapshot((model,), (make_adapter("a", replicas=300),), pods=pods)
    (status,) = (a.status for a in of_kind(plan(snapshot, NOW).actions, UpdateStatus) if a.kind == "Adapter")
    assert len(status.placements) == 256
    assert [p.pod for p in status.placements if p.state == "Failed"] == ["z"]
    assert status.ready_replicas == 299
    assert len(status.model_dump_json()) < 64_000
