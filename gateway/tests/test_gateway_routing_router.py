"""The router's memory: what was sent where counts, what came of it corrects, what is gone is forgotten."""

import msgspec
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.prefix import chain, seed
from sheaf_gateway.routing.router import Ask, Capacity, Router


def pod(name: str, **more) -> Pod:
    return Pod(name=name, model="m", engine_url="http://127.0.0.1:1", agent_url="http://127.0.0.1:2", **more)


def ask(text: bytes = b"", request_id: str = "r", **more) -> Ask:
    hashes = chain(seed("m", more.get("adapter"), "", ""), text)
    return Ask(request_id=request_id, model="m", chain=hashes, prompt_bytes=len(text), **more)


PODS = [pod("p0"), pod("p1")]


def send(router: Router, asked: Ask, pods=PODS, now: float = 0.0, tried: frozenset = frozenset()):
    decision = router.decide(asked, pods, now, tried)
    chosen = next(found for found in pods if found.name == decision.pod)
    return decision, router.sent(asked, decision, chosen, now)


def taught(router: Router) -> tuple[float, ...]:
    """What prefill costs, as far as it is known."""
    price = router.model("m").coefficients
    return price.base_ms, price.prefill_ms_per_token, price.attention_ms_per_pair


def test_requests_under_way_push_the_next_one_elsewhere():
    router = Router()
    first, _ = send(router, ask(b"a" * 4000))
    second, _ = send(router, ask(b"b" * 4000))
    assert {first.pod, second.pod} == {"p0", "p1"}


def test_a_prefix_draws_a_request_until_the_queue_there_costs_more():
    router = Router()
    text = b"shared" * 1000
    first, ticket = send(router, ask(text))
    router.answered(ticket, 0.1, streamed=True)
    router.finished(ticket)
    assert send(router, ask(text, request_id="again"))[0].pod == first.pod
    for _ in range(20):
        router.ledger(first.pod).pending_tokens += 500
    assert send(router, ask(text, request_id="later"))[0].pod != first.pod


def test_residency_of_the_adapter_decides_between_equal_pods():
    router = Router()
    pods = [pod("p0"), pod("p1", loading=frozenset({"a"})), pod("p2", resident={"a": "d"})]
    asked = ask(adapter="a", digest="d")
    assert router.decide(asked, pods, 0.0).pod == "p2"
    assert router.decide(asked, pods[:2], 0.0).pod == "p1"
    assert router.decide(ask(adapter="a", digest="other"), pods, 0.0).pod == "p1"


def test_a_finished_request_leaves_no_trace_in_the_ledger():
    router = Router()
    _, ticket = send(router, ask(b"x" * 800))
    ledger = router.ledger(ticket.pod)
    assert (ledger.running, ledger.pending_tokens) == (1, 200.0)
    router.answered(ticket, 0.1, streamed=False)
    assert ledger.pending_tokens == 0.0
    router.finished(ticket)
    assert (ledger.running, ledger.pending_tokens) == (0, 0.0)


def test_streamed_answers_teach_and_others_do_not():
    router = Router()
    prior = taught(router)
    _, ticket = send(router, ask(b"x" * 800))
    router.answered(ticket, 5.0, streamed=False)
    assert taught(router) == prior
    _, ticket = send(router, ask(b"x" * 800), now=5.0)
    router.answered(ticket, 10.0, streamed=True)
    assert router.model("m").coefficients.base_ms > prior[0]


def test_failures_open_a_pods_breaker_and_a_gone_client_does_not():
    router = Router()
    for _ in range(20):
        _, ticket = send(router, ask(), PODS[:1])
        router.abandoned(ticket, 0.0)
        router.finished(ticket)
    for _ in range(5):
        _, ticket = send(router, ask(), PODS[:1])
        router.failed(ticket, 0.0)
        router.finished(ticket)
    assert {router.decide(ask(request_id=str(n)), PODS, 0.0).pod for n in range(20)} == {"p1"}


def test_pods_that_are_not_ready_draining_or_tried_are_left_out():
    router = Router()
    pods = [pod("p0", ready=False), pod("p1", draining=True), pod("p2"), pod("p3")]
    assert router.decide(ask(), pods, 0.0, frozenset({"p2"})).pod == "p3"
    assert router.decide(ask(), pods, 0.0, frozenset({"p2", "p3"})).pod == "p1"
    assert router.decide(ask(), pods[:1], 0.0).pod is None


