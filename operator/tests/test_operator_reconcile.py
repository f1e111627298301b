"""The loop: what changed is done once, a failing action backs off and stops no other, and no key starves another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_world import World, make_adapter, make_model, of_kind
from prometheus_client import generate_latest
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.handlers.backoff import Backoff
from sheaf_operator.handlers.reconcile import ACTIONS_PER_TURN, WRITES_PER_KEY, Reconciler, run
from sheaf_operator.planning import Action, ClusterSnapshot, CreatePod, Plan, UpdateStatus
from sheaf_operator.planning.compose import plan_key
from sheaf_operator.planning.index import FleetIndex, Key

KEY = Key("Model", "m")


class Simulated:
    """The world in virtual time behind the protocol; actions in `refused` fail."""

    def __init__(self, world: World) -> None:
        self.world, self.index = world, FleetIndex()
        self.refused: dict[type, Exception] = {}
        self.attempts: list[Action] = []
        self.planned: list[Key] = []
        self.confusing: set[Key] = set()
        self.at_once: dict[str, int] = {}
        self.most_at_once: dict[str, int] = {}
        self.pause = 0.0
        self.noticed = self.index.replace(world.snapshot)

    def look(self) -> None:
        self.noticed |= self.index.replace(self.world.snapshot)

    def plan(self, key: Key, now: float) -> Plan:
        self.planned.append(key)
        if key in self.confusing:
            raise KeyError("oops")
        return plan_key(self.index, key, now)

    async def act(self, action: Action) -> None:
        self.attempts.append(action)
        owner = action.key.split("/")[-1][0]
        self.at_once[owner] = self.at_once.get(owner, 0) + 1
        self.most_at_once[owner] = max(self.at_once[owner], self.most_at_once.get(owner, 0))
        await asyncio.sleep(self.pause)
        self.at_once[owner] -= 1
        if type(action) in self.refused:
            raise self.refused[type(action)]
        self.world.act(action)
        self.look()

    async def changed(self, timeout: float) -> frozenset[Key]:  # noqa: ASYNC109 - the protocol's own words
        await asyncio.sleep(0.001)
        self.world.tick()
        self.look()
        noticed, self.noticed = self.noticed, frozenset()
        return noticed


@pytest.fixture
def cluster() -> Simulated:
    return Simulated(World(ClusterSnapshot((make_model("m", replicas=2),))))


def reconciler(cluster: Simulated, **fields) -> Reconciler:
    def now() -> float:
        return cluster.world.now

    return Reconciler(cluster, now, now, **fields)


async def turn(loop: Reconciler, key: Key = KEY) -> None:
    await loop.one_turn(key, loop.ticks())
    loop.cluster.world.tick()
    loop.cluster.look()


@contextlib.asynccontextmanager
async def running(loop: Reconciler) -> AsyncIterator[None]:
    task = asyncio.create_task(loop.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - what holds is the cluster's business, it has no event
            await asyncio.sleep(0.005)


async def test_it_reaches_what_is_declared_and_then_rests(cluster: Simulated) -> None:
    loop = reconciler(cluster)
    async with running(loop):
        await until(lambda: len(cluster.world.pods) == 2 and all(pod.ready for pod in cluster.world.pods.values()))
        await asyncio.sleep(0.1)
        done = len(cluster.attempts)
        await asyncio.sleep(0.1)
        assert len(cluster.attempts) == done


async def test_a_failing_action_backs_off_and_the_others_go_on(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = ClusterError("no room")
    loop = reconciler(cluster)
    await turn(loop)
    assert len(of_kind(cluster.attempts, CreatePod)) == 2
    assert len(of_kind(cluster.attempts, UpdateStatus)) == 1
    cluster.world.now -= 0.9
    await turn(loop)
    assert len(of_kind(cluster.attempts, CreatePod)) == 2, "not yet"
    cluster.refused.clear()
    await turn(loop)
    assert len(cluster.world.pods) == 2
    assert loop.backoffs[KEY].size == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClusterError("create pods: exceeded quota; raise it"), "PodRefused"),
        (ClusterError("the API server does not answer", passing=True), "Starting"),
        (ValueError("oops"), "Starting"),
    ],
)
async def test_a_pod_that_is_refused_is_said_until_it_is_made(
    cluster: Simulated, error: Exception, reason: str
) -> None:
    def ready() -> tuple[str, str]:
        found = cluster.index.model("m").status.condition("Ready")
        return (found.reason, found.message) if found else ("", "")

    cluster.refused[CreatePod] = error
    loop = reconciler(cluster)
    async with running(loop):
        await until(lambda: ready()[0] == reason and loop.backoffs[KEY].size)
        assert reason != "PodRefused" or "raise it" in ready()[1]
        cluster.refused.clear()
        await until(lambda: ready()[0] == "Serving")
        assert cluster.index.refusal("m") == ""


async def test_a_refusal_is_forgotten_with_the_wish_for_the_pod(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = ClusterError("no room")
    loop = reconciler(cluster)
    await turn(loop)
    assert cluster.index.refusal("m") == "no room"
    cluster.index.upsert(make_model("m", replicas=0))
    await loop.one_turn(KEY, loop.ticks())
    assert cluster.index.refusal("m") == ""


async def test_what_failed_is_tried_again_without_a_change(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = ClusterError("no room")
    loop = reconciler(cluster)
    await turn(loop)
    assert loop.queue.next_timer() == pytest.approx(cluster.world.now - 1.0 + 0.5)


async def test_the_pause_that_the_server_asks_for_is_kept(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = ClusterError("too many", retry_after=30.0)
    loop = reconciler(cluster)
    await turn(loop)
    assert loop.backoffs[KEY].next_retry() == cluster.world.now - 1.0 + 30.0


async def test_a_surprise_in_one_action_does_not_end_the_loop(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = KeyError("oops")
    loop = reconciler(cluster)
    await turn(loop)
    text = generate_latest(loop.metrics.registry).decode()
    assert 'sheaf_operator_actions_total{action="CreatePod",result="failed"} 2.0' in text
    assert "sheaf_operator_backing_off 2.0" in text


async def test_a_surprise_in_the_plan_of_one_key_does_not_stop_the_others() -> None:
    cluster = Simulated(World(ClusterSnapshot((make_model("bad"), make_model("good")))))
    cluster.confusing.add(Key("Model", "bad"))
    loop = reconciler(cluster)
    async with running(loop):
        await until(lambda: "good" in {pod.model for pod in cluster.world.pods.values()})
    assert {pod.model for pod in cluster.world.pods.values()} == {"good"}
    assert loop.queue.next_timer() is not None


async def test_it_wakes_when_time_alone_changes_the_plan(cluster: Simulated) -> None:
    loop = reconciler(cluster)
    cluster.world.settle()
    cluster.world.replace_model(make_model("m", replicas=1, drainTimeout="5s"))
    cluster.look()
    await turn(loop)
    await turn(loop)
    assert loop.queue.next_timer() <= cluster.world.now + 5.0


async def test_only_the_key_that_changed_is_planned() -> None:
    cluster = Simulated(World(ClusterSnapshot(tuple(make_model(name, replicas=0) for name in "abc"))))
    loop = reconciler(cluster)
    async with running(loop):
        await until(lambda: len(set(cluster.planned)) == 3)
        await asyncio.sleep(0.1)
        cluster.planned.clear()
        cluster.world.replace_model(make_model("b", replicas=1))
        await until(lambda: cluster.planned)
        await asyncio.sleep(0.05)
    assert set(cluster.planned) == {Key("Model", "b")}


async def test_every_key_is_planned_again_in_time_without_any_change() -> None:
    cluster = Simulated(World(ClusterSnapshot(tuple(make_model(name, replicas=0) for name in "abcdef"))))
    loop = reconciler(cluster, resync=100.0)
    async with running(loop):
        await until(lambda: loop.stir() or len(cluster.planned) >= 24)
        due = {key: cluster.planned.count(key) for key in set(cluster.planned)}
    assert len(due) == 6
    assert min(due.values()) >= 2


async def test_one_that_may_not_act_watches_and_begins_with_everything_once_it_may(cluster: Simulated) -> None:
    leads = False
    loop = reconciler(cluster, may_act=lambda: leads)
    async with running(loop):
        await asyncio.sleep(0.1)
        assert cluster.planned == []
        leads = True
        loop.stir()
        await until(lambda: len(cluster.world.pods) == 2)
        leads = False
        loop.stir()
        await asyncio.sleep(0.1)
        done = len(cluster.planned)
        cluster.world.replace_model(make_model("m", replicas=3))
        await asyncio.sleep(0.1)
        assert len(cluster.planned) == done


async def test_a_model_with_a_thousand_adapters_does_not_starve_another() -> None:
    many = tuple(make_adapter(f"b{index}", "big") for index in range(1000))
    models = (make_model("big", replicas=0), make_model("small", replicas=0))
    cluster = Simulated(World(ClusterSnapshot(models, many)))
    cluster.look = lambda: None
    loop = reconciler(cluster)
    cluster.planned.clear()
    await asyncio.gather(loop.one_turn(Key("Model", "big"), 0.0), loop.one_turn(Key("Model", "small"), 0.0))
    mine = [index for index, action in enumerate(cluster.attempts) if action.key.endswith("/small")]
    assert max(mine) <= 4 * WRITES_PER_KEY
    assert cluster.most_at_once["b"] == WRITES_PER_KEY
    assert len(cluster.attempts) <= ACTIONS_PER_TURN + len(mine)
    assert len(loop.queue) == 1, "the rest has its turn later"


async def test_a_key_of_which_nothing_is_left_is_forgotten(cluster: Simulated) -> None:
    loop = reconciler(cluster)
    await turn(loop, Key("Model", "gone"))
    await turn(loop, Key("SLO", "gone"))
    assert loop.backoffs == {}
    assert loop.queue.next_timer() is None


async def test_it_finishes_what_it_writes_when_it_is_ended(cluster: Simulated) -> None:
    cluster.pause = 0.2
    loop = reconciler(cluster)
    async with running(loop):
        await until(lambda: cluster.attempts)
    assert len(cluster.world.pods) == 2


async def test_it_runs_until_cancelled(cluster: Simulated) -> None:
    task = asyncio.create_task(run(cluster, lambda: cluster.world.now, resync=7.0))
    await until(lambda: len(cluster.world.pods) == 2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@given(st.lists(st.booleans(), max_size=60))
def test_delays_double_up_to_the_bound_and_success_forgets(outcomes) -> None:
    backoff, expected = Backoff(first=1.0, longest=8.0), 1.0
    for failed in outcomes:
        if failed:
            assert backoff.failed("x", now=100.0) == expected
            assert not backoff.allows("x", now=100.0 + expected - 0.01)
            assert backoff.allows("x", now=100.0 + expected)
            expected = min(8.0, expected * 2)
        else:
            backoff.succeeded("x")
            assert backoff.allows("x", now=0.0)
            expected = 1.0


def test_what_no_plan_is_about_any_more_is_forgotten() -> None:
    backoff = Backoff()
    for key in "abc":
        backoff.failed(key, now=0.0)
    backoff.keep_only("b")
    assert backoff.size == 1
    assert backoff.next_retry() == 0.5
    backoff.keep_only(())
    assert backoff.next_retry() is None
