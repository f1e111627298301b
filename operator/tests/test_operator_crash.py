"""The operator may die around any action, see old views, or miss events: the end is the same, and nothing is lost.

The sweep kills the operator before and after each of the N actions of each workload. After a death a new operator
begins with what the cluster is like, or with the view that the dead one had. Every run is a function of its seed, which
is in the name of the test.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from operator_world import NOW, Operator, World, make_adapter, make_model, make_notice
from sheaf_crds.agent_api import AgentState
from sheaf_operator.planning import Action, ClusterSnapshot, CreatePod

ADAPTERS = (make_adapter("a", replicas=2), make_adapter("b"))
SEEDS = range(6)


def start(replicas: int = 2, **spec) -> World:
    world = World(ClusterSnapshot((make_model(replicas=replicas, **spec),), ADAPTERS))
    world.settle()
    return world


def edited(world: World, **spec) -> World:
    world.replace_model(make_model(**spec))
    return world


def declaring(world: World, *adapters) -> World:
    world.declare(*adapters)
    return world


def there_and_back() -> World:
    world = edited(start(), replicas=2, source="hf://org/b")
    for _ in range(3):
        world.step()
    return edited(world, replicas=2)


def noticed() -> World:
    world = start(spot={"policy": "Required"})
    world.become(world.snapshot.pods[0].name, notice=make_notice(45))
    return world


def deleted_while_starting() -> World:
    world = World(ClusterSnapshot((make_model(replicas=2),)), lag=9)
    world.step()
    world.snapshot = replace(world.snapshot, models=())
    return world


def made_again() -> World:
    """The Model was deleted and made again under its name, and nobody saw it."""
    world = start()
    again = make_model(replicas=2, metadata={"uid": "uid-of-the-second"})
    world.snapshot = replace(world.snapshot, models=(again,))
    return world


def evicted() -> World:
    world = start()
    name = world.snapshot.pods[0].name
    world.become(name, phase="Failed", ready=False, reason="Evicted", message="no disk", agent=None, ended_at=world.now)
    return world


def lost_node() -> World:
    world = start()
    world.become(world.snapshot.pods[0].name, phase="Terminating", ready=False, agent=None)
    return world


WORKLOADS: dict[str, Callable[[], World]] = {
    "create": lambda: World(ClusterSnapshot((make_model(replicas=2),), ADAPTERS)),
    "scale-up": lambda: edited(start(1), replicas=3),
    "scale-down": lambda: edited(start(3), replicas=1),
    "template-change": lambda: edited(start(), replicas=2, source="hf://org/b"),
    "adapter-added": lambda: declaring(start(), *ADAPTERS, make_adapter("c")),
    "adapter-changed": lambda: declaring(start(), make_adapter("a", digest="sha256:" + "1" * 64)),
    "adapter-removed": lambda: declaring(start(), ADAPTERS[0]),
    "spot-notice": noticed,
    "spot-wanted": lambda: edited(start(), replicas=2, spot={"policy": "Preferred", "onDemandFloor": 1}),
    "deleted-while-starting": deleted_while_starting,
    "there-and-back": there_and_back,
    "made-again": made_again,
    "evicted": evicted,
    "lost-node": lost_node,
}


def outcome(world: World):
    """The state that counts: what runs, what is loaded, what is said (moments, names and identities aside)."""
    pods = Counter(
        (
            pod.template_hash,
            pod.phase,
            pod.owner_uid,
            pod.spot,
            pod.agent is not None and pod.agent.draining,
            tuple(sorted((s.name, s.digest) for s in pod.agent.adapters)) if pod.agent else None,
        )
        for pod in world.snapshot.pods
    )
    said = {
        (item.kind, item.name): [(c.type, c.status, c.reason, c.message) for c in item.status.conditions]
        for item in (*world.snapshot.models, *world.snapshot.adapters)
    }
    return pods, said


def actions_until_settled(world: World) -> Iterator[Action]:
    """The uninterrupted life, action by action; each is carried out when the next one is asked for."""
    while True:
        before, actions = world.snapshot, world.decide()
        for action in actions:
            yield action
            world.act(action)
        world.tick()
        if not actions and world.snapshot == before and not world.skip():
            return


def killed(workload: str, at: int, *, after: bool) -> World:
    """Die around the action of that number; the next operator starts from the state before that pass, then catches up.

    A death before an action loses it and all that follow in its pass. A death after it leaves it done and unobserved.
    """
    world = WORKLOADS[workload]()
    life = actions_until_settled(world)
    for _ in range(at):
        next(life)
    view, action = world.snapshot, next(life)
    if after:
        world.act(action)
    world.operator, world.strict = Operator(), False
    if after:
        for repeated in world.operator.decide(view, world.now):
            world.act(repeated)
    world.tick()
    world.settle()
    return world


def length(workload: str) -> int:
    return sum(1 for _ in actions_until_settled(WORKLOADS[workload]()))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_death_around_any_action_changes_nothing_in_the_end(workload: str, after: bool) -> None:
    whole = WORKLOADS[workload]()
    whole.settle()
    for at in range(length(workload)):
        assert outcome(killed(workload, at, after=after)) == outcome(whole), f"died around action {at}"


class LaggingView:
    """What an operator is shown: every kind lags by itself, steps are left out, and none is shown twice.

    What came and went between two steps (a create and a delete, a delete and a create) is never seen.
    """

    KINDS = ("models", "adapters", "slos", "policies", "pods")

    def __init__(self, first: ClusterSnapshot, dice: random.Random) -> None:
        self.truth, self.dice = [first], dice
        self.position = dict.fromkeys(self.KINDS, 0)

    def add(self, snapshot: ClusterSnapshot) -> None:
        self.truth.append(snapshot)

    def look(self) -> ClusterSnapshot:
        for kind in self.KINDS:
            self.position[kind] = self.dice.randint(self.position[kind], len(self.truth) - 1)
        return ClusterSnapshot(**{kind: getattr(self.truth[at], kind) for kind, at in self.position.items()})


def blurred(workload: str, seed: int) -> World:
    """Lives on lagging views that end now and then in the middle of a pass; at last one that sees everything."""
    dice = random.Random(f"{workload}/{seed}")
    world = WORKLOADS[workload]()
    world.strict, world.operator = False, Operator()
    view = LaggingView(world.snapshot, dice)
    for _ in range(20):
        actions = world.operator.decide(view.look(), world.now)
        dies = dice.random() < 0.2
        for action in actions[: dice.randint(0, len(actions))] if dies else actions:
            world.act(action)
        world.operator = Operator() if dies else world.operator
        world.tick()
        view.add(world.snapshot)
    world.operator = Operator()
    world.settle()
    return world


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_lagging_views_and_missed_events_lead_to_the_same_end(workload: str, seed: int) -> None:
    whole = WORKLOADS[workload]()
    whole.settle()
    assert outcome(blurred(workload, seed)) == outcome(whole)


@pytest.mark.parametrize("workload", ["template-change", "spot-notice"])
def test_a_seed_replays_bit_for_bit(workload: str) -> None:
    first, second = blurred(workload, 1), blurred(workload, 1)
    assert first.history == second.history
    assert first.snapshot == second.snapshot


def test_no_pod_is_made_twice_however_often_an_old_view_is_planned() -> None:
    world = World(ClusterSnapshot((make_model(replicas=3),)), strict=False)
    view = world.snapshot
    for _ in range(4):
        for action in Operator().decide(view, world.now):
            world.act(action)
    assert len({action.name for action in world.history if isinstance(action, CreatePod)}) == 3
    assert len(world.pods) == 3


def test_a_pod_that_came_later_under_the_same_name_survives_an_old_deletion() -> None:
    world = start(1)
    (pod,) = world.snapshot.pods
    view = replace(world.snapshot, models=(make_model(replicas=0),))
    world.become(pod.name, uid="of-another", agent=AgentState(engine="Ready"))
    world.strict = False
    for action in Operator().decide(view, NOW):
        world.act(action)
    assert not world.pods[pod.name].draining
