"""Loads of the last minutes: in replicas' worth, by the rate that the replicas serve within the SLO."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_autoscaling import SPEED, asked, known
from operator_world import NOW, make_model, make_pod
from sheaf_operator.planning.autoscaling import Scaler
from sheaf_operator.planning.autoscaling.loads import KEPT, MINUTE_S, Loads, load_of
from sheaf_operator.planning.autoscaling.queueing import needed
from sheaf_operator.planning.market.fleet import capacity
from sheaf_operator.planning.market.values import ENOUGH_LOADS, Terms
from test_operator_autoscaling_scaler import fleet, report


@given(st.floats(0.5, 40), st.integers(1, 12))
def test_a_load_is_no_more_than_the_replicas_where_they_are_enough(rate, replicas):
    facts, demand = known(), asked(rate)
    enough = needed(facts.speed, demand.work, facts.promise, rate) <= replicas
    found = load_of(facts, demand, replicas)
    assert (found <= replicas + 0.01) if enough else (found >= replicas - 0.01)


def test_twice_the_rate_is_twice_the_load():
    once, twice = (load_of(known(), asked(rate), 6) for rate in (4.0, 8.0))
    assert twice == pytest.approx(2 * once, rel=0.02)


def test_nothing_asked_is_no_load_and_what_cannot_be_said_is_not_said():
    assert load_of(known(), asked(0.0), 2) == 0.0
    assert load_of(known(), replace(asked(0.0), work=None), 2) == 0.0
    assert load_of(known(speed=None), asked(1.0), 2) is None
    assert load_of(known(), replace(asked(1.0), work=None), 2) is None
    assert load_of(known(), asked(1.0), 0) is None


def test_a_load_is_noted_once_a_minute_and_for_an_hour():
    loads = Loads()
    for second in range(0, 4000 * 2, 20):
        loads = loads.noted(known(), asked(3.0), 2, NOW + second)
    assert len(loads.values) == KEPT
    assert loads.noted(known(), asked(3.0), 2, loads.at + MINUTE_S / 2) == loads
    assert loads.noted(known(), None, 2, NOW * 2) == loads
    assert loads.noted(known(speed=None), asked(3.0), 2, NOW * 2).values == loads.values


def test_a_load_that_cannot_be_said_for_ten_minutes_will_not_be_known():
    loads, seen = Loads(), []
    for minute in range(ENOUGH_LOADS):
        seen.append(loads.known)
        loads = loads.noted(known(speed=None), asked(3.0), 2, NOW + minute * MINUTE_S)
    assert (seen, loads.known) == ([()] * ENOUGH_LOADS, None)
    assert len(loads.noted(known(), asked(3.0), 2, NOW * 2).known) == 1


@pytest.mark.parametrize(("policy", "noted"), [("Preferred", 1), ("Never", 0)])
def test_a_model_on_spot_has_its_loads_noted_without_being_planned_again(policy, noted):
    index, _ = fleet("a", replicas=1, spot={"policy": policy})
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(asked(0.5)), NOW)
    assert len(index.scaling("m").loads) == noted
    again = scaler.observe(report(asked(0.5), NOW + 61), NOW + 61)
    assert (again, len(index.scaling("m").loads)) == (frozenset(), 2 * noted)


def test_what_the_loads_say_decides_on_spares():
    pods = [make_pod(make_model(), name, spot=True, zone=zone) for name, zone in (("a", "z1"), ("b", "z2"))]
    model = make_model(replicas=2, spot={"policy": "Preferred"})
    terms = Terms(("z1", "z2", "z3"), on_demand=3.0, spot=1.0, shortfall=300.0)
    hashes = pods[0].template_hash, pods[0].template_hash
    few, many = (capacity(model, terms, 2, pods, hashes, NOW, loads).spares for loads in ((0.1,) * 60, (1.9,) * 60))
    assert few < many
