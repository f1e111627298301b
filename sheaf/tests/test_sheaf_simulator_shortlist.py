"""Whoever the Router would choose among all pods is on the short list, and chosen from it."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.simulator.policies.shortlist import Shortlist, WatchedIndex
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.cost import Coefficients, CostModel
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.router import Ask, Capacity, Router

CHAINS = st.lists(st.integers(0, 2), max_size=6).map(
    lambda names: [hash((*names[: place + 1],)) for place in range(len(names))]
)
REQUEST = st.tuples(CHAINS, st.sampled_from([None, None, "ada", "bob"]), st.integers(1, 9000))
PRICE = st.builds(
    Coefficients,
    base_ms=st.floats(0.1, 50.0),
    prefill_ms_per_token=st.floats(0.001, 1.0),
    attention_ms_per_pair=st.sampled_from([0.0, 1e-6]),
)
POD = st.tuples(
    st.integers(0, 3), st.integers(0, 2), st.sampled_from([0.1, 0.95]), st.sets(st.sampled_from(["ada", "bob"]))
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(POD, min_size=1, max_size=9),
    st.lists(st.tuples(REQUEST, st.integers(0, 8), st.integers(0, 3)), max_size=25),
    st.lists(REQUEST, min_size=1, max_size=6),
    PRICE,
    st.sampled_from([Capacity(), Capacity(slots=2, kv_tokens=6000), Capacity(slots=1, kv_tokens=100_000)]),
)
def test_the_choice_from_the_list_is_the_choice_from_all(pods, past, asked, price, capacity):
    router, index = Router(), WatchedIndex()
    router.index, router.capacities["m"], router.models["m"] = index, capacity, CostModel(price)
    views = tuple(_pod(place, *pod) for place, pod in enumerate(pods))
    index.watch(view.name for view in views[::2])
    for number, (request, place, fate) in enumerate(past):
        _happens(router, views, _ask(f"before-{number}", *request), place % len(views), fate)
    index.watch(view.name for view in views)
    found = Shortlist(index, capacity)
    for view in views:
        found.put(view, router.ledger(view.name))
    prices = router.model("m").coefficients
    for number, request in enumerate(asked):
        ask = _ask(f"now-{number}", *request)
        whole = router.decide(ask, views, 5.0)
        names = found.names(ask, prices, 5.0)
        if names is None:
            continue
        few = router.decide(ask, [view for view in views if view.name in names], 5.0)
        assert (few.pod, few.cached_bytes) == (whole.pod, whole.cached_bytes)
        chosen = next(view for view in views if view.name == whole.pod)
        router.sent(ask, whole, chosen, 5.0)
        found.put(chosen, router.ledger(chosen.name))


def test_of_many_equal_pods_one_is_listed():
    router, index = Router(), WatchedIndex()
    views = tuple(_pod(place, 0, 0, 0.0, set()) for place in range(500))
    found = Shortlist(index, Capacity())
    for view in views:
        found.put(view, router.ledger(view.name))
    ask = _ask("one", [1, 2], None, 900)
    assert found.names(ask, router.model("m").coefficients, 0.0) == [router.decide(ask, views, 0.0).pod]


def test_a_pod_that_left_still_holds_blocks_and_is_not_listed():
    router, index = Router(), WatchedIndex()
    left, here = _pod(0, 0, 0, 0.0, set()), _pod(1, 5, 0, 0.0, set())
    index.watch([left.name, here.name])
    index.record([1, 2], (left.name, 0))
    found = Shortlist(index, Capacity())
    found.put(here, router.ledger(here.name))
    assert found.names(_ask("one", [1, 2], None, 900), Coefficients(), 0.0) == [here.name]


def test_where_a_breaker_is_open_only_all_pods_tell():
    router, index = Router(), WatchedIndex()
    view, ask = _pod(0, 0, 0, 0.0, set()), _ask("one", [], None, 9)
    for _ in range(5):
        router.failed(router.sent(ask, router.decide(ask, (view,), 0.0), view, 0.0), 0.0)
    found = Shortlist(index, Capacity())
    found.put(view, router.ledger(view.name))
    assert found.names(ask, router.model("m").coefficients, 0.0) is None


def test_a_prompt_as_large_as_the_cache_is_weighed_on_all():
    found = Shortlist(WatchedIndex(), Capacity(kv_tokens=100))
    found.put(_pod(0, 0, 0, 0.0, set()), Router().ledger("pod-0"))
    assert found.names(_ask("one", [], None, 1000), Coefficients(), 0.0) is None


def test_the_index_knows_who_holds_what_after_evictions_and_losses():
    index = WatchedIndex()
    index.watch(["a", "b"])
    index.record([1, 2, 3], ("a", 0))
    index.record([1, 2], ("b", 0), room=2)
    assert index.holding([1, 2, 3, 4]) == [(3, {"a"}), (2, {"a", "b"})]
    index.record([7], ("b", 0), room=2)
    assert index.holding([1, 2, 3]) == [(3, {"a"}), (1, {"a", "b"})]
    index.keep([("b", 0)])
    assert index.holding([1, 2, 3]) == [(1, {"b"})]


@given(st.lists(st.tuples(st.integers(0, 5), CHAINS), max_size=60), st.integers(1, 12), st.integers(0, 59))
def test_a_full_index_forgets_what_the_gateways_own_does(sent, most, when):
    plain, watched = PrefixIndex(most), WatchedIndex(most)
    watched.watch(["pod-0", "pod-3"])
    plain.record([], ("pod-0", 0))
    plain.record([], ("pod-3", 0))
    for number, (place, chain) in enumerate(sent):
        for index in (plain, watched):
            index.record(chain, (f"pod-{place}", 0))
            if number == when:
                index.keep([(f"pod-{name}", 0) for name in range(4)])
        assert {pod: list(held) for pod, held in plain._pods.items()} == {
            pod: list(held) for pod, held in watched._pods.items()
        }


def _pod(place: int, running: int, waiting: int, usage: float, resident: Any) -> Pod:
    return Pod(
        name=f"pod-{place}",
        model="m",
        engine_url="http://engine",
        agent_url="http://agent",
        resident=dict.fromkeys(sorted(resident), ""),
        foreign_running=running,
        foreign_waiting=waiting,
        kv_usage=usage,
    )


def _ask(name: str, chain: list[int], adapter: str | None, size: int) -> Ask:
    return Ask(request_id=name, model="m", adapter=adapter, chain=chain, prompt_bytes=max(size, 256 * len(chain)))


def _happens(router: Router, views: tuple[Pod, ...], ask: Ask, place: int, fate: int) -> None:
    """A request goes to a pod; its answer begins or not, it is over or not, and it failed or not."""
    ticket = router.sent(ask, router.decide(ask, views[place : place + 1], 1.0), views[place], 1.0)
    if fate:
        router.answered(ticket, 2.0, streamed=True)
    if fate > 1:
        router.finished(ticket)
