"""The operator may die before or after any action, see old snapshots, or miss events: the end is the same."""

import random
from dataclasses import replace

import pytest
from operator_world import World, make_adapter, make_model
from sheaf_operator.planning import ClusterSnapshot, CreatePod, plan

ADAPTERS = (make_adapter("a", replicas=2), make_adapter("b"))


def start(replicas: int = 2, adapters=ADAPTERS) -> World:
    world = World(ClusterSnapshot((make_model(replicas=replicas),), adapters))
    world.settle()
    return world


def edited(world: World, **spec) -> World:
    world.replace_model(make_model(**spec))
    return world


def with_adapters(world: World, *adapters) -> World:
    world.snapshot = replace(world.snapshot, adapters=adapters)
    return world


def a_b_a() -> World:
    world = edited(start(), replicas=2, source="hf://org/b")
    for _ in range(3):
        world.step()
    return edited(world, replicas=2)


WORKLOADS = {
    "create": lambda: World(ClusterSnapshot((make_model(replicas=2),), ADAPTERS)),
    "scale up": lambda: edited(start(1), replicas=3),
    "scale down": lambda: edited(start(3), replicas=1),
    "template change": lambda: edited(start(), replicas=2, source="hf://org/b"),
    "adapter added": lambda: with_adapters(start(), *ADAPTERS, make_adapter("c")),
    "adapter changed": lambda: with_adapters(start(), make_adapter("a", digest="sha256:" + "1" * 64)),
    "adapter removed": lambda: with_adapters(start(), ADAPTERS[0]),
    "deleted while starting": lambda: replace_models(World(ClusterSnapshot((make_model(replicas=2),)), lag=9)),
    "there and back": a_b_a,
}


def replace_models(world: World) -> World:
    world.step()
    world.snapshot = replace(world.snapshot, models=())
    return world


def outcome(world: World):
    """The state that counts: what runs, what is loaded, what is said (moments and identities aside)."""
    pods = {
        pod.name: (pod.template_hash, pod.phase, {s.name: s.digest for s in pod.agent.adapters} if pod.agent else None)
        for pod in world.snapshot.pods
    }
    said = {
        (item.kind, item.name): [(c.type, c.status, c.reason, c.message) for c in item.status.conditions]
        for item in (*world.snapshot.models, *world.snapshot.adapters)
    }
    return sorted(value[0] for value in pods.values()), len(pods), said


def crashing_run(workload, crash_at: int) -> World:
    """One life that dies after so many actions, then another that lives; time passes in between."""
    world, left = WORKLOADS[workload](), crash_at
    while left >= 0:
        for action in world.decide():
            if left == 0:
                world.tick()
                world.settle()
                return world
            world.act(action)
            left -= 1
        if left == crash_at and not world.decide():
            break
        world.tick()
        crash_at = left
    world.settle()
    return world


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_death_at_any_action_changes_nothing_in_the_end(workload, part):
    whole = WORKLOADS[workload]()
    length = len(whole.history)
    whole.settle()
    expected = outcome(whole)
    for crash_at in range(part, len(whole.history) - length + 1, 4):
        assert outcome(crashing_run(workload, crash_at)) == expected, f"died before action {crash_at}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("workload", WORKLOADS)
def test_old_snapshots_lead_to_the_same_end_and_to_no_double_pod(workload, seed):
    """Some passes decide on a snapshot of a few passes ago; creation meets the pod that is there, deletion goes by UID."""
    whole = WORKLOADS[workload]()
    whole.settle()
    world, dice = WORKLOADS[workload](), random.Random(seed)
    seen = [world.snapshot]
    for _ in range(12):
        stale = seen[-dice.randint(1, min(4, len(seen)))]
        for action in plan(stale, world.now).actions:
            if isinstance(action, CreatePod) and action.name in world.pods:
                continue
            repeat(world, action)
        world.tick()
        seen.append(world.snapshot)
    world.settle()
    assert outcome(world)[:2] == outcome(whole)[:2]


def repeat(world: World, action) -> None:
    """Carry an action out as a cluster does: an agent refuses an older catalog."""
    pod = world.pods.get(getattr(action, "pod", ""))
    if pod is not None and (
        pod.uid != action.uid or pod.agent is None or pod.agent.catalog_generation >= action.catalog.generation
    ):
        return
    if getattr(action, "seconds", None) is not None and world.pods.get(action.name) is None:
        return
    world.act(action)
