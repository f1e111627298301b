"""The figures of an SLO: percentiles within 2 %, burn as defined, windows that slide, memory that stays."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.attainment import _CELLS, Attainment, Bound, Figures, Outcome
from sheaf_gateway.admission.sketch import Sketch, bucket, merged, quantiles

QUICK = settings(max_examples=40, deadline=None)
PROMISED = (Bound("ttft", 0.5, 0.2), Bound("ttft", 0.95, 0.8), Bound("e2e", 0.99, 10.0))


def sketch_of(values: list[float]) -> Sketch:
    return merged({bucket(value): 1} for value in values)


@QUICK
@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_right_within_two_percent(values, quantile):
    ordered = sorted(values)
    exact = ordered[max(0, -(-int(quantile * len(values) * 1000) // 1000) - 1)]
    (found,) = quantiles(sketch_of(values), [quantile])
    nearest = min(ordered, key=lambda value: abs(value - found))
    assert found == pytest.approx(nearest, rel=0.0201)
    place = ordered.index(nearest)
    assert abs(place - ordered.index(exact)) <= sum(abs(v - exact) <= 0.05 * exact for v in ordered) + 1


def test_quantiles_of_nothing_are_unknown_and_absurd_latencies_stay_in_the_sketch():
    assert quantiles({}, [0.5, 0.99]) == [None, None]
    assert bucket(0.0) == bucket(1e-9) < bucket(1.0) < bucket(1e99) == bucket(float("inf"))


def test_burn_is_the_share_that_was_later_over_the_share_that_may_be():
    found = Attainment(PROMISED, 0.0)
    for number in range(100):
        found.answered(Outcome(ttft=1.0 if number < 10 else 0.1, tpot=0.02, e2e=2.0), 10.0)
    figures = found.window(300.0, 20.0)
    assert figures.burn == pytest.approx(2.0)
    assert (figures.requests, figures.failed, figures.attained) == (100, 0, 0.9)
    assert figures.goodput == pytest.approx(90 / 20)
    assert figures.ttft[0] == pytest.approx(0.1, rel=0.02)
    assert figures.ttft[2] == pytest.approx(1.0, rel=0.02)
    assert figures.tpot[3] == pytest.approx(0.02, rel=0.02)


def test_a_refused_request_is_late_for_every_promise():
    found = Attainment(PROMISED, 0.0)
    found.failed(1.0)
    figures = found.window(300.0, 1.0)
    assert (figures.requests, figures.failed, figures.attained, figures.goodput) == (1, 1, 0.0, 0.0)
    assert figures.burn == pytest.approx(100.0)
    assert figures.ttft == (None, None, None, None)


def test_what_was_not_measured_breaks_no_promise():
    found = Attainment(PROMISED, 0.0)
    found.answered(Outcome(e2e=5.0), 1.0)
    figures = found.window(300.0, 1.0)
    assert (figures.attained, figures.burn) == (1.0, 0.0)


def test_without_promises_everything_that_is_answered_is_good():
    found = Attainment((), 0.0)
    found.answered(Outcome(ttft=99.0), 1.0)
    assert (found.window(300.0, 1.0).attained, found.window(300.0, 1.0).burn) == (1.0, 0.0)
    assert Attainment((), 0.0).window(300.0, 5.0) == Figures(0, 0, None, 0.0, 0.0, *[(None,) * 4] * 3)


def test_windows_slide_and_the_hour_forgets_in_bounded_memory():
    found = Attainment(PROMISED, 0.0)
    found.answered(Outcome(ttft=0.1), 0.0)
    assert [found.window(300.0, now).requests for now in (0.0, 200.0, 331.0)] == [1, 1, 0]
    assert [found.window(3600.0, now).requests for now in (3500.0, 3631.0)] == [1, 0]
    rng = random.Random(1)
    for second in range(0, 20_000, 5):
        found.answered(Outcome(ttft=rng.expovariate(1.0)), float(second))
    assert len(found._cells) == _CELLS
    assert found.window(3600.0, 19_999.0).requests == pytest.approx(720, abs=7)
    assert all(len(cell.sketches["ttft"]) < 600 for cell in found._cells)
