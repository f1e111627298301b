"""Lengths of requests: averaged over minutes, at once where they have grown by more than chance does; what sequences
hold of the KV cache counts as it was measured; and the reserve is what the error budget asks for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_autoscaling import NOW, PROMISE, SPEED, WORK, Days, asked, spec
from sheaf_operator.planning.autoscaling import Promise, Report, Work
from sheaf_operator.planning.autoscaling.gather import demand_of
from sheaf_operator.planning.autoscaling.lengths import LEAP, SPAN_S, Lengths
from sheaf_operator.planning.autoscaling.queueing import attained, forecast, needed
from sheaf_operator.planning.autoscaling.signals import reserve

PLACES = Promise(ttft=((0.95, 3.0),))
TOKENS = st.floats(1, 10_000)
WORKS = st.builds(Work, TOKENS, TOKENS, TOKENS, st.floats(0, 10), st.floats(0, 20_000), st.floats(0, 10))


def longer(factor: float) -> Work:
    return Work(1000.0 * factor, 1000.0 * factor, 200.0 * factor, 1.0)


def test_nothing_known_changes_nothing():
    lengths = Lengths().with_work(None, NOW)
    assert lengths == Lengths()
    assert lengths.of(None) is None
    assert lengths.of(WORK) == WORK
    known = lengths.with_work(WORK, NOW)
    assert known.with_work(None, NOW + 5.0) == known
    assert known.of(None) is None


@settings(max_examples=50, deadline=None)
@given(works=st.lists(WORKS, min_size=1, max_size=20), step=st.sampled_from([0.0, 2.0, 60.0, 900.0]))
def test_the_mean_lies_between_what_was_said(works, step):
    lengths = Lengths()
    for number, work in enumerate(works):
        lengths = lengths.with_work(work, NOW + number * step)
    mean = lengths.mean
    assert mean is not None
    for name in ("prompt", "uncached", "output", "spread", "context", "context_spread"):
        values = [getattr(work, name) for work in works]
        assert min(values) - 1e-6 <= getattr(mean, name) <= max(values) + 1e-6


def test_what_lasts_is_learnt_and_growth_beyond_chance_counts_at_once():
    lengths = Lengths()
    for second in range(0, int(4 * SPAN_S), 5):
        lengths = lengths.with_work(longer(1.0 if second < 5 else 0.5), NOW + second)
    assert lengths.mean is not None
    assert 500.0 <= lengths.mean.uncached < 520.0
    assert lengths.of(longer(0.5)) == lengths.mean
    assert lengths.of(longer(0.6 * LEAP)) == longer(0.6 * LEAP)
    outputs = replace(lengths.mean, output=200.0 * LEAP)
    assert lengths.of(outputs) == outputs


def test_a_context_that_is_not_known_does_not_count():
    told = replace(WORK, context=900.0, context_spread=0.5)
    for works in ((told, WORK), (WORK, told)):
        lengths = Lengths()
        for number, work in enumerate(works):
            lengths = lengths.with_work(work, NOW + number * SPAN_S)
        assert lengths.mean == told
    reports = {name: Report(NOW, {"m": replace(asked(), work=work)}) for name, work in (("a", told), ("b", WORK))}
    demand = demand_of("m", reports, NOW)
    assert demand is not None
    assert demand.work == told


def test_a_clock_that_stands_still_learns_nothing():
    lengths = Lengths().with_work(longer(1.0), NOW).with_work(longer(0.9), NOW)
    assert lengths.mean == longer(1.0)


@pytest.mark.parametrize("rate", [5.6, 6.8])
def test_lengths_that_swing_by_chance_move_no_replica(rate):
    days = Days(spec(minReplicas=1), step=15.0)
    days.run(asked(rate), 900.0)
    still = days.numbers[-1]
    for look in range(80):
        days.look(replace(asked(rate), work=longer(1.05 if look // 4 % 2 else 0.95)))
    assert set(days.numbers[-80:]) == {still}


def test_a_context_that_was_measured_takes_the_place_of_the_assumed_one():
    assumed = replace(WORK, context=1200.0, context_spread=(1000.0**2 + 200.0**2) / 1200.0**2)
    for rate in (4.0, 8.0, 12.0):
        assert attained(SPEED, assumed, PLACES, rate, 12) == attained(SPEED, WORK, PLACES, rate, 12)
    shorter = replace(assumed, context=900.0)
    assert needed(SPEED, shorter, PROMISE, 12.0) < needed(SPEED, WORK, PROMISE, 12.0)
    assert forecast(SPEED, shorter, 8.0, 12).busy < forecast(SPEED, WORK, 8.0, 12).busy


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0.1, 40), spread=st.floats(0, 3), more=st.floats(0, 3))
def test_contexts_that_vary_more_never_need_fewer(rate, spread, more):
    even = replace(WORK, context=1200.0, context_spread=spread)
    uneven = replace(even, context_spread=spread + more)
    assert needed(SPEED, uneven, PLACES, rate) >= needed(SPEED, even, PLACES, rate)


def test_where_the_engine_counts_sequences_contexts_may_vary():
    small = replace(SPEED, sequences=8)
    uneven = replace(WORK, context=1200.0, context_spread=5.0)
    even = replace(uneven, context_spread=0.0)
    assert attained(small, uneven, PLACES, 4.0, 12) == attained(small, even, PLACES, 4.0, 12)


@given(burn=st.floats(0, 20), more=st.floats(0, 20))
def test_the_reserve_grows_with_the_budget_that_is_spent_and_is_bounded(burn, more):
    assert 0.05 <= reserve(burn) <= reserve(burn + more) <= 0.1
    assert reserve(None) == reserve(1.0) == 0.1
    assert reserve(0.0) == 0.05


def test_a_model_that_kept_its_promise_runs_leaner_than_one_that_did_not():
    def steady(burn: float) -> int:
        days = Days(spec(minReplicas=1), step=15.0)
        days.run(replace(asked(40.0), hour_burn=burn), 900.0)
        return days.numbers[-1]

    assert steady(0.0) < steady(1.0) == steady(9.0)
