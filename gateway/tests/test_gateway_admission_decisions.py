"""The door: as many at once as fit, the rest in order and within bounds, limits per key and tenant, and a clear no."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.admission import Admission, Admit, DoorRules, Reject, Wait
from sheaf_gateway.admission.terms import Ask, Terms, Work
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
    assert door.next_waiter("m", 1, 2.0) is None
    door.release(first, 2.0)
    assert door.next_waiter("m", 1, 2.0) == second
    assert door.next_waiter("m", 1, 2.0) is None
    assert (door.running("m"), door.waiting("m")) == (1, 1)


def test_nobody_overtakes_the_queue():
    door = Admission()
    running = ask(0)
    door.decide(running, 0.0)
    door.decide(ask(1), 0.0)
    door.release(running, 1.0)
    assert isinstance(door.decide(ask(2), 1.0), Wait)
    assert door.next_waiter("m", 1, 2.0).request_id == "1"


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
    door.withdraw(ask(7, model="never"), 3.0)
    assert (door.running("never"), door.waiting("never")) == (0, 0)


def test_a_model_declared_with_no_replicas_says_so_at_once():
    refused = Admission().decide(ask(availability="Zero", slots=0), 0.0)
    assert (refused.status, refused.code, refused.retry_after) == (503, "model_at_zero", 10.0)
    assert "spec.replicas" in refused.message


@pytest.mark.parametrize(("availability", "code"), [("Zero", "model_at_zero"), ("Starting", "model_starting")])
def test_requests_for_a_model_that_wakes_are_held_so_many_and_so_long(availability, code):
    door = Admission(DoorRules(max_held=2, hold_s=60.0))
    held = [ask(n, availability=availability, slots=0, max_wait=1.0, terms=Terms(wakes=True)) for n in range(3)]
    assert [door.decide(each, 0.0) for each in held[:2]] == [Wait(60.0)] * 2
    refused = door.decide(held[2], 0.0)
    assert (refused.status, refused.code) == (503, code)
    assert refused.retry_after >= 1
    assert (door.demand("m", 5.0, ready=False).held, door.demand("m", 5.0, ready=False).waiting) == (2, 0)
    assert door.next_waiter("m", 1, 30.0) == held[0]
    expired = door.expire(held[1], 60.0)
    assert (expired.status, expired.code) == (503, code)
    assert "60 s" in expired.message
    assert door.demand("m", 60.0, ready=True).refused == 2


def test_held_requests_are_not_judged_by_a_promise_that_waking_has_broken():
    door = Admission()
    terms = Terms(ttft=0.1, ttft_limit=0.1)
    door.decide(ask(0, terms=terms), 0.0)
    door.release(ask(0, terms=terms), 9.0, service_s=9.0, first_s=9.0)
    assert isinstance(door.decide(ask(1, availability="Starting", slots=0, terms=terms), 9.0), Wait)


def busy(terms: Terms, *, service_s: float = 2.0, first_s: float = 0.5) -> Admission:
    """A door whose one slot is taken, where a request is known to take so long."""
    door = Admission()
    known = ask("known", terms=terms)
    door.decide(known, 0.0)
    door.release(known, 1.0, service_s=service_s, first_s=first_s)
    door.decide(ask("running", terms=terms), 1.0)
    return door


def test_times_of_a_crowd_that_is_let_in_no_more_are_not_learnt_and_forgotten():
    door, terms = Admission(), Terms(ttft=1.0, ttft_limit=5.0)
    crowd = [ask(number, terms=terms, slots=50) for number in range(50)]
    for one in crowd:
        door.decide(one, 0.0)
    for one in crowd[30:]:
        door.release(one, 9.0, service_s=9.0, first_s=9.0)
    assert door.demand("m", 9.0, ready=True).service_s == 9.0
    door.decide(ask("later", terms=terms, slots=10), 9.0)
    for one in crowd[20:30]:
        door.release(one, 12.0, service_s=12.0, first_s=12.0)
    assert door.demand("m", 12.0, ready=True).service_s == 0.0
    assert isinstance(door.decide(ask("next", terms=terms, slots=10), 12.0), Wait)
    door.release(crowd[0], 12.0, service_s=3.0, first_s=3.0)
    assert door.demand("m", 12.0, ready=True).service_s == 3.0


def test_what_cannot_begin_in_the_promised_time_is_refused_early_with_the_reason():
    door = busy(Terms(ttft=1.0, ttft_limit=5.0))
    terms = Terms(ttft=1.0, ttft_limit=5.0)
    answers = [door.decide(ask(number, terms=terms), 1.0) for number in range(3)]
    assert [type(answer) for answer in answers] == [Wait, Wait, Reject]
    refused = answers[2]
    assert (refused.status, refused.code) == (429, "slo_unattainable")
    assert refused.reason == "slo_unattainable; predicted_ttft=6.500; promised_ttft=5.000"
    assert refused.retry_after == 1.5
    assert door.waiting("m") == 2


def test_a_long_prompt_counts_in_its_own_prediction():
    door = busy(Terms(ttft_limit=5.0))
    long, short = Work(10_000.0, 0.0, 4.0), Work(10.0, 0.0, 0.1)
    assert isinstance(door.decide(ask(1, terms=Terms(ttft_limit=5.0)), 1.0, lambda: long), Reject)
    assert isinstance(door.decide(ask(2, terms=Terms(ttft_limit=5.0)), 1.0, lambda: short), Wait)


@pytest.mark.parametrize("more", [{"batch": True}, {"terms": Terms()}])
def test_batch_and_what_was_promised_nothing_is_never_refused_early(more):
    door = busy(Terms(ttft_limit=0.1))
    assert isinstance(door.decide(ask(1, **{"terms": Terms(ttft_limit=0.1), **more}), 1.0), Wait)


def test_nothing_is_refused_early_on_no_experience_or_where_there_is_room():
    terms = Terms(ttft_limit=0.001)
    door = Admission()
    assert isinstance(door.decide(ask(0, terms=terms), 0.0), Admit)
    assert isinstance(door.decide(ask(1, terms=terms), 0.0), Wait)
    door = busy(terms)
    assert isinstance(door.decide(ask(1, slots=2, terms=terms), 1.0), Admit)


def test_a_heavy_tenant_does_not_make_a_light_one_look_late():
    terms = Terms(policy="VTC", weights={"gold": 4}, ttft_limit=6.0)
    door = busy(terms)
    answers = [door.decide(ask(number, tenant="free", terms=terms), 1.0) for number in range(4)]
    assert [type(answer) for answer in answers] == [Wait, Wait, Reject, Reject]
    assert isinstance(door.decide(ask(9, tenant="gold", terms=terms), 1.0), Wait)


def test_in_a_full_queue_the_crowd_makes_room_for_who_has_little_there():
    terms = Terms(policy="DLPM")
    door = Admission()
    door.decide(ask(0, tenant="crowd", terms=terms), 0.0)
    crowd = [ask(number, tenant="crowd", terms=terms, max_queue=3) for number in range(1, 4)]
    for each in crowd:
        door.decide(each, 0.0)
    assert door.decide(ask(8, tenant="crowd", terms=terms, max_queue=3), 0.0).code == "queue_full"
    answer = door.decide(ask(9, tenant="light", terms=terms, max_queue=3), 0.0)
    assert answer.displaced == crowd[2]
    assert (answer.refusal.status, answer.refusal.code) == (503, "queue_full")
    assert (door.waiting("m"), door.demand("m", 0.0, ready=True).refused) == (3, 2)


def test_in_a_full_queue_batch_makes_room_for_interactive_and_never_the_other_way():
    door = Admission()
    door.decide(ask(0), 0.0)
    batch, second = ask(1, batch=True, max_queue=2), ask(2, max_queue=2)
    assert [type(door.decide(each, 0.0)) for each in (batch, second)] == [Wait, Wait]
    assert door.decide(ask(3, batch=True, max_queue=2), 0.0).code == "queue_full"
    assert door.decide(ask(4, max_queue=2), 0.0).displaced == batch
    assert door.decide(ask(5, max_queue=2), 0.0).code == "queue_full"
    assert door.decide(ask(6, max_queue=0), 0.0).code == "queue_full"


def test_demand_tells_what_is_asked_of_a_model():
    door = Admission()
    assert door.demand("m", 0.0, ready=True).running == 0
    for number in range(60):
        door.decide(ask(number, batch=number > 50, terms=Terms(ttft=1.0)), 0.5 * number)
    door.next_waiter("m", 2, 30.0)
    found = door.demand("m", 30.0, ready=True)
    assert (found.running, found.waiting, found.held, found.batch) == (2, 58, 0, 9)
    assert found.late > 40
    assert found.oldest_wait_s == 29.0 or found.oldest_wait_s == 29.5
    assert found.arrival_rate == pytest.approx(2.0 * (1 - 2.718281828**-1), rel=0.05)
    assert found.service_s == 0.0


def test_demand_tells_for_how_long_nobody_has_been_there():
    door = Admission()
    assert door.demand("m", 9.0, ready=True).quiet_s is None
    served, waits = ask(1, max_wait=5.0), ask(2, max_wait=5.0)
    door.decide(served, 10.0)
    door.decide(waits, 11.0)
    assert door.demand("m", 14.0, ready=True).quiet_s == 0.0
    door.release(served, 15.0, service_s=5.0)
    assert door.demand("m", 15.5, ready=True).quiet_s == 0.0
    door.expire(waits, 16.0)
    assert door.demand("m", 46.0, ready=True).quiet_s == 30.0
    door.release(served, 46.0)
    assert door.demand("m", 46.0, ready=True).quiet_s == 30.0
    door.decide(ask(3, availability="Zero", slots=0), 50.0)
    assert door.demand("m", 52.0, ready=False).quiet_s == 2.0


def test_what_a_limit_of_its_caller_refuses_is_no_demand():
    door = Admission()
    scopes = limited(requests_per_minute=1)
    answers = [door.decide(ask(number, scopes=scopes), 0.0) for number in range(5)]
    assert [type(answer) for answer in answers] == [Admit, *[Reject] * 4]
    found = door.demand("m", 0.0, ready=True)
    assert (found.refused, found.arrival_rate) == (0, pytest.approx(1 / 30))


def test_what_was_charged_is_corrected_by_what_was_so():
    door = Admission()
    terms = Terms(policy="VTC")
    first = ask(1, tenant="a", prompt=100.0, terms=terms, slots=9)
    door.decide(first, 0.0)
    assert door.served("m") == {"a": 100.0}
    door.routed(first, 40.0)
    door.produced(first, 8.0)
    door.produced(first, 4.0)
    assert door.served("m") == {"a": 56.0}
    door.release(first, 1.0, uncached=50.0, output=10.0)
    assert door.served("m") == {"a": 70.0}
    door.produced(first, 99.0)
    door.routed(ask(2, model="never"), 1.0)
    assert (door.served("m"), door.served("never")) == ({"a": 70.0}, {})


def test_a_request_is_released_once():
    door = Admission()
    scopes = limited(tokens_per_minute=100)
    both = [ask(number, slots=2, scopes=scopes, tokens=10) for number in range(2)]
    for each in both:
        door.decide(each, 0.0)
    door.release(both[0], 1.0, used_tokens=0, service_s=1.0)
    door.release(both[0], 1.0, used_tokens=0, service_s=9.0)
    assert door.running("m") == 1
    assert door.demand("m", 1.0, ready=True).service_s == 1.0
    assert isinstance(door.decide(ask(3, slots=2, scopes=scopes, tokens=90), 1.0), Admit)


def test_another_policy_holds_once_nobody_waits_under_the_old_one():
    door = Admission()
    old, new = Terms(), Terms(policy="VTC")
    door.decide(ask(0, terms=old), 0.0)
    door.decide(ask(1, terms=old), 0.0)
    door.decide(ask(2, terms=new), 0.0)
    assert door._gates["m"].line.books.policy == "None"
    door.withdraw(ask(1), 0.0)
    door.withdraw(ask(2), 0.0)
    door.decide(ask(3, terms=new), 0.0)
    assert door._gates["m"].line.books.policy == "VTC"
    door.release(ask(0, terms=new), 1.0, output=5.0)
    assert door.next_waiter("m", 1, 1.0) == ask(3, terms=new)


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
    assert door.next_waiter("idle", 1, 0.0) is None
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
        elif step == "x" and (called := door.next_waiter("m", slots, float(number))) is not None:
            assert called == waiting.pop(0)
            admitted.append(called)
            assert len(admitted) <= slots
        assert (door.running("m"), door.waiting("m")) == (len(admitted), len(waiting))
        assert len(waiting) <= 5
