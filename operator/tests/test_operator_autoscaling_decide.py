"""A scaling decision keeps its promises: bounds, no oscillation, monotone in demand, nothing taken on missing data."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_autoscaling import NOW, WORK, Days, asked, known, spec
from sheaf_operator.planning.autoscaling import Demand, Facts, Memory, decide
from sheaf_operator.planning.autoscaling.correction import Correction

SIGNALS = st.sampled_from(
    [
        {"signal": "SLO"},
        {"signal": "Concurrency", "target": 16},
        {"signal": "QueuePressure", "target": 0.7},
        {"signal": "QueuePressure"},
        {"signal": "SLO", "scaleToZero": {"after": "1m"}},
        {"signal": "SLO", "forecast": {}},
        {
            "signal": "SLO",
            "scaleUp": {"stabilization": "30s", "maxStep": 2},
            "scaleDown": {"maxStep": 1, "stabilization": "15s"},
        },
        {"signal": "Concurrency", "target": 8, "forecast": {"history": "Day"}},
    ]
)
DEMANDS = st.one_of(
    st.none(),
    st.builds(
        Demand,
        running=st.integers(0, 3000),
        waiting=st.integers(0, 500),
        held=st.integers(0, 300),
        rate=st.floats(0, 100),
        service_s=st.floats(0, 200),
        slots=st.integers(0, 5000),
        work=st.sampled_from([None, WORK]),
        kv_use=st.floats(0, 1),
        burn=st.one_of(st.none(), st.floats(0, 20)),
        complete=st.booleans(),
    ),
)


@settings(max_examples=25, deadline=None)
@given(
    signal=SIGNALS,
    low=st.integers(0, 5),
    more=st.integers(0, 20),
    own=st.sampled_from([(0, None), (2, None), (0, 4), (1, 3)]),
    demands=st.lists(DEMANDS, min_size=1, max_size=12),
    step=st.sampled_from([5.0, 60.0, 700.0]),
)
def test_the_number_is_always_within_the_bounds(signal, low, more, own, demands, step):
    policy = spec(**{**signal, "minReplicas": low, "maxReplicas": max(1, low + more)})
    days = Days(policy, known(low=own[0], high=own[1]), step=step)
    for demand in demands:
        decision = days.look(demand)
        ceiling = policy.max_replicas if own[1] is None else min(policy.max_replicas, own[1])
        asleep = decision.replicas == 0 and own[0] == 0 and (policy.scale_to_zero is not None or low == 0)
        assert decision.replicas <= ceiling
        assert asleep or decision.replicas >= min(max(low, own[0]), ceiling)
        assert decision.wake_at > days.now - step
        assert decision.reasons
        assert all(reason.text for reason in decision.reasons)


@settings(max_examples=12, deadline=None)
@given(
    signal=SIGNALS.filter(lambda found: found["signal"] != "QueuePressure"),
    demand=DEMANDS.filter(lambda found: found is not None and found.work is not None),
    start=st.integers(1, 30),
)
def test_a_demand_that_does_not_change_leads_to_a_number_that_does_not_change(signal, demand, start):
    """Once the windows have passed there is one direction at most, and then rest."""
    demand = replace(demand, service_s=0.0, burn=None)
    days = Days(spec(**{**signal, "minReplicas": 1}), known(declared=start), step=30.0)
    days.run(demand, 1200.0)
    before = len(days.numbers)
    days.run(demand, 600.0)
    assert len(set(days.numbers[before - 5 :])) <= 2, days.numbers
    moves = [b - a for a, b in pairwise(days.numbers) if a != b]
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(moves))
    assert turns <= 2, days.numbers


@settings(max_examples=25, deadline=None)
@given(
    signal=SIGNALS.filter(lambda found: "scaleToZero" not in found),
    past=st.lists(DEMANDS, max_size=6),
    demand=DEMANDS.filter(lambda found: found is not None),
    rate=st.floats(0, 50),
    present=st.integers(0, 1000),
)
def test_more_demand_never_means_fewer_replicas(signal, past, demand, rate, present):
    days = Days(spec(**signal))
    for one in past:
        days.look(one)
    more = Demand(
        demand.running, demand.waiting + present, demand.held, demand.rate + rate, 0.0, demand.slots, demand.work,
        demand.kv_use, None, demand.complete,
    )  # fmt: skip
    less = Demand(
        demand.running, demand.waiting, demand.held, demand.rate, 0.0, demand.slots, demand.work, demand.kv_use, None,
        demand.complete,
    )  # fmt: skip
    facts = known(ready=days.numbers[-1] if days.numbers else 1)
    assert (
        decide(days.policy, facts, more, days.now, days.memory).replicas
        >= decide(days.policy, facts, less, days.now, days.memory).replicas
    )


@settings(max_examples=25, deadline=None)
@given(signal=SIGNALS, before=st.lists(DEMANDS, max_size=6), after=st.lists(DEMANDS, min_size=1, max_size=8))
def test_missing_figures_never_take_a_replica_away(signal, before, after):
    """Nobody answers, or not everybody does; for as long as that lasts."""
    days = Days(spec(**signal, minReplicas=0), known(declared=3), step=120.0)
    for demand in before:
        days.look(demand)
    there = days.numbers[-1] if days.numbers else 3
    for demand in after:
        partial = None
        if demand is not None:
            partial = Demand(demand.running, 0, demand.held, demand.rate, work=demand.work, complete=False)
        number = days.look(partial).replicas
        assert number >= there
        there = number


def test_load_that_grows_is_met_and_load_that_falls_is_followed_after_the_window():
    days = Days(spec(scaleDown={"stabilization": "2m"}), known(declared=1))
    days.run(asked(2.0), 300.0)
    few = days.numbers[-1]
    assert days.look(asked(20.0)).replicas > few
    days.run(asked(20.0), 300.0)
    many = days.numbers[-1]
    assert many >= 4 * few
    days.run(asked(2.0), 60.0)
    assert days.numbers[-1] == many
    days.run(asked(2.0), 600.0)
    assert days.numbers[-1] <= 2 * few


def test_a_model_without_an_slo_is_kept_from_being_busy():
    days = Days(spec(), known(promise=None))
    days.run(asked(8.0), 300.0)
    assert "no SLO" in days.look(asked(8.0)).reasons[0].text
    assert 4 <= days.numbers[-1] <= 12


def test_what_is_not_known_yet_only_adds_replicas():
    days = Days(spec(), Facts(declared=2))
    assert days.look(Demand(running=5, rate=1.0)).replicas == 2
    assert days.look(Demand(running=5, waiting=3, rate=1.0, work=WORK)).replicas == 3
    assert "not known" in days.look(Demand(running=5, rate=1.0)).reasons[0].text
    lengths = Days(spec(), known(declared=2)).look(Demand(running=1, rate=1.0))
    assert "lengths of requests" in lengths.reasons[0].text


def test_the_last_replica_goes_when_nothing_was_asked_for_long_and_comes_back_at_the_first_request():
    policy = spec(scaleToZero={"after": "10m"}, minReplicas=1)
    days = Days(policy, known(declared=2))
    days.run(asked(1.0), 60.0)
    days.run(asked(0.0), 590.0)
    assert days.numbers[-1] >= 1
    gone = days.run(asked(0.0), 30.0)
    assert (gone.replicas, days.memory.decisions[0].reason) == (0, "Idle")
    assert days.run(asked(0.0), 900.0).reasons[0].word == "Asleep"
    woken = days.look(Demand(held=3))
    assert woken.replicas >= 1
    assert woken.reasons[0].word == "Woken"
    assert days.memory.idle_since is None


def test_what_measurements_changed_is_told_with_the_number():
    days = Days(spec(), known(declared=2), Memory(correction=Correction(1.5, 0.2)))
    told = days.look(asked(5.0)).reasons[0].text
    assert "replicas measured 1.50 times as slow as their profile; load taken +20% by the measured attainment" in told


def test_gateways_remember_since_when_nothing_is_asked_so_that_a_restart_does_not_begin_anew():
    days = Days(spec(scaleToZero={"after": "10m"}), known(declared=2))
    assert days.look(asked(0.0, quiet_s=500.0)).replicas == 2
    assert days.memory.idle_since == NOW - 500.0
    assert days.run(asked(0.0, quiet_s=None), 90.0).replicas == 2
    days.look(asked(1.0))
    busy = days.memory.busy_at
    days.look(asked(0.0, quiet_s=9000.0))
    assert days.memory.idle_since == busy
    assert days.look(asked(0.0, quiet_s=9000.0, complete=False)).replicas == 2
    assert days.memory.idle_since is None


def test_arrivals_of_a_moment_ago_are_no_idleness_where_gateways_do_not_say_since_when():
    days = Days(spec(scaleToZero={"after": "10m"}), known(declared=2))
    days.look(asked(1.0, present=0))
    assert days.memory.idle_since is None


def test_an_idle_model_is_looked_at_again_when_its_time_is_up():
    days = Days(spec(scaleToZero={"after": "3s"}), known())
    decision = days.look(asked(0.0))
    assert decision.wake_at == NOW + 3.0


def test_a_model_that_sleeps_stays_asleep_while_nobody_knows_what_is_asked():
    days = Days(spec(scaleToZero={"after": "10m"}), known(declared=0))
    assert [days.look(None).replicas, days.look(asked(0.0)).replicas, days.look(None).replicas] == [0, 0, 0]


def test_a_floor_of_the_model_keeps_it_awake():
    days = Days(spec(scaleToZero={"after": "1m"}), known(declared=1, low=1))
    days.run(asked(0.0), 300.0)
    assert days.numbers[-1] == 1
    assert Days(spec(minReplicas=2), known(declared=0)).look(asked(0.0)).replicas == 2


def test_without_a_rule_for_zero_the_last_replica_stays_and_none_stays_none():
    days = Days(spec(minReplicas=0), known(declared=1))
    days.run(asked(0.0), 900.0)
    assert days.numbers[-1] == 1
    assert Days(spec(minReplicas=0), known(declared=0)).look(asked(0.0)).replicas == 0
    assert Days(spec(minReplicas=0), known(declared=0)).look(asked(1.0)).replicas >= 1


def test_a_window_about_to_open_is_ready_when_it_opens():
    """2023-11-14 22:13:20 UTC is NOW; the window opens 100 s later."""
    window = {"name": "late", "start": "22:15", "end": "23:00", "minReplicas": 6, "maxReplicas": 9}
    days = Days(spec(schedules=[window]), known(cold_start_s=120.0))
    decision = days.look(asked(0.1))
    assert decision.replicas == 6
    assert decision.reasons[0].word == "Schedule"
    days.run(asked(50.0), 300.0)
    assert days.numbers[-1] == 9
    said = {reason.word for reason in days.look(asked(50.0)).reasons}
    assert {"Bounded", "Schedule"} <= said


def test_a_window_that_is_over_before_a_replica_could_start_is_prepared_for_too():
    """2023-11-14 22:13:20 UTC is NOW."""
    window = {"name": "short", "start": "22:15", "end": "22:20", "minReplicas": 6, "maxReplicas": 9}
    assert Days(spec(schedules=[window]), known(cold_start_s=600.0)).look(asked(0.1)).replicas == 6
    assert Days(spec(schedules=[window]), known(cold_start_s=90.0)).look(asked(0.1)).replicas == 1


def test_a_window_keeps_a_sleeper_awake():
    window = {"name": "day", "start": "00:00", "end": "23:59", "minReplicas": 2}
    days = Days(spec(scaleToZero={"after": "1m"}, schedules=[window]), known(declared=2))
    days.run(asked(0.0), 300.0)
    assert days.numbers[-1] == 2
    sleeper = Days(spec(scaleToZero={"after": "1m"}, schedules=[window]), known(declared=0))
    woken = sleeper.look(asked(0.0))
    assert (woken.replicas, woken.reasons[0].word) == (2, "Bounded")


def test_a_time_zone_that_nobody_knows_is_said():
    window = {"name": "w", "start": "00:00", "end": "23:59", "minReplicas": 2, "timeZone": "Nowhere/Land"}
    decision = Days(spec(schedules=[window]), known()).look(asked(1.0))
    assert "UnknownTimeZone" in {reason.word for reason in decision.reasons}


def test_what_is_usual_at_this_hour_is_kept_ready():
    policy = spec(forecast={}, scaleDown={"stabilization": "1m"})
    days = Days(policy, known(declared=1), now=NOW // 3600 * 3600, step=300.0)
    for _hour in range(24):
        days.run(asked(20.0 if _hour == 0 else 1.0), 3600.0)
    decision = days.look(asked(1.0))
    assert decision.reasons[0].word == "Forecast"
    assert decision.replicas > days.numbers[12 * 12]


def test_the_forecast_works_by_proportion_where_the_speed_is_not_known():
    policy = spec(signal="Concurrency", target=10, forecast={"history": "Day"})
    days = Days(policy, Facts(declared=1), now=NOW // 3600 * 3600, step=300.0)
    for _hour in range(24):
        days.run(Demand(running=40, rate=8.0) if _hour == 0 else Demand(running=10, rate=2.0), 3600.0)
    assert days.look(Demand(running=10, rate=2.0)).reasons[0].word in ("Forecast", "Concurrency")
    idle = Days(policy, Facts(declared=1), memory=days.memory, now=days.now + 7200.0)
    assert idle.look(Demand()).replicas >= 1


def test_a_step_is_bounded_and_the_next_comes_later():
    days = Days(spec(signal="Concurrency", target=1, scaleUp={"maxStep": 3}), known(declared=1))
    numbers = [days.look(Demand(running=40, rate=1.0)).replicas for _ in range(8)]
    assert numbers[0] == 1 + 3
    assert max(b - a for a, b in pairwise(numbers)) == 3
    assert numbers[3] < 1 + 3 * 4


def test_decisions_are_remembered_with_their_reasons():
    days = Days(spec(), known(declared=1))
    days.run(asked(20.0), 100.0)
    last = days.memory.decisions[0]
    assert (last.before, last.after, last.reason) == (1, days.numbers[-1], "SLO") or len(days.memory.decisions) > 1
    assert "requests/s" in last.message
    assert len(days.memory.decisions) <= 10


def test_nothing_asked_and_nothing_known_holds_what_is_declared():
    decision = decide(spec(maxReplicas=4), Facts(declared=9), None, NOW, Memory())
    assert (decision.replicas, decision.reasons[0].word) == (4, "DemandUnknown")


@pytest.mark.parametrize("use", [0.2, 0.9])
def test_pressure_follows_the_caches(use):
    days = Days(spec(signal="QueuePressure", target=0.5), known(declared=4, ready=4))
    decision = days.look(Demand(running=40, slots=1000, rate=2.0, kv_use=use))
    assert decision.replicas == (8 if use == 0.9 else 4)
    assert "of 4 replicas used" in decision.reasons[0].text


@pytest.mark.parametrize("load", [0.3, 2.0, 7.7])
def test_pressure_comes_to_rest_where_caches_fill_with_fewer_pods(load):
    """So many caches' worth of running requests, spread over the pods that there are."""
    days = Days(spec(signal="QueuePressure", target=0.8), known(declared=4), step=20.0)
    for _ in range(60):
        ready = days.numbers[-1] if days.numbers else 4
        running = min(load, ready) * 30
        waiting = round(30 * load - running)
        days.look(Demand(round(running), max(0, waiting), rate=2.0, slots=256 * ready, kv_use=min(1.0, load / ready)))
    assert len(set(days.numbers[-20:])) == 1
    assert load / days.numbers[-1] <= 0.85


def test_held_requests_count_where_nothing_arrives_any_more():
    days = Days(spec(), known(declared=2))
    days.run(Demand(work=WORK), 300.0)
    decision = days.look(Demand(waiting=30, work=WORK))
    assert "to clear those who wait" in decision.reasons[0].text
