"""Gateways that tell each other of their requests: whatever is lost, the books agree again, and nothing is counted twice."""

import pytest
from gateway_gossip_pair import Gateway, met, text
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.gossip import hearing as rules
from sheaf_gateway.gossip import telling
from sheaf_gateway.gossip.wire import Batch, Door, Name, Sent, decode, encode, packed
from sheaf_gateway.routing.prefix import chain, seed


@pytest.fixture
def pair():
    return met()


def test_an_attempt_weighs_in_the_other_gateways_ledgers_until_it_ends(pair):
    one, other = pair
    ticket = one.send(0.0, adapter="pirate")
    one.tell(other)
    ledger = other.router.ledger(ticket.pod)
    mine = one.router.ledger(ticket.pod)
    assert (ledger.running, ledger.told, ledger.adapters) == (1, 1, {"pirate": 1})
    assert ledger.pending_tokens == mine.pending_tokens
    assert ledger.pending_pairs == pytest.approx(mine.pending_pairs)
    assert ledger.held_tokens == mine.held_tokens
    one.router.answered(ticket, 1.0, streamed=True)
    one.tell(other, now=1.0)
    assert (ledger.running, ledger.pending_tokens) == (1, 0.0)
    one.end(ticket)
    one.tell(other, now=2.0)
    assert (ledger.running, ledger.told, ledger.held_tokens, ledger.adapters) == (0, 0, 0.0, {})


def test_the_other_gateway_follows_a_prefix_that_it_was_told_of(pair):
    one, other = pair
    first = one.send(0.0, 64_000, who=7)
    one.router.answered(first, 0.1, streamed=True)
    one.end(first)
    one.tell(other, now=0.2)
    assert other.send(1.0, 64_000, who=7).pod == first.pod
    assert other.tickets[0].cached == first.held


def test_a_prompt_longer_than_a_datagram_arrives_whole(pair):
    one, other = pair
    ticket = one.send(0.0, 700 * 256)
    one.teller.doors(one.admission)
    batches = one.teller.flush(1e9)
    assert len(batches) > 3
    assert max(map(len, batches)) <= telling.MAX_BYTES
    for data in batches:
        other.hear(one, data, 0.0)
    found = chain(seed("base", None, "", ""), text(700 * 256))
    assert other.router.index.match(found, [(ticket.pod, 1)]) == {(ticket.pod, 1): 700}


def test_nobody_is_woken_twice_for_one_flush(pair):
    one, _ = pair
    before = one.woken
    for _ in range(3):
        one.end(one.send(0.0))
    assert one.woken == before + 1
    one.tell()
    one.send(0.0)
    assert one.woken == before + 2


def test_what_was_told_is_not_told_again(pair):
    one, _ = pair
    one.send(0.0)
    one.tell()
    (data,) = one.teller.flush(1e9)
    batch = decode(data)
    assert (batch.sent, batch.names, batch.live, batch.whole) == ([], [], 1, True)


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(st.sampled_from(["send", "answer", "end", "tell", "lose", "late"]), st.integers(0, 1), st.integers(0, 9)),
    max_size=60,
)


def act(one: Gateway, action: str, pick: int, now: float) -> None:
    if action == "send":
        one.send(now, 256 * (1 + 40 * pick), who=pick)
    elif action == "answer" and one.tickets:
        one.router.answered(one.tickets[pick % len(one.tickets)], now, streamed=True)
    elif action == "end" and one.tickets:
        one.end(one.tickets[pick % len(one.tickets)])


