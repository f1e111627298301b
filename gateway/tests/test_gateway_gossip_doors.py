"""Gateways that share slots, service and limits by telling each other: the doors agree."""

import pytest
from gateway_gossip_pair import met
from sheaf_gateway.admission.admission import Admit, Wait
from sheaf_gateway.admission.others import Others
from sheaf_gateway.admission.terms import Ask as DoorAsk
from sheaf_gateway.admission.terms import Terms
from sheaf_gateway.fleet.view import Rate
from sheaf_gateway.gossip.wire import decode


@pytest.fixture
def pair():
    return met()


def door(request: str, tenant: str = "", slots: int = 4, **more) -> DoorAsk:
    return DoorAsk(request_id=request, model="base", availability="Ready", slots=slots, tenant=tenant, **more)


def test_slots_that_another_gateway_uses_are_not_given_again(pair):
    one, other = pair
    for place in range(3):
        assert isinstance(one.admission.decide(door(f"a{place}"), 0.0), Admit)
    one.tell(other)
    assert other.admission.others == {"base": Others(3, 0)}
    assert isinstance(other.admission.decide(door("b0"), 0.0), Admit)
    assert isinstance(other.admission.decide(door("b1"), 0.0), Wait)
    other.tell(one)
    assert one.admission.others == {"base": Others(1, 1)}
    one.admission.release(door("a0"), 0.0)
    one.tell(other)
    assert other.admission.next_waiter("base", 4, 0.0).request_id == "b1"
    other.admission.release(door("b0"), 0.0)
    other.admission.release(door("b1"), 0.0)
    other.tell(one)
    assert one.admission.others == {}


def test_who_waits_elsewhere_is_called_in_where_a_slot_came_free(pair):
    one, other = pair
    other.admission.decide(door("b"), 0.0)
    other.tell(one)
    for place in range(3):
        one.admission.decide(door(f"a{place}"), 0.0)
    one.tell(other)
    assert isinstance(other.admission.decide(door("b0"), 0.0), Wait)
    other.tell(one)
    assert one.admission.others == {"base": Others(1, 1)}
    assert isinstance(one.admission.decide(door("a4"), 0.0), Wait)
    one.admission.release(door("a0"), 0.0)
    assert one.admission.next_waiter("base", 4, 0.0).request_id == "a4"
    one.admission.release(door("a1"), 0.0)
    assert one.admission.next_waiter("base", 4, 0.0) is None
    one.teller.doors(one.admission)
    heard = [other.hearing.take(decode(data), 0.0) for data in one.teller.flush(1e9)]
    assert heard[-1].doors == {"base"}
    assert other.admission.next_waiter("base", 4, 0.0).request_id == "b0"
    other.admission.withdraw(door("b0"), 0.0)


def test_service_given_elsewhere_counts_for_whose_turn_it_is(pair):
    one, other = pair
    terms = Terms(policy="VTC")
    for gateway in pair:
        gateway.admission.decide(door("0", "gold", terms=terms, prompt=1.0), 0.0)
        gateway.tell(*[each for each in pair if each is not gateway])
    one.admission.decide(door("1", "gold", terms=terms, prompt=500.0), 0.0)
    one.tell(other)
    for place, tenant in enumerate(["gold", "free"]):
        other.admission.decide(door(f"w{place}", tenant, slots=0, terms=terms), 0.0)
    assert other.admission.next_waiter("base", 10, 0.0).tenant == "free"
    assert other.admission.served("base")["gold"] == 1.0


def test_service_is_told_as_a_total_so_that_a_lost_word_is_made_up_for(pair):
    one, other = pair
    terms = Terms(policy="DLPM")
    one.admission.decide(door("0", "gold", terms=terms, prompt=1.0), 0.0)
    other.admission.decide(door("0", "gold", terms=terms, prompt=0.0), 0.0)
    one.tell(other)
    books = other.admission._gates["base"].line.books
    before = books.tenants["gold"].level
    one.admission.produced(door("0", "gold", terms=terms), 100.0)
    one.tell()
    one.admission.produced(door("0", "gold", terms=terms), 150.0)
    one.tell(other, now=1.0)
    assert books.tenants["gold"].level == before - 300.0
    one.admission.release(door("0", "gold", terms=terms), 0.0, output=10.0, uncached=1.0)
    one.tell(other, now=2.0)
    assert books.tenants["gold"].level == before - 300.0, "a correction downwards waits for further service"


def test_limits_count_what_other_gateways_charge(pair):
    one, other = pair
    rate = Rate(requests_per_minute=3, tokens_per_minute=1000, max_concurrent=2)
    scopes = (("key `ci`", rate),)
    for place, gateway in enumerate(pair):
        assert gateway.admission.limits.take(scopes, 10.0, 0.0) is None
        gateway.tell(pair[1 - place])
    assert other.admission.limits.take(scopes, 10.0, 0.0).limit == "max_concurrent"
    one.admission.limits.finish(scopes, 400.0, 0.0)
    one.tell(other)
    assert other.admission.limits.take(scopes, 10.0, 0.0) is None
    other.admission.limits.finish(scopes, 0.0, 0.0)
    assert other.admission.limits.take(scopes, 700.0, 0.0).limit == "tokens_per_minute"
    one.admission.limits.take(scopes, 10.0, 0.0)
    one.tell(other)
    other.hearing.expire(99.0)
    assert other.admission.limits._others == {}


def test_a_caller_who_goes_from_gateway_to_gateway_gets_no_limit_twice(pair):
    one, other = pair
    scopes = (("key `ci`", Rate(requests_per_minute=60, tokens_per_minute=6000)),)
    assert one.admission.limits.take(scopes, 10.0, 0.0) is None
    one.tell(other)
    while one.admission.limits.take(scopes, 10.0, 0.0) is None:
        one.tell(other)
    admitted = sum(other.admission.limits.take(scopes, 10.0, 0.1) is None for _ in range(60))
    assert admitted == 1, "the first word of a gateway about a scope is where its count begins"
    assert other.admission.limits.take(scopes, 10.0, 30.0) is None


def test_what_others_charge_counts_however_long_nobody_asked_here(pair):
    one, other = pair
    scopes = (("key `ci`", Rate(tokens_per_minute=600)),)
    for place, gateway in enumerate(pair):
        assert gateway.admission.limits.take(scopes, 10.0, 0.0) is None
        gateway.tell(pair[1 - place])
    one.admission.limits.finish(scopes, 590.0, 300.0)
    one.tell(other, now=300.0)
    assert other.admission.limits.take(scopes, 100.0, 301.0).limit == "tokens_per_minute"
    assert other.admission.limits.take(scopes, 100.0, 311.0) is None


def test_nothing_is_noted_where_nobody_listens(pair):
    one, _ = pair
    one.admission.tell(on=False)
    one.admission.decide(door("a", scopes=(("key", Rate(max_concurrent=9)),)), 0.0)
    one.admission.stir()
    assert one.admission.news() == ([], [])
    assert one.admission.limits.news() == []
    one.admission.tell(on=True)
    one.admission.release(door("a"), 0.0, output=4.0)
    assert one.admission.news() == ([("base", 0, 0)], [("base", "", 8.0, 1)])


def test_nothing_is_kept_of_a_model_that_nobody_asked_for_here(pair):
    one, _ = pair
    one.admission.hear("base", "gold", 5.0, 1.0)
    assert one.admission.served("base") == {}
    one.admission.decide(door("a"), 0.0)
    one.admission.hear("base", "gold", 5.0, 4.0)
    assert one.admission.served("base") == {"": 0.0, "gold": 0.0}
