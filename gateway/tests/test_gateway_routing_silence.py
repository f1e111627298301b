"""A pod that says nothing for longer than its work explains becomes dearer by the moment, and cheap at its first word."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.choose import explain
from sheaf_gateway.routing.cost import Coefficients, CostModel, pairs
from sheaf_gateway.routing.ledger import PodLedger
from sheaf_gateway.routing.router import Ask, Router
from sheaf_gateway.routing.silence import granted_ms, overdue_ms

PODS = tuple(Pod(name=f"p{place}", model="m", engine_url="http://e") for place in range(4))
SHARED = list(range(1, 61))
SPEEDS = [(4e-5, 1.8e-9), (2.7e-4, 1e-8), (2e-4, 3.7e-9), (1.2e-3, 1e-7)]
amounts = st.floats(0, 1e6)
moments = st.floats(0, 1000)
prices = st.builds(Coefficients, prefill_ms_per_token=st.floats(0.001, 1), attention_ms_per_pair=st.floats(0, 1e-4))


def ask(number: object, chain: list[int] = SHARED, size: int = 60 * 256 + 40, **more) -> Ask:
    return Ask(request_id=str(number), model="m", chain=chain, prompt_bytes=size, **more)


def send(router: Router, asked: Ask, now: float, pods=PODS):
    decision = router.decide(asked, pods, now)
    return router.sent(asked, decision, pods[decision.place], now)


def holder(router: Router, now: float) -> str:
    """The pod that holds the shared prompt, every word of which came in time."""
    ticket = send(router, ask("first"), now)
    router.answered(ticket, now + 0.5, streamed=True)
    router.finished(ticket)
    return ticket.pod


def silence(router: Router, pod: str, now: float) -> float:
    found = router.decide(ask("look"), PODS, now).candidates
    return next(candidate.terms.silence for candidate in found if candidate.pod == pod)


@given(amounts, amounts, st.integers(0, 3), moments, moments, moments, prices)
def test_a_silent_pod_never_becomes_cheaper_with_time_nor_dearer_with_more_to_compute(
    count, met, awaited, heard, early, later, price
):
    ledger = PodLedger(pending_tokens=count, pending_pairs=met, awaited=awaited, streams=awaited, heard_at=heard)
    less = PodLedger(pending_tokens=count / 2, pending_pairs=met / 2, awaited=awaited, streams=awaited, heard_at=heard)
    first, last = sorted((early, later))
    assert 0.0 <= overdue_ms(ledger, first, price) <= overdue_ms(ledger, last, price)
    assert overdue_ms(ledger, first, price) <= overdue_ms(less, first, price)
    assert overdue_ms(ledger, heard, price) == 0.0
    assert overdue_ms(ledger, first, price) == 0.0 or awaited


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40_000), st.floats(0, 0.99), st.booleans()), min_size=1, max_size=12
    )
)
def test_pods_that_answer_in_time_cost_what_they_would_if_nobody_counted_silence(history):
    counting, deaf = Router(), Router(prior=Coefficients(silence_per_ms=0.0))
    now = 0.0
    for number, (kind, size, share, streams) in enumerate(history):
        asked = ask(number, [kind], size, streams=streams)
        assert counting.decide(asked, PODS, now).candidates == deaf.decide(asked, PODS, now).candidates
        one, other = send(counting, asked, now), send(deaf, asked, now)
        assert one.pod == other.pod
        price = counting.model("m").coefficients
        now += share * (granted_ms(one.tokens, one.pairs, price) + price.patience_ms) / 1000.0
        looked = ask(f"look-{number}", [kind], size)
        assert counting.decide(looked, PODS, now).candidates == deaf.decide(looked, PODS, now).candidates
        for router, ticket in ((counting, one), (deaf, other)):
            router.answered(ticket, now, streamed=streams)
            router.finished(ticket)


def test_a_hanging_pod_that_holds_a_shared_prefix_is_left_soon_and_comes_back_at_its_first_word():
    router = Router()
    pod = holder(router, 0.0)
    sent = [send(router, ask(number), 10.0 + 0.02 * number) for number in range(400)]
    hung = [ticket for ticket in sent if ticket.pod == pod]
    for ticket in sent:
        if ticket.pod != pod:
            router.finished(ticket)
    assert len(hung) < 120
    assert max(ticket.sent_at for ticket in hung) < 12.5
    assert silence(router, pod, 18.0) > 10_000.0
    router.heard(hung[0], 18.0)
    assert silence(router, pod, 18.0) == 0.0
    for ticket in hung:
        router.finished(ticket)
    assert router.ledger(pod).awaited == router.ledger(pod).streams == 0
    assert silence(router, pod, 500.0) == 0.0


def test_a_pod_is_left_as_soon_as_others_taught_what_silence_is_usual():
    router = Router()
    for number in range(60):
        ticket = send(router, ask(number, [number], 400), float(number))
        router.answered(ticket, number + 0.03, streamed=True)
        router.finished(ticket)
    assert router.model("m").coefficients.patience_ms == 250.0
    pod = holder(router, 100.0)
    sent = [send(router, ask(f"then-{number}"), 110.0 + 0.02 * number) for number in range(200)]
    assert sum(ticket.pod == pod for ticket in sent) < 40


def test_the_silence_is_in_the_decision_and_in_its_explanation():
    router = Router()
    ticket = send(router, ask("hangs"), 0.0)
    decision = router.decide(ask("next"), PODS[PODS.index(next(p for p in PODS if p.name == ticket.pod)) :][:1], 9.0)
    terms = decision.chosen().terms
    assert terms.silence > 10_000.0
    assert terms.total == terms.queue + terms.prefill + terms.adapter + terms.harm + terms.silence
    assert f"+ silence {terms.silence:.1f}; cached" in explain(decision)
    assert "silence" not in explain(router.decide(ask("next"), PODS, 0.0))


@pytest.mark.parametrize(("token_s", "pair_s"), SPEEDS)
def test_the_silent_prefill_of_a_long_prompt_is_no_hang_even_where_only_short_ones_were_seen(token_s, pair_s):
    router = Router()
    for number in range(200):
        ticket = send(router, ask(number, [10_000 + number], 400 + number % 20 * 400), float(number))
        took = 0.01 + ticket.tokens * token_s + ticket.pairs * pair_s
        router.answered(ticket, number + took, streamed=True)
        router.finished(ticket)
    long = send(router, ask("long", [1], 400_000), 1000.0)
    took = 100_000 * token_s + pairs(100_000, 0) * pair_s
    assert silence(router, long.pod, 1000.0 + took) == 0.0
    assert silence(router, long.pod, 1000.0 + 20 * took + 30.0) > 0.0


def test_a_prompt_that_was_given_up_still_explains_the_silence_that_it_made():
    router, pods = Router(), PODS[:1]
    long, short = send(router, ask("long", [1], 400_000), 0.0, pods), send(router, ask("short", [2], 400), 1.0, pods)
    router.abandoned(long, 20.0)
    router.finished(long)
    assert silence(router, short.pod, 20.0) == 0.0


def test_a_stream_whose_client_does_not_read_is_not_waited_for():
    router, pods = Router(), PODS[:1]
    ticket = send(router, ask("slow"), 0.0, pods)
    router.answered(ticket, 0.1, streamed=True)
    for _ in range(2):
        router.stopped(ticket, 0.2, on=True)
    assert silence(router, "p0", 60.0) == 0.0
    router.stopped(ticket, 60.0, on=False)
    assert silence(router, "p0", 60.1) == 0.0
    assert silence(router, "p0", 70.0) > 0.0
    router.stopped(ticket, 70.0, on=True)
    router.finished(ticket)
    assert router.ledger("p0").awaited == router.ledger("p0").streams == 0


def test_whole_answers_are_waited_for_longer_than_streams_and_as_long_as_they_take():
    router, pods = Router(), PODS[:1]
    for number in range(100):
        ticket = send(router, ask(number, [number], 400, streams=False), 100.0 * number, pods)
        router.answered(ticket, 100.0 * number + 12.0, streamed=False)
        router.finished(ticket)
    send(router, ask("next", [7], 400, streams=False), 20_000.0, pods)
    assert silence(router, "p0", 20_012.0) == 0.0
    assert silence(router, "p0", 20_060.0) > 0.0
    price = router.model("m").coefficients
    assert (price.patience_ms, price.whole_patience_ms > 11_000.0) == (1000.0, True)


def test_long_whole_answers_are_remembered_though_they_are_rare():
    model = CostModel()
    for number in range(400):
        model.observe_silence(20_000.0 if number % 100 == 99 else 0.0, streams=False)
    assert model.coefficients.whole_patience_ms >= 15_000.0
    for _ in range(20_000):
        model.observe_silence(0.0, streams=False)
    assert model.coefficients.whole_patience_ms == Coefficients().whole_patience_ms


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.booleans()), max_size=60))
def test_patience_stays_within_its_bounds_whatever_is_seen(seen):
    model = CostModel()
    for late, streams in seen:
        model.observe_silence(late, streams=streams)
        now = model.coefficients
        assert 250.0 <= now.patience_ms <= 30_000.0
        assert Coefficients().whole_patience_ms <= now.whole_patience_ms <= 30_000.0
    assert msgspec.structs.replace(now if seen else Coefficients(), patience_ms=1.0, whole_patience_ms=1.0)


def test_what_other_gateways_hear_of_a_pod_is_a_word_of_it_too():
    router, pods = Router(), PODS[:1]
    send(router, ask("hangs"), 0.0, pods)
    told = msgspec.structs.replace(send(Router(), ask("told"), 5.0, pods), ledger=None)
    router.join(told, [], 5.0, exact=False)
    assert silence(router, "p0", 6.0) > 0.0
    router.move_on(told, 6.0)
    assert silence(router, "p0", 6.0) == 0.0
    router.part(told)
    assert router.ledger("p0").awaited == 1
