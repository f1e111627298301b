"""Limits: buckets that are kept, whoever charges them, whenever they are told, and whatever their rate becomes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.bucket import Bucket
from sheaf_gateway.admission.limits import Limits
from sheaf_gateway.fleet.view import Rate

QUICK = settings(max_examples=40, deadline=None)


def limited(**rate) -> tuple:
    return (("key `a`", Rate(**rate)),)


@QUICK
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=50))
def test_a_bucket_never_lets_through_more_than_its_rate_and_capacity(steps):
    bucket = Bucket(10.0, 2.0, 0.0)
    now = spent = 0.0
    for wait, amount in steps:
        now += wait
        if bucket.wait(amount, now) == 0.0 and amount <= 10.0:
            bucket.spend(amount, now)
            spent += amount
    assert spent <= 10.0 + 2.0 * now + 1e-6
    assert bucket.level(now) <= 10.0
    assert bucket.level(now - 5.0) == bucket.level(now)


def test_changed_limits_hold_at_once_and_running_requests_stay_counted():
    limits = Limits()
    old, new = limited(max_concurrent=5), limited(max_concurrent=1)
    limits.start(old, 0.0, 0.0)
    assert limits.check(old, 0.0, 0.0) is None
    assert limits.check(new, 0.0, 0.0).limit == "max_concurrent"


def test_changed_rates_leave_buckets_as_full_as_they_were():
    limits = Limits()
    few, many, none = limited(requests_per_minute=6), limited(requests_per_minute=600), limited(tokens_per_minute=60)
    for _ in range(3):
        limits.start(few, 0.0, 0.0)
    assert [limits.take(many, 0.0, 0.0) for _ in range(300)] == [None] * 300
    assert limits.take(many, 0.0, 0.0).retry_after == pytest.approx(0.1)
    assert limits.take(few, 0.0, 0.0).retry_after == pytest.approx(10.0)
    assert limits.take(none, 60.0, 0.0) is None
    assert limits.take(few, 0.0, 0.0) is None


def test_rates_that_change_with_every_request_are_not_unlimited():
    limits = Limits()
    rates = limited(requests_per_minute=5), limited(requests_per_minute=6)
    assert sum(limits.take(rates[number % 2], 0.0, 0.0) is None for number in range(100)) in {5, 6}


@QUICK
@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5), st.floats(0, 300)), max_size=11), st.floats(0, 90))
def test_what_was_heard_before_anybody_asked_counts_nearly_as_if_somebody_had(heard, wait):
    """Nearly: to within a span of five seconds."""
    early, late, now = Limits(), Limits(), 0.0
    rate = limited(requests_per_minute=60, tokens_per_minute=6000)
    early.check(rate, 0.0, now)
    for gap, requests, tokens in heard:
        now += gap
        for limits in (early, late):
            limits.hear(rate[0][0], requests, tokens, 0, now)
    now += wait
    late.check(rate, 0.0, now)
    known, opened = (limits._accounts[rate[0][0]] for limits in (early, late))
    assert opened.requests.level(now) == pytest.approx(known.requests.level(now), abs=5.0 + 1e-6)
    assert opened.tokens.level(now) == pytest.approx(known.tokens.level(now), abs=500.0 + 1e-6)


def test_what_is_heard_of_scopes_that_nobody_uses_here_is_bounded():
    limits = Limits()
    for number in range(11_000):
        limits.hear(str(number), 1, 1.0, 0, 0.0)
    assert len(limits._heard._scopes) == 10_000
    for number in range(20_000):
        limits.hear("one", 1, 1.0, 0, 3600.0 + number)
    assert list(limits._heard._scopes) == ["one"]
    assert len(limits._heard._scopes["one"]) == 12


def test_what_a_request_took_beyond_its_estimate_is_taken_when_it_ends():
    limits, rate = Limits(), limited(tokens_per_minute=600)
    limits.start(rate, 10.0, 0.0)
    limits.finish(rate, 590.0, 300.0)
    assert limits.check(rate, 100.0, 301.0).retry_after == pytest.approx(8.0)


def test_accounts_are_bounded_and_idle_ones_leave_first():
    limits = Limits(max_scopes=3)
    busy = (("busy", Rate(max_concurrent=1)),)
    limits.start(busy, 0.0, 0.0)
    for number in range(10):
        limits.check(((str(number), Rate()),), 0.0, 0.0)
    assert len(limits) == 3
    assert limits.check(busy, 0.0, 0.0) is not None
    for number in range(10):
        limits.start(((f"b{number}", Rate()),), 0.0, 0.0)
    assert len(limits) == 3
