"""The loop: every action is carried out once, a failing one backs off and stops no other, a blind cluster is asked again."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_world import World, make_model, of_kind
from prometheus_client import generate_latest
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.handlers.backoff import Backoff
from sheaf_operator.handlers.reconcile import Reconciler, run
from sheaf_operator.planning import Action, ClusterSnapshot, CreatePod, UpdateStatus


class Simulated:
    """The world in virtual time behind the protocol; actions in `refused` fail."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refused: dict[type, Exception] = {}
        self.attempts: list[Action] = []
        self.blind = False
        self.waits: list[float] = []

    async def observe(self) -> ClusterSnapshot:
        if self.blind:
            raise ClusterError("the API server does not answer")
        return self.world.snapshot

    async def act(self, action: Action) -> None:
        self.attempts.append(action)
        if type(action) in self.refused:
            raise self.refused[type(action)]
        self.world.act(action)

    async def changed(self, timeout: float) -> None:  # noqa: ASYNC109 - the protocol's own words
        self.waits.append(timeout)
        self.world.tick()
        await asyncio.sleep(0)


@pytest.fixture
def cluster() -> Simulated:
    return Simulated(World(ClusterSnapshot((make_model("m", replicas=2),))))


def reconciler(cluster: Simulated, **fields) -> Reconciler:
    return Reconciler(cluster, lambda: cluster.world.now, **fields)


async def test_it_reaches_what_is_declared_and_then_rests(cluster: Simulated) -> None:
    loop = reconciler(cluster)
    for _ in range(6):
        await loop.one_pass()
        cluster.world.tick()
    assert len(cluster.world.pods) == 2
    done = len(cluster.attempts)
    assert await loop.one_pass() == loop.period
    assert len(cluster.attempts) == done


async def test_a_failing_action_backs_off_and_the_others_go_on(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = ClusterError("no room")
    loop = reconciler(cluster)
    pause = await loop.one_pass()
    assert len(of_kind(cluster.attempts, CreatePod)) == 2
    assert len(of_kind(cluster.attempts, UpdateStatus)) == 1
    assert pause == pytest.approx(0.5)
    await loop.one_pass()
    assert len(of_kind(cluster.attempts, CreatePod)) == 2
    cluster.world.tick()
    cluster.refused.clear()
    await loop.one_pass()
    assert len(cluster.world.pods) == 2
    assert loop.backoff.size == 0


async def test_a_surprise_in_one_action_does_not_end_the_loop(cluster: Simulated) -> None:
    cluster.refused[CreatePod] = KeyError("oops")
    loop = reconciler(cluster)
    await loop.one_pass()
    text = generate_latest(loop.metrics.registry).decode()
    assert 'sheaf_operator_actions_total{action="CreatePod",result="failed"} 2.0' in text
    assert "sheaf_operator_backing_off 2.0" in text


async def test_a_cluster_that_cannot_be_seen_is_left_alone_and_asked_again(cluster: Simulated) -> None:
    cluster.blind = True
    loop = reconciler(cluster, period=1.5)
    assert [await loop.one_pass() for _ in range(4)] == [0.5, 1.0, 1.5, 1.5]
    assert cluster.attempts == []
    cluster.blind = False
    await loop.one_pass()
    assert len(cluster.world.pods) == 2


async def test_it_wakes_when_time_alone_changes_the_plan(cluster: Simulated) -> None:
    loop = reconciler(cluster)
    cluster.world.settle()
    cluster.world.replace_model(make_model("m", replicas=1, drainTimeout="5s"))
    await loop.one_pass()
    assert await loop.one_pass() <= 2.0


async def test_it_runs_until_cancelled(cluster: Simulated) -> None:
    task = asyncio.create_task(run(cluster, lambda: cluster.world.now, period=7.0))
    for _ in range(30):
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(cluster.world.pods) == 2
    assert cluster.waits[-1] == 7.0


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