@given(steps)
@settings(max_examples=60, deadline=None)
def test_whatever_is_lost_the_ledgers_agree_after_a_few_words_more(found: list[Step]):
    gateways, now, late = (Gateway(1), Gateway(2)), 0.0, []
    for action, who, pick in found:
        now += 0.3
        one, other = gateways[who], gateways[1 - who]
        if action in ("tell", "lose"):
            one.tell(other, now=now, lost={pick % 3} if action == "lose" else ())
        elif action == "late":
            one.teller.doors(one.admission)
            late += [(other, one, data) for data in one.teller.flush(1e9)]
        else:
            act(one, action, pick, now)
    for other, one, data in late:
        other.hear(one, data, now)
    for _ in range(4):
        now += 0.3
        for one, other in (gateways, gateways[::-1]):
            one.tell(other, now=now)
    for one, other in (gateways, gateways[::-1]):
        assert other.told() == one.own()
        for name, ledger in one.router.ledgers.items():
            known = other.router.ledger(name)
            assert known.running == ledger.running
            assert known.pending_tokens == pytest.approx(ledger.pending_tokens)
            assert len(known.queued) == len(ledger.queued)


def test_a_gateway_that_comes_late_is_told_what_is_under_way(pair):
    one, _ = pair
    tickets = [one.send(0.0, who=place) for place in range(100)]
    one.router.answered(tickets[0], 0.1, streamed=True)
    one.tell()
    late = Gateway(3)
    one.tell(late, now=1.0)
    late.tell(one, now=1.0)
    one.tell(late, now=1.1)
    assert late.told() == one.own()
    assert sum(len(ledger.queued) for ledger in late.router.ledgers.values()) == 99


def test_a_silent_gateway_is_forgotten_and_one_that_leaves_at_once(pair):
    one, other = pair
    one.send(0.0)
    one.tell(other)
    assert other.hearing.expire(rules.SILENCE_S) == frozenset()
    assert other.told()
    other.hearing.expire(rules.SILENCE_S + 0.1)
    assert (other.told(), other.hearing.peers) == ({}, {})
    one.teller.summarise()
    one.tell(other, now=9.0)
    assert other.told()
    one.tell(other, now=9.0, leaving=True)
    assert (other.told(), other.hearing.peers) == ({}, {})
    third = Gateway(3)
    third.send(0.0)
    third.tell(other, now=9.0, leaving=True)
    assert other.hearing.peers == {}


def test_all_peers_can_be_dropped_at_once(pair):
    one, other = pair
    one.send(0.0)
    one.tell(other)
    other.hearing.clear()
    assert (other.told(), other.hearing.peers) == ({}, {})


def test_one_batch_twice_one_that_is_late_and_ones_own_change_nothing(pair):
    one, other = pair
    one.send(0.0)
    (data,) = one.teller.flush(1e9)
    for _ in range(2):
        other.hear(one, data, 0.0)
    one.hear(one, data, 0.0)
    assert other.told() == one.own()
    assert one.hearing.peers.keys() == {2}


def test_a_summary_is_not_asked_for_more_often_than_now_and_then(pair):
    one, other = pair
    one.tell()
    one.tell(other, now=1.0)
    one.tell(other, now=1.1)
    assert one.teller.life in decode(other.teller.flush(1e9)[0]).wanted
    one.tell(other, now=1.15)
    assert decode(other.teller.flush(1e9)[0]).wanted == []
    one.tell(other, now=1.3)
    assert decode(other.teller.flush(1e9)[0]).wanted == [one.life]


def test_a_breaker_that_opened_elsewhere_makes_one_failure_enough_here(pair):
    one, other = pair
    bad = one.send(0.0)
    other.router.ledger(bad.pod)
    for _ in range(one.router.rules.failures):
        one.router.failed(bad, 0.0)
    assert one.router.ledger(bad.pod).breaker.phase == "Open"
    one.tell(other)
    breaker = other.router.ledger(bad.pod).breaker
    assert (breaker.phase, breaker.consecutive) == ("Closed", other.router.rules.failures - 1)
    own = other.send(0.0)
    own.pod = bad.pod
    other.router.failed(own, 0.1)
    opened = other.router.ledger(bad.pod).breaker
    assert opened.phase == "Open"
    one.tell(other, now=0.2)
    other.tell(one, now=0.2)
    assert other.router.ledger(bad.pod).breaker == opened
    probe = one.router.ledger(bad.pod).breaker.until
    ticket = one.send(probe)
    ticket.pod, ticket.probe = bad.pod, True
    one.router.answered(ticket, probe, streamed=True)
    one.tell(other, now=probe)
    assert other.router.ledger(bad.pod).breaker.until <= probe


