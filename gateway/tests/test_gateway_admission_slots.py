"""The bound of a pod follows its engine: never dry, never a long queue where the gateway cannot order it."""

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.slots import Bounds, adapted, reserve

QUICK = settings(max_examples=60, deadline=None)


def settled(bound: int, capacity: int, demand: int, ceiling: int = 256, foreign: int = 0) -> int:
    """The bound after twenty reports of an engine that runs `capacity` at once, with `demand` requests for it."""
    for _ in range(20):
        own = min(bound, demand)
        running = min(capacity, own + foreign)
        bound = adapted(bound, own=own, running=running, waiting=own + foreign - running, ceiling=ceiling)
    return bound


def test_a_saturated_engine_is_given_what_it_runs_and_a_small_reserve():
    assert settled(256, 8, 1000) == 10
    assert settled(256, 64, 1000) == 73


def test_a_queue_that_two_reports_tell_of_is_no_burst():
    bounds = Bounds(256)
    crowded = {"own": 50, "running": 8, "waiting": 42}
    assert [bounds.hear("p", **crowded) for _ in range(2)] == [128, 10]
    bounds.forget(["p"])
    assert bounds.hear("p", **crowded) == 128
    assert bounds.hear("p", own=50, running=50, waiting=0) == 128
    assert bounds.hear("p", **crowded) == 64


def test_an_engine_that_can_take_more_gets_more():
    assert settled(4, 200, 1000) > 200
    assert settled(4, 10_000, 1000) == 256


def test_a_pod_with_little_to_do_keeps_its_bound():
    assert settled(256, 8, 3) == 256
    assert adapted(20, own=5, running=4, waiting=1, ceiling=256) == 20


def test_two_gateways_share_an_engine():
    assert settled(256, 20, 1000, foreign=12) <= 14


def test_a_lowered_ceiling_holds_at_once():
    assert adapted(256, own=0, running=0, waiting=0, ceiling=4) == 4
    assert adapted(256, own=256, running=8, waiting=248, ceiling=4) == 4


@QUICK
@given(st.integers(1, 500), st.integers(1, 300), st.integers(0, 400), st.integers(1, 400))
def test_a_backlogged_engine_never_runs_dry_and_never_queues_more_than_a_reserve(bound, capacity, foreign, ceiling):
    found = settled(bound, capacity, 10_000, ceiling, foreign=0)
    assert 1 <= found <= ceiling
    assert found >= min(ceiling, capacity)
    assert found <= capacity + 2 * reserve(capacity) + capacity // 2
    assert 1 <= settled(bound, capacity, 10_000, ceiling, foreign) <= ceiling


@QUICK
@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(1, 500))
def test_any_report_gives_a_bound_within_its_limits(bound, own, running, waiting, ceiling):
    assert 1 <= adapted(bound, own=own, running=running, waiting=waiting, ceiling=ceiling) <= ceiling