def test_other_gateways_load_counts():
    router = Router()
    busy = [pod("p0", foreign_running=4, foreign_waiting=2, kv_usage=0.99), pod("p1")]
    assert {router.decide(ask(request_id=str(n)), busy, 0.0).pod for n in range(10)} == {"p1"}


def test_what_is_gone_is_forgotten_but_not_what_is_still_under_way():
    router = Router()
    _, ticket = send(router, ask(b"x" * 800), [pod("old")])
    router.ledger("idle")
    router.keep([pod("new")])
    assert set(router.ledgers) == {"old"}
    assert set(router.models) == {"m"}
    router.finished(ticket)
    router.keep([msgspec.structs.replace(pod("new"), model="other")])
    assert router.ledgers == {}
    assert router.models == {}


def test_a_decision_without_a_pod_in_it_still_accounts_for_the_attempt():
    router = Router()
    nothing = router.decide(ask(b"x" * 400), [], 0.0)
    ticket = router.sent(ask(b"x" * 400), nothing, pod("p0"), 0.0)
    assert ticket.tokens == 100.0


def test_a_request_goes_where_its_adapter_already_has_a_slot_when_slots_are_few():
    router = Router()
    router.capacities["m"] = Capacity(slots=1)
    first, _ = send(router, ask(adapter="a"))
    other, _ = send(router, ask(adapter="b"))
    assert first.pod != other.pod
    assert send(router, ask(adapter="a", request_id="again"))[0].pod == first.pod
    assert send(router, ask(adapter="b", request_id="again"))[0].pod == other.pod


def test_a_slot_is_free_again_when_the_last_request_of_its_adapter_is_over():
    router = Router()
    router.capacities["m"] = Capacity(slots=1)
    tickets = [send(router, ask(adapter="a"), PODS[:1])[1] for _ in range(2)]
    assert router.ledger("p0").slots_short("b", 1) == 1
    router.finished(tickets[0])
    assert router.ledger("p0").slots_short("b", 1) == 1
    router.finished(tickets[1])
    assert router.ledger("p0").slots_short("b", 1) == 0


def test_a_wait_for_a_slot_teaches_nothing_about_prefill():
    router = Router()
    router.capacities["m"] = Capacity(slots=1)
    send(router, ask(adapter="a"), PODS[:1])
    prior = taught(router)
    _, ticket = send(router, ask(adapter="b"), PODS[:1])
    router.answered(ticket, 9.0, streamed=True)
    assert taught(router) == prior


def test_a_pod_whose_cache_is_full_of_running_prompts_is_avoided():
    router = Router()
    router.capacities["m"] = Capacity(kv_tokens=1_100)
    first, ticket = send(router, ask(b"x" * 4_000))
    router.answered(ticket, 0.1, streamed=True)
    assert {send(router, ask(b"y" * 4_000, request_id=str(n)))[0].pod for n in range(1)} == {"p0", "p1"} - {first.pod}


def test_work_that_must_be_done_by_now_is_no_longer_ahead():
    router = Router()
    send(router, ask(b"x" * 40_000), PODS[:1], now=0.0)
    price = router.model("m").coefficients
    ledger = router.ledger("p0")
    assert ledger.ahead(0.0, price).tokens == 10_000.0
    assert ledger.ahead(1.0, price).tokens == 5_000.0
    assert ledger.ahead(60.0, price).tokens > 0.0


def test_the_end_of_the_first_in_the_queue_starts_the_time_of_the_next():
    router = Router()
    _, first = send(router, ask(b"x" * 4_000), PODS[:1], now=0.0)
    _, second = send(router, ask(b"y" * 4_000), PODS[:1], now=0.0)
    _, third = send(router, ask(b"z" * 4_000), PODS[:1], now=0.0)
    router.answered(second, 0.2, streamed=True)
    assert router.ledger("p0").since == 0.0
    router.answered(first, 0.4, streamed=True)
    assert router.ledger("p0").since == 0.4
    for ticket in (first, second, third):
        router.finished(ticket)
    assert (router.ledger("p0").queued, router.ledger("p0").held_tokens) == ({}, 0.0)
