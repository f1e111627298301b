"""The quick way to a decision is the thorough one, whatever the pods, the ledgers and the caches are like."""

from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.choose import choose, explain
from sheaf_gateway.routing.router import Ask, Capacity, Router
from sheaf_gateway.routing.weigh import Group

NAMES = ["p0", "p1", "p2", "p3"]
CHAINS = [[], [1, 2, 3, 4], [1, 2, 9], [7, 8]]

views = st.builds(
    Pod,
    name=st.just(""),
    model=st.just("m"),
    engine_url=st.just("http://e"),
    agent_url=st.sampled_from(["", "http://a"]),
    ready=st.booleans() | st.just(True),
    draining=st.just(False),
    resident=st.sampled_from([{}, {"a": ""}, {"a": "d", "b": ""}]),
    loading=st.sampled_from([frozenset(), frozenset({"a"})]),
    foreign_running=st.integers(0, 3),
    foreign_waiting=st.integers(0, 3),
    kv_usage=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
asks = st.tuples(st.sampled_from(CHAINS), st.integers(0, 400), st.sampled_from([None, "a", "b"]))
steps = st.lists(st.tuples(asks, st.sampled_from(["none", "answer", "finish", "fail"])), min_size=1, max_size=25)


def thoroughly(router, ask, pods, now):
    """The decision by the cost model's own words, pod by pod."""
    group = Group(pods, router.ledger, router.index.history)
    found = router.facts(ask, group, router.index.match(ask.chain, group.keys), now)
    return choose(found, router.model(ask.model).coefficients, ask.request_id)


def whole(decision):
    """All that a decision says, however it holds it."""
    said = decision.candidates, explain(decision)
    return decision.pod, decision.mode, decision.facts, decision.price, decision.place, *said


@given(
    st.lists(views, min_size=1, max_size=4),
    steps,
    st.sampled_from([(0, 0), (1, 300), (2, 10_000)]),
    st.sampled_from([0.05, 0.05, 1.5]),
)
def test_the_decision_and_all_that_explains_it_are_the_same_to_the_last_bit(found, history, capacity, period):
    pods = tuple(
        Pod(**{name: getattr(pod, name) for name in pod.__struct_fields__ if name != "name"}, name=NAMES[place])
        for place, pod in enumerate(found)
    )
    router = Router()
    if capacity[0]:
        router.capacities["m"] = Capacity(slots=capacity[0], kv_tokens=capacity[1])
    for number, ((chain, blocks, adapter), outcome) in enumerate(history):
        now = number * period
        ask = Ask(request_id=str(number), model="m", adapter=adapter, chain=chain, prompt_bytes=blocks * 97)
        quick = router.decide(ask, pods, now)
        assert whole(quick) == whole(thoroughly(router, ask, pods, now))
        if quick.pod is None:
            continue
        assert quick.cached_bytes == quick.chosen().cached_bytes
        assert quick.chosen() in quick.candidates
        if quick.mode == "Normal":
            assert quick.chosen().terms.total == min(c.terms.total for c in quick.candidates if c.standing == "Healthy")
        ticket = router.sent(ask, quick, pods[NAMES.index(quick.pod)], now)
        if outcome == "fail":
            router.failed(ticket, now)
        if outcome != "none":
            router.answered(ticket, now + 0.02, streamed=True)
        if outcome in ("finish", "fail"):
            router.finished(ticket)


def test_a_decision_holds_nothing_of_the_fleet_that_it_was_made_in():
    pods = tuple(Pod(name=name, model="m", engine_url="http://e") for name in NAMES)
    router = Router()
    decision = router.decide(Ask(request_id="1", model="m", prompt_bytes=100), pods, 0.0)
    before = decision.told()
    router.sent(Ask(request_id="2", model="m", prompt_bytes=9_000), decision, pods[0], 0.0)
    assert decision.told() == before


def test_other_pods_are_seen_at_once():
    pods = tuple(Pod(name=name, model="m", engine_url="http://e") for name in NAMES)
    router, ask = Router(), Ask(request_id="1", model="m", prompt_bytes=100)
    router.decide(ask, pods, 0.0)
    assert router.decide(ask, pods[2:3], 0.0).pod == "p2"
    router.keep(pods[:1])
    assert {candidate.pod for candidate in router.decide(ask, pods, 0.0).candidates} == set(NAMES)
