"""Weeks of a spot market: money and promises are counted rightly, peers do as published, the bound is a bound."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.simulator.market import Zone
from sheaf.simulator.spot import (
    AllOnDemand,
    Demand,
    Outlook,
    Pool,
    PureSpot,
    Sheaf,
    SkyServe,
    Weather,
    demand_of,
    omniscient,
    weather,
)
from sheaf.simulator.spot.demand import followed
from sheaf.simulator.spot.skyserve import Placer, on_demand_wanted

COLD = 120.0


def zone(name, *counts, gap=60.0):
    return Zone(name, gap, tuple(counts))


def steady(minutes, replicas=1, rate=1.0, capacity=1.0):
    return Demand((rate,) * minutes, (replicas,) * minutes, capacity)


def outlook(*zones, spot=1.0, on_demand=3.0, **fields):
    return Outlook(
        tuple(one.name for one in zones), on_demand, {one.name: spot for one in zones}, cold_start=COLD, **fields
    )


def run(policy, zones, demand, **fields):
    pool = Pool(zones, demand, outlook(*zones, **fields), policy)
    return pool.run()


def test_an_hour_on_demand_costs_its_price_and_serves_after_its_cold_start():
    found = run(AllOnDemand(), [zone("a", 0)], steady(60))
    assert found.money == pytest.approx(3.0)
    assert found.short_hours == pytest.approx(COLD / 3600)
    assert found.attainment == pytest.approx(1 - COLD / 3600)


def test_what_the_market_takes_is_gone_and_its_streams_with_it_unless_they_go_on_elsewhere():
    zones = [zone("a", *[1] * 30, *[0] * 30), zone("b", *[0] * 60)]
    found = run(PureSpot(), zones, steady(60), stream=10.0)
    assert (found.preemptions, found.cut) == (1, pytest.approx(10.0))
    assert found.money == pytest.approx(0.5)
    kept = run(Sheaf(spare=0), zones, steady(60), stream=10.0)
    assert (kept.preemptions, kept.cut) == (1, 0.0)


def test_the_youngest_in_a_zone_go_first():
    pool = Pool([zone("a", 2)], steady(10), outlook(zone("a", 2)), AllOnDemand())
    first, second = pool.launch("a"), pool.launch("a")
    pool._market(1)
    assert (first.number in pool.replicas, second.number in pool.replicas) == (True, False)


def test_a_launch_without_capacity_waits_for_free_and_gets_it_when_there_is_some():
    pool = Pool([zone("a", 0)], steady(10), outlook(zone("a", 0)), AllOnDemand())
    waits = pool.launch("a")
    assert waits.granted is None
    pool._market(1)
    assert waits.granted == 0.0


# SkyServe as published


def test_skyserve_prefers_active_zones_that_hold_none_of_ours_then_the_cheapest():
    placer = Placer(["a", "b", "c"], [3.0, 2.0, 1.0])
    assert placer.next([]) == "c"
    assert placer.next(["c"]) == "b"
    assert placer.next(["a", "b", "c"]) == "c"


def test_skyserve_leaves_a_zone_that_failed_until_it_serves_again_or_too_few_are_left():
    placer = Placer(["a", "b", "c"], [1.0, 1.0, 1.0])
    placer.failed("a")
    assert (placer.active, placer.preempted) == (["b", "c"], ["a"])
    placer.served("a")
    assert placer.preempted == []
    placer.failed("a")
    placer.failed("b")
    assert (sorted(placer.active), placer.preempted) == (["a", "b", "c"], []), "fewer than two were left"
    placer.failed("a")
    placer.failed("a")
    assert placer.preempted == ["a"]
    placer.served("b")
    assert sorted(placer.active) == ["b", "c"]


@pytest.mark.parametrize(
    ("target", "extra", "base", "ready", "expected"),
    [
        (4, 1, 0, 0, 4),  # never more on demand than the target
        (4, 1, 0, 3, 2),  # min(N_tar, N_tar + N_extra - ready)
        (4, 1, 0, 5, 0),
        (4, 0, 1, 0, 4),  # the base is always there
        (4, 0, 1, 3, 1),
    ],
)
def test_skyserve_covers_what_is_not_ready_on_demand(target, extra, base, ready, expected):
    assert on_demand_wanted(target, extra, base, ready) == expected
    assert on_demand_wanted(target, extra, base, ready, dynamic=False) == base


def test_skyserve_falls_back_on_demand_at_a_loss_and_returns_to_spot():
    zones = [zone("a", *[1] * 10, *[0] * 50), zone("b", *[0] * 20, *[1] * 40)]
    found = run(SkyServe(0), zones, steady(60))
    assert found.zones["a"] == pytest.approx(10 / 60)
    assert found.on_demand_hours == pytest.approx((2 + 12) / 60, abs=0.06), "while starting, and while no zone has any"
    assert found.zones["b"] == pytest.approx(40 / 60, abs=0.06)


def test_skyserve_keeps_as_many_beyond_the_target_as_it_is_told():
    zones = [zone(name, 1) for name in "abcd"]
    assert run(SkyServe(2), zones, steady(60)).spot_hours == pytest.approx(3.0)
    assert run(SkyServe(0, base=1), zones, steady(60, 2)).on_demand_hours == pytest.approx(1 + COLD / 3600)


# The bound


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=8), min_size=1, max_size=2))
def test_the_bound_is_the_best_of_all_schedules(rows):
    zones = [zone(f"z{index}", *row) for index, row in enumerate(rows)]
    begin, cold = 120.0, 2
    money, short = omniscient(zones, steady(8), outlook(*zones), 0.0, begin)
    assert short == 0.0
    assert money == pytest.approx(best_of_all(zones, 8, cold))


def best_of_all(zones, minutes, cold):
    """The cheapest way to have one replica ready from minute 2 on, by trying all; the first launch is free."""
    ready = [[int(all(one.counts[max(0, m - cold) : m + 1])) for m in range(minutes)] for one in zones]
    best = float("inf")
    for way in product(range(len(zones) + 1), repeat=minutes - 2):
        money = 0.0
        for step, place in enumerate(way):
            minute = step + 2
            price = 3.0 if place == len(zones) else 1.0
            money += price / 60 * (1 + (cold if step and way[step - 1] != place else 0))
            if place < len(zones) and not ready[place][minute]:
                money = float("inf")
        best = min(best, money)
    return best


def test_nobody_who_is_never_short_is_cheaper_than_the_bound():
    zones = weather([Weather(3, 2), Weather(6, 1), Weather(2, 2), Weather(8, 3)], 48, seed=4)
    demand = steady(48 * 60, 2)
    found, _ = omniscient(zones, demand, outlook(*zones), 0.0, 3600.0)
    for policy in (Sheaf(), SkyServe(2), AllOnDemand()):
        summary = Pool(zones, demand, outlook(*zones), policy, 3600.0).run()
        assert summary.money > found * 0.999 or summary.short_hours > 0
    least, short = omniscient(zones, demand, outlook(*zones), 0.5, 3600.0)
    assert least <= found
    assert short <= 0.5


# Demand and weather


def test_replicas_follow_the_rate_after_five_minutes_up_and_twenty_down():
    assert followed([1, *[2] * 6]) == (1, 1, 1, 1, 1, 2, 2)
    assert followed([2, *[1] * 21])[19:22] == (2, 1, 1)


def test_demand_repeats_a_trace_and_scales_it_to_the_replicas_wanted():
    found = demand_of([0.0, 30.0, 61.0, 120.0], 600.0, replicas=2.0, utilisation=0.5)
    assert found.rates[:4] == (2 / 60, 1 / 60, 2 / 60, 1 / 60)
    assert found.seconds == 600.0
    assert found.capacity == pytest.approx(1.5 / 60 / 2 / 0.5)


def test_the_weather_is_the_same_for_the_same_seed_and_like_its_climate():
    climates = [Weather(10, 1, storms=0.0), Weather(1, 10, storms=0.0)]
    good, bad = weather(climates, 2000, 1)
    assert weather(climates, 2000, 1) == (good, bad)
    assert sum(good.counts) > 3 * sum(bad.counts)


def test_sheaf_uses_less_than_skyserve_and_breaks_no_more_promises():
    zones = weather([Weather(3, 2), Weather(6, 2), Weather(10, 1.5), Weather(24, 2), Weather(12, 1)], 36, seed=5)
    demand = steady(36 * 60, 2, rate=1.5)
    ours, peer = (Pool(zones, demand, outlook(*zones), one, 3600.0).run() for one in (Sheaf(), SkyServe(1)))
    assert ours.money < peer.money
    assert ours.attainment >= 0.999