def test_no_ledger_is_made_for_a_breaker_of_a_pod_that_is_not_known(pair):
    _, other = pair
    other.hearing.take(decode(encode(Batch(life=9, number=1, at=0.0, live=0, names=[Name(1, "ghost")]))), 0.0)
    assert "ghost" not in other.router.ledgers


def test_a_peers_words_are_taken_within_bounds_only(monkeypatch, pair):
    _, other = pair
    monkeypatch.setattr(rules, "MAX_ENTRIES", 3)
    monkeypatch.setattr(rules, "MAX_LIVE", 1)
    monkeypatch.setattr(rules, "MAX_PIECES", 1)
    names = [Name(place, f"m{place}") for place in range(1, 6)]
    told = Batch(
        life=9,
        number=1,
        at=0.0,
        live=1,
        names=names,
        pieces=[[1, packed([5])], [2, packed([6])]],
        sent=[Sent(place, 1, 1, 2, 0, 1, 1) for place in range(1, 4)] + [Sent(7, 5, 1, 1, 0, 1, 1)],
        answered=[99],
        finished=[99],
        doors=[Door(place, 1, 1) for place in range(1, 6)],
        service=[[1, 2, 1.0, 1.0], [1, 5, 1.0, 1.0]],
        used=[[1, 1, 1.0, 1], [5, 1, 1.0, 1]],
        breakers=[[1, True], [5, True]],
    )
    other.hearing.take(decode(encode(told)), 0.0)
    peer = other.hearing.peers[9]
    assert (len(peer.names), len(peer.tickets), len(peer.doors)) == (3, 1, 3)
    monkeypatch.setattr(rules, "MAX_ENTRIES", 1)
    more = Batch(
        life=9, number=2, at=0.0, live=1, doors=[Door(1, 2, 2)], service=[[2, 1, 1.0, 1.0]], used=[[2, 1, 1.0, 1]]
    )
    other.hearing.take(decode(encode(more)), 0.0)
    assert peer.service.keys() == {("m1", "m2")}
    assert peer.used.keys() == {"m1"}
    monkeypatch.setattr(rules, "MAX_PEERS", 2)
    assert not other.hearing.take(Batch(life=10, number=1, at=0.0, live=0), 0.0).taken


def test_too_much_to_tell_becomes_a_summary(monkeypatch, pair):
    one, other = pair
    monkeypatch.setattr(telling, "MAX_GATHERED", 8)
    for place in range(20):
        one.send(0.0, who=place)
    for _ in range(20):
        one.teller.broke("pod-0", opened=True)
    one.tell(other)
    assert other.told() == one.own()


def test_how_many_attempts_are_told_of_is_known(pair):
    one, _ = pair
    one.send(0.0)
    assert len(one.teller) == 1


def test_names_are_bounded_and_told_anew(monkeypatch, pair):
    one, other = pair
    monkeypatch.setattr(telling, "MAX_NAMES", 8)
    for place in range(12):
        one.send(0.0, adapter=f"adapter-{place}")
        one.tell(other, now=float(place))
    one.tell(other, now=20.0)
    assert len(one.teller._names) <= 20
    assert other.told() == one.own()


def test_many_ends_are_split_over_datagrams(pair):
    one, other = pair
    for place in range(600):
        one.send(0.0, who=place)
    one.tell(other)
    assert sum(other.told().values()) == 600
    for ticket in list(one.tickets):
        one.router.answered(ticket, 1.0, streamed=False)
        one.end(ticket)
    one.teller.doors(one.admission)
    batches = one.teller.flush(1e9)
    assert len(batches) > 2
    assert max(map(len, batches)) <= telling.MAX_BYTES
    for data in batches:
        other.hear(one, data, 1.0)
    assert other.told() == {}
