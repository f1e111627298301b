"""What a session left in pods' caches is credited where it is known and the index cannot know it, and never else."""

import pytest
from gateway_gossip_pair import met
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.gossip.telling import MAX_GATHERED
from sheaf_gateway.gossip.wire import Batch, Turned
from sheaf_gateway.routing.prefix import chain, seed
from sheaf_gateway.routing.router import Ask, Capacity, Router
from sheaf_gateway.routing.sessions import AGE_S, MAX_KEY, Counted, Sessions, Turn, after, session_key

PODS = tuple(Pod(name=f"p{place}", model="m", engine_url="http://e", epoch=1) for place in range(3))
START = seed("m", None, "", "")
ANSWER = 500
KEY = session_key(START, b"trip to Paris")
FIRST = b"Once upon a time. " * 200
NEXT = FIRST + b"And then there was a long answer. " * 60 + b"What now?"


def asked(prompt: bytes, session: int = KEY, number: int = 1, *, exact: bool = False) -> Ask:
    found = chain(START, prompt)
    return Ask(str(number), "m", chain=found, prompt_bytes=len(prompt), session=session, exact=exact, prompt=prompt)


def turn(router: Router, ask: Ask, place: int, counted: Counted | None = None, now: float = 1.0) -> None:
    decision = router.decide(ask, PODS[place : place + 1], now)
    ticket = router.sent(ask, decision, PODS[place], now)
    router.answered(ticket, now + 0.1, streamed=True)
    router.finished(ticket)
    router.turned(ask, (PODS[place].name, 1), counted or Counted(ANSWER), now + 0.5)


def told(router: Router, ask: Ask, now: float = 2.0, pods: tuple[Pod, ...] = PODS) -> dict[str, int]:
    candidates = router.decide(ask, pods, now).candidates
    return {one.pod: one.session_bytes for one in candidates if one.session_bytes}


def test_the_answer_is_expected_where_it_was_generated():
    router = Router()
    turn(router, asked(FIRST), 1)
    decision = router.decide(asked(NEXT), PODS, 2.0)
    found = decision.chosen()
    assert found.pod == "p1"
    assert found.cached_bytes == (len(FIRST) + 4 * ANSWER) // 256 * 256
    assert found.session_bytes == found.cached_bytes - len(FIRST) // 256 * 256
    assert router.decide(asked(NEXT, session=0), PODS, 2.0).chosen().cached_bytes == len(FIRST) // 256 * 256


def test_the_thorough_way_to_a_decision_says_the_same():
    router = Router()
    turn(router, asked(FIRST), 1)
    draining = (*PODS[:2], Pod(name="p2", model="m", engine_url="http://e", draining=True))
    assert told(router, asked(NEXT), pods=draining) == told(router, asked(NEXT))


def test_it_is_a_matter_of_cost_alone():
    router = Router()
    turn(router, asked(FIRST), 1)
    for number in range(20):
        busy = asked(b"%d" % number * 4_000, 0, number)
        router.sent(busy, router.decide(busy, PODS[1:2], 1.5), PODS[1], 1.5)
    decision = router.decide(asked(NEXT), PODS, 2.0)
    assert decision.pod != "p1"
    assert told(router, asked(NEXT)) == {"p1": decision.candidates[1].session_bytes}


@pytest.mark.parametrize(
    "other",
    [asked(b"Something else. " * 300), asked(FIRST[:1000]), asked(NEXT, session=KEY + 1), asked(b"")],
    ids=["another prompt", "a shorter one", "another session", "none"],
)
def test_what_does_not_go_on_from_the_last_turn_is_credited_with_nothing(other):
    router = Router()
    turn(router, asked(FIRST), 1)
    assert told(router, other) == {}


def test_another_epoch_of_the_pod_holds_nothing():
    router = Router()
    turn(router, asked(FIRST), 1)
    again = tuple(Pod(name=pod.name, model="m", engine_url="http://e", epoch=2) for pod in PODS)
    assert told(router, asked(NEXT), pods=again) == {}


def test_a_prompt_without_a_whole_block_is_not_remembered():
    router = Router()
    turn(router, asked(b"hello"), 1)
    assert len(router.sessions) == 0


def test_an_old_turn_is_forgotten():
    router = Router()
    turn(router, asked(FIRST), 1, now=0.0)
    assert told(router, asked(NEXT), now=AGE_S)
    assert told(router, asked(NEXT), now=AGE_S + 1.0) == {}


def test_what_the_index_forgot_is_still_there_while_the_pod_had_room():
    router = Router(max_blocks=20)
    router.capacities["m"] = Capacity(kv_tokens=4_000)
    turn(router, asked(FIRST), 1)
    turn(router, asked(b"x" * 5_000, 0), 1)
    forgotten = router.decide(asked(NEXT, session=0), PODS, 2.0).candidates[1].cached_bytes
    found = router.decide(asked(NEXT), PODS, 2.0).candidates[1]
    assert forgotten < 1_000
    assert found.cached_bytes == (len(FIRST) + 4 * ANSWER) // 256 * 256
    assert found.session_bytes == found.cached_bytes - forgotten
    turn(router, asked(b"y" * 6_000, 0), 1)
    assert told(router, asked(NEXT)) == {}


