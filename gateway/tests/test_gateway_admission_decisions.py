"""The door: as many at once as fit, the rest in order and within bounds, limits per key and tenant, and a clear no."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.admission import Admission, Admit, Ask, Reject, Wait
from sheaf_gateway.admission.bucket import Bucket
from sheaf_gateway.admission.limits import Limits
from sheaf_gateway.fleet.view import Rate

QUICK = settings(max_examples=40, deadline=None)


def ask(number: int = 0, **more) -> Ask:
    return Ask(**{"request_id": str(number), "model": "m", "availability": "Ready", "slots": 1, **more})


def limited(**rate) -> tuple:
    return (("key `a`", Rate(**rate)),)


def test_what_fits_is_admitted_and_the_rest_waits_in_order():
    door = Admission()
    first, second, third = (ask(number) for number in range(3))
    assert isinstance(door.decide(first, 0.0), Admit)
    assert door.decide(second, 1.0) == Wait(31.0)
    assert door.decide(third, 1.0) == Wait(31.0)
    assert door.next_waiter("m", 1) is None
    door.release(first, 2.0)
    assert door.next_waiter("m", 1) == second
    assert door.next_waiter("m", 1) is None
    assert (door.running("m"), door.waiting("m")) == (1, 1)


def test_nobody_overtakes_the_queue():
    door = Admission()
    running = ask(0)
    door.decide(running, 0.0)
    door.decide(ask(1), 0.0)
    door.release(running, 1.0)
    assert isinstance(door.decide(ask(2), 1.0), Wait)
    assert door.next_waiter("m", 1).request_id == "1"


def test_models_do_not_wait_for_each_other():
    door = Admission()
    door.decide(ask(0), 0.0)
    assert isinstance(door.decide(ask(1, model="other"), 0.0), Admit)


def test_a_full_queue_refuses_with_a_wait_that_grows_with_the_queue():
    door = Admission()
    door.decide(ask(0), 0.0)
    door.decide(ask(1, max_queue=1), 0.0)
    refused = door.decide(ask(2, max_queue=1), 0.0)
    assert (refused.status, refused.code) == (503, "queue_full")
    for number in range(3, 300):
        door.decide(ask(number), 0.0)
    later = door.decide(ask(999, max_queue=1), 0.0)
    assert 1.0 <= refused.retry_after < later.retry_after <= 60.0


def test_too_long_a_wait_ends_with_503_and_frees_the_place():
    door = Admission()
    door.decide(ask(0), 0.0)
    waiter = ask(1, max_wait=2.0)
    door.decide(waiter, 0.0)
    refused = door.expire(waiter, 2.0)
    assert (refused.status, refused.code) == (503, "queue_timeout")
    assert "2 s" in refused.message
    assert door.waiting("m") == 0
    door.withdraw(waiter, 3.0)


@pytest.mark.parametrize(("availability", "code"), [("Zero", "model_at_zero"), ("Starting", "model_starting")])
def test_a_model_without_a_ready_pod_says_why_and_when_to_come_back(availability, code):
    refused = Admission().decide(ask(availability=availability, slots=0), 0.0)
    assert (refused.status, refused.code) == (503, code)
    assert refused.retry_after >= 1


def test_requests_per_minute_come_back_one_by_one():
    door = Admission()
    scopes = limited(requests_per_minute=2)
    answers = [door.decide(ask(number, slots=9, scopes=scopes), 0.0) for number in range(3)]
    assert [type(answer) for answer in answers] == [Admit, Admit, Reject]
    assert (answers[2].status, answers[2].code, answers[2].retry_after) == (429, "rate_limit_exceeded", 30.0)
    assert "2 requests per minute" in answers[2].message
    assert isinstance(door.decide(ask(4, slots=9, scopes=scopes), 30.0), Admit)


def test_tokens_are_charged_as_used_and_debt_is_waited_for():
    door = Admission()
    scopes = limited(tokens_per_minute=60)
    first = ask(1, slots=9, scopes=scopes, tokens=10)
    assert isinstance(door.decide(first, 0.0), Admit)
    door.release(first, 0.0, used_tokens=90)
    refused = door.decide(ask(2, slots=9, scopes=scopes, tokens=10), 0.0)
    assert (refused.code, refused.retry_after) == ("rate_limit_exceeded", 40.0)
    assert isinstance(door.decide(ask(3, slots=9, scopes=scopes, tokens=10), 40.0), Admit)


def test_a_request_larger_than_a_minutes_tokens_needs_a_full_bucket():
    door = Admission()
    scopes = limited(tokens_per_minute=60)
    assert isinstance(door.decide(ask(1, slots=9, scopes=scopes, tokens=600), 0.0), Admit)
    assert isinstance(door.decide(ask(2, slots=9, scopes=scopes, tokens=600), 60.0), Reject)


def test_concurrency_is_freed_by_release_and_by_leaving_the_queue():
    door = Admission()
    scopes = limited(max_concurrent=2)
    running, waiting, third = (ask(number, scopes=scopes) for number in range(3))
    door.decide(running, 0.0)
    door.decide(waiting, 0.0)
    assert door.decide(third, 0.0).code == "concurrency_limit_exceeded"
    door.withdraw(waiting, 0.0)
    assert isinstance(door.decide(third, 0.0), Wait)


def test_a_wait_that_failed_gives_its_tokens_back():
    door = Admission()
    scopes = limited(tokens_per_minute=100)
    door.decide(ask(0), 0.0)
    waiter = ask(1, scopes=scopes, tokens=100)
    door.decide(waiter, 0.0)
    door.expire(waiter, 0.0)
    assert isinstance(door.decide(ask(2, scopes=scopes, tokens=100), 0.0), Wait)


def test_models_that_are_gone_are_forgotten_once_nobody_is_left():
    door = Admission()
    last = ask(0, model="old")
    door.decide(last, 0.0)
    door.decide(ask(1, model="idle"), 0.0)
    door.release(ask(1, model="idle"), 0.0)
    door.keep(frozenset({"new"}))
    assert set(door._gates) == {"old"}
    door.release(last, 1.0, service_s=1.0)
    door.keep(frozenset())
    assert door._gates == {}


@QUICK
@given(st.lists(st.tuples(st.sampled_from("arwx"), st.integers(1, 4)), max_size=60))
def test_no_more_than_the_slots_are_ever_admitted_and_everyone_is_accounted_for(steps):
    door = Admission()
    admitted: list[Ask] = []
    waiting: list[Ask] = []
    for number, (step, slots) in enumerate(steps):
        if step == "a":
            asked = ask(number, slots=slots, max_queue=5)
            answer = door.decide(asked, float(number))
            {Admit: admitted, Wait: waiting}.get(type(answer), []).append(asked)
            assert not isinstance(answer, Admit) or len(admitted) <= slots
        elif step == "r" and admitted:
            door.release(admitted.pop(0), float(number))
        elif step == "w" and waiting:
            door.withdraw(waiting.pop(), float(number))
        elif step == "x" and (called := door.next_waiter("m", slots)) is not None:
            assert called == waiting.pop(0)
            admitted.append(called)
            assert len(admitted) <= slots
        assert (door.running("m"), door.waiting("m")) == (len(admitted), len(waiting))
        assert len(waiting) <= 5


@QUICK
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=50))
def test_a_bucket_never_lets_through_more_than_its_rate_and_capacity(steps):
    bucket = Bucket(10.0, 2.0, 0.0)
    now = spent = 0.0
    for wait, amount in steps:
        now += wait
        if bucket.wait(amount, now) == 0.0 and amount <= 10.0:
            bucket.spend(amount)
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
