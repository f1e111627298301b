"""The load that finds no replica, and the danger of being taken by age: what spares and stand-ins are weighed with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.planning.market.ages import TYPICAL, YOUNG, exposure, hazard
from sheaf_operator.planning.market.policy import decide
from sheaf_operator.planning.market.shortfall import Group, expected, unserved
from sheaf_operator.planning.market.values import Ask, Held, Terms

NOW = 1_000_000.0
ZONES = ("a", "b", "c", "d")
TERMS = Terms(ZONES, on_demand=3.0, spot=1.0, shortfall=300.0)
loads = st.lists(st.floats(0, 8), max_size=20).map(tuple)
groups = st.lists(st.builds(Group, st.integers(0, 3), st.floats(0, 1)), max_size=5)
singles = st.lists(st.builds(Group, st.just(1), st.floats(0, 1)), max_size=5)


def hour(*loads):
    return loads * (60 // len(loads))


def pods(*zones, age=1.0, stage="Ready"):
    return tuple(Held(f"{zone}{index}", True, zone, stage, NOW - age * 3600.0) for index, zone in enumerate(zones))


def ask(replicas, held, spare=None, terms=TERMS, **fields):
    return Ask("Preferred", replicas, 0, spare, held, {}, terms, NOW, **fields)


def test_the_load_beyond_what_serves_is_a_mean_over_the_loads():
    assert unserved((1.0, 2.0, 3.0), 3) == pytest.approx((2.0, 1.0, 1 / 3, 0.0))
    assert unserved((), 1) == (0.0, 0.0)


def test_what_is_away_at_times_serves_the_rest_of_the_time():
    beyond = unserved((2.0,), 2)
    assert expected(beyond, 1, [Group(1, 0.25)]) == pytest.approx(0.25)
    assert expected(beyond, 0, [Group(2, 0.5)]) == pytest.approx(1.0)
    assert expected(beyond, 5, []) == 0.0


@given(loads, st.integers(0, 4), groups, st.floats(0, 1))
def test_one_replica_more_never_leaves_more_load_without(seen, firm, held, away):
    beyond = unserved(seen, 12)
    before = expected(beyond, firm, held)
    assert expected(beyond, firm + 1, held) <= before + 1e-9
    assert expected(beyond, firm, [*held, Group(1, away)]) <= before + 1e-9


@given(loads, st.integers(0, 4), singles)
def test_each_further_replica_is_worth_no_more_than_the_one_before(seen, firm, held):
    beyond = unserved(seen, 12)
    first, second, third = (expected(beyond, firm + more, held) for more in range(3))
    assert second - third <= first - second + 1e-9


@given(st.floats(0.01, 4), st.floats(0, 100), st.floats(0, 100))
def test_the_longer_a_pod_has_been_there_the_safer_it_is(rate, age, more):
    assert 1 / 720 <= hazard(rate, age + more) <= hazard(rate, age) <= 12.0
    assert exposure(age) <= exposure(age + more)


def test_the_rate_of_a_zone_is_that_of_a_pod_of_typical_age():
    assert hazard(0.5, TYPICAL) == pytest.approx(0.5)
    assert hazard(0.5, 0.0) == pytest.approx(0.5 * (YOUNG + TYPICAL) / YOUNG)
    assert (exposure(-1.0), hazard(0.5, -1.0)) == (0.0, hazard(0.5, 0.0))


def test_hours_count_by_the_losses_that_were_to_be_expected_in_them():
    step = 1e-4
    slope = (exposure(6.0 + step) - exposure(6.0)) / step
    assert slope == pytest.approx(hazard(1.0, 6.0), rel=1e-3)


def test_a_spare_is_held_while_pods_are_young_and_let_go_when_they_have_lasted():
    young, old = (decide(ask(2, pods("a", "b", age=age), loads=hour(1.5))).spares for age in (0.1, 48.0))
    assert (young >= 1, old) == (True, 0)


def test_no_spare_is_held_for_a_load_that_fits_without():
    assert decide(ask(3, pods("a", "b", "c"), loads=hour(0.5, 0.9))).spares == 0
    assert decide(ask(3, pods("a", "b", "c"), loads=hour(0.5, 2.9))).spares >= 1


def test_on_demand_does_not_stand_in_for_what_the_load_does_not_need():
    held = (*pods("a", "b", age=200.0), *pods("c", stage="Waiting"))
    assert decide(ask(3, held, spare=0, loads=hour(0.4))).stand_ins == 0
    assert decide(ask(3, held, spare=0, loads=hour(2.8))).stand_ins == 1


def test_with_declared_spares_on_demand_covers_the_replicas_wanted_only():
    held = (*pods("a", "b"), *pods("c", stage="Waiting"))
    assert decide(ask(2, held, spare=1, loads=hour(1.9))).stand_ins == 0


def test_pods_of_one_zone_go_together_so_a_spare_elsewhere_is_worth_more():
    together = decide(ask(2, pods("a", "a"), loads=hour(1.05)))
    apart = decide(ask(2, pods("a", "b"), loads=hour(1.05)))
    assert together.spares > apart.spares