def test_without_a_known_size_of_the_cache_the_index_is_believed():
    router = Router(max_blocks=20)
    turn(router, asked(FIRST), 1)
    turn(router, asked(b"x" * 5_000, 0), 1)
    assert told(router, asked(NEXT)) == {}


def test_where_events_tell_the_session_adds_nothing():
    router = Router()
    key = (PODS[1].name, 1)
    blocks = router.index.announce(key)
    blocks.stored([1], None, [FIRST], 16, START)
    router.index.announced[key].trust = 1.0
    turn(router, asked(FIRST, exact=True), 1)
    assert told(router, asked(NEXT, exact=True)) == {}
    assert told(router, asked(NEXT))
    router.index.announced[key].trust = 0.2
    assert told(router, asked(NEXT, exact=True))


def test_answers_that_do_not_come_back_are_not_expected_any_more():
    router = Router()
    for number in range(6):
        turn(router, asked(FIRST), 1, Counted(400, prompt=900, cached=0), now=float(number))
        turn(router, asked(NEXT), 1, Counted(400, prompt=1_500, cached=890), now=number + 0.5)
        router.sessions.put(KEY, after((PODS[1].name, 1), asked(FIRST).chain, len(FIRST), Counted(400, 900), 0.0, 0.0))
    assert not router.sessions.believes("m")
    fresh = Router()
    fresh.sessions = router.sessions
    turn(fresh, asked(FIRST), 1, Counted(400, prompt=900))
    assert told(fresh, asked(NEXT)) == {}
    fresh.sessions.keep({"m"})
    assert not fresh.sessions.believes("m")
    fresh.sessions.keep(())
    assert fresh.sessions.believes("m")


def test_what_the_engine_had_evicted_says_nothing_about_answers():
    sessions, found = Sessions(), asked(FIRST).chain
    before = after(("p", 1), found, len(FIRST), Counted(400, prompt=900), 0.0, 0.0)
    for _ in range(20):
        sessions.learn("m", before, found, 100)
    assert sessions.believes("m")
    for _ in range(20):
        sessions.learn("m", before, found, 1_290)
    assert sessions.believes("m")


def test_a_name_is_kept_as_a_number_that_no_other_prompts_share():
    other = session_key(seed("m", None, "", "salt"), b"trip to Paris")
    assert other != KEY
    assert 0 < KEY <= MAX_KEY


def test_another_gateway_hears_of_it():
    one, other = met()
    router = one.router
    pods = PODS
    turn(router, asked(FIRST), 1)
    one.tell(other)
    found = told(other.router, asked(NEXT), pods=pods)
    assert found == told(router, asked(NEXT), pods=pods)
    assert found


def test_of_a_pod_that_was_never_named_nothing_is_believed():
    _, other = met()
    batch = Batch(life=1, number=9, at=1.0, live=0, turned=[Turned(KEY, 77, 1, bytes(8), 1, 300, 4)])
    assert other.hearing.take(batch, 0.0).taken
    assert len(other.router.sessions) == 0


def test_no_more_turns_are_gathered_than_may_be_held():
    one, other = met()
    counted = after(("p0", 1), [1, 2], 600, Counted(), 0.0, 0.0)
    for session in range(1, MAX_GATHERED + 9):
        one.teller.turned(session, counted)
    one.tell(other)
    assert len(other.router.sessions) == MAX_GATHERED


turns = st.builds(
    Turn,
    pod=st.tuples(st.sampled_from("abcd"), st.integers(0, 1)),
    tip=st.integers(1, 5),
    blocks=st.integers(0, 3),
    size=st.integers(0, 4_000),
    answer=st.integers(0, 4_000),
    at=st.just(0.0),
    meter=st.floats(0, 1e6),
)


@given(st.lists(st.tuples(st.integers(1, 12), turns, st.floats(0, 60)), max_size=60))
def test_sessions_are_bounded_in_number_and_age_and_the_newest_turns_stay(steps):
    sessions, now, last = Sessions(most=5, age_s=100.0), 0.0, {}
    for session, found, passed in steps:
        now += passed
        made = Turn(*(getattr(found, name) if name != "at" else now for name in found.__struct_fields__))
        sessions.put(session, made)
        last.pop(session, None)
        last[session] = made
        assert len(sessions) <= 5
        held = sessions.of(session, now)
        assert held[0] == made
        assert len({one.pod for one in held}) == len(held) <= 2
        assert list(sessions.pods(session)) == [one.pod[0] for one in held]
        for old in list(last)[:-5]:
            assert sessions.of(old, now) == ()
        for known, turned in last.items():
            assert not sessions.of(known, now) or sessions.of(known, now)[0].at >= now - 100.0
            if known in list(last)[-5:] and turned.at >= now - 100.0:
                assert sessions.of(known, now)[0] == turned


@given(turns, st.lists(st.integers(1, 5), max_size=4))
def test_a_prompt_goes_on_from_a_turn_where_it_has_its_last_hash_in_its_place(found, hashes):
    assert found.begins(hashes) == (found.blocks > 0 and hashes[found.blocks - 1 : found.blocks] == [found.tip])
    assert found.left(answer=True) >= found.left(answer=False)
