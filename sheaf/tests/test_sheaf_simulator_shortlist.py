"""Whoever the Router would choose among all pods is on the short list, and chosen from it."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.simulator.calls import Call
from sheaf.simulator.market import Market, Zone
from sheaf.simulator.policies.product import TALKATIVE, Product
from sheaf.simulator.policies.shortlist import Shortlist, WatchedIndex
from sheaf.simulator.world import Setting, World
from sheaf_crds import Adapter, Model
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.cost import Coefficients, CostModel
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.router import Ask, Capacity, Router

SPOT = {"lora": {"slots": 2, "maxRank": 16}, "spot": {"policy": "Preferred", "onDemandFloor": 1}}
SIZES = st.integers(1, 9000)
CHAINS = st.lists(st.integers(0, 2), max_size=6).map(
    lambda names: [hash((*names[: place + 1],)) for place in range(len(names))]
)
REQUEST = st.tuples(CHAINS, st.sampled_from(["", "", "gold"]), st.sampled_from([None, None, "ada", "bob"]), SIZES)
PRICE = st.builds(
    Coefficients,
    base_ms=st.floats(0.1, 50.0),
    prefill_ms_per_token=st.floats(0.001, 1.0),
    attention_ms_per_pair=st.sampled_from([0.0, 1e-6]),
    silence_per_ms=st.just(0.0),
)
POD = st.tuples(
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([0.1, 0.95]),
    st.sets(st.sampled_from(["ada", "bob"])),
    st.sampled_from([False] * 9 + [True]),
)
FATES = st.sampled_from(["waits", "answered", "over", "over", "failed"])
CAPACITY = st.sampled_from([Capacity(), Capacity(slots=2, kv_tokens=6000), Capacity(slots=1, kv_tokens=100_000)])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(POD, min_size=1, max_size=9),
    st.lists(st.tuples(REQUEST, st.integers(0, 8), FATES), max_size=15),
    st.lists(st.tuples(REQUEST, FATES, st.integers(0, 8), POD), min_size=1, max_size=8),
    PRICE,
    CAPACITY,
)
def test_the_choice_from_the_list_is_the_choice_from_all(pods, past, asked, price, capacity):
    router, index = Router(prior=TALKATIVE), WatchedIndex()
    router.index, router.capacities["m"], router.models["m"] = index, capacity, CostModel(price)
    views = [_pod(place, *pod) for place, pod in enumerate(pods)]
    index.watch(view.name for view in views[::2])
    for number, (request, place, fate) in enumerate(past):
        _happens(router, views[place % len(views)], _ask(f"before-{number}", *request), fate, 1.0)
    index.watch(view.name for view in views)
    found = Shortlist(index, capacity)
    for view in views:
        found.put(view, router.ledger(view.name))
    for number, (request, fate, reports, report) in enumerate(asked):
        ask, now = _ask(f"now-{number}", *request), 5.0 + number * 0.01
        whole = router.decide(ask, tuple(views), now)
        names = found.names(ask, router.model("m").coefficients, now)
        if names is not None:
            few = router.decide(ask, [view for view in views if view.name in names], now)
            assert (few.pod, few.cached_bytes) == (whole.pod, whole.cached_bytes)
        chosen = next((view for view in views if view.name == whole.pod), views[0])
        _happens(router, chosen, ask, fate, now)
        place = reports % len(views)
        views[place] = _pod(place, *report)
        for view in (chosen, views[place]):
            found.put(views[int(view.name[4:])], router.ledger(view.name))


def test_of_many_equal_pods_one_is_listed():
    router, index = Router(prior=TALKATIVE), WatchedIndex()
    views = tuple(_pod(place, 0, 0, 0.0, set()) for place in range(500))
    found = Shortlist(index, Capacity())
    for view in views:
        found.put(view, router.ledger(view.name))
    ask = _ask("one", [1, 2], "", None, 900)
    assert found.names(ask, router.model("m").coefficients, 0.0) == [router.decide(ask, views, 0.0).pod]


def test_a_pod_that_left_still_holds_blocks_and_is_not_listed():
    router, index = Router(prior=TALKATIVE), WatchedIndex()
    left, here = _pod(0, 0, 0, 0.0, set()), _pod(1, 5, 0, 0.0, set())
    index.watch([left.name, here.name])
    ask = _ask("one", [1, 2], "", None, 900)
    index.record(ask.chain, (left.name, 0))
    found = Shortlist(index, Capacity())
    found.put(here, router.ledger(here.name))
    assert found.names(ask, TALKATIVE, 0.0) == [here.name]


def test_where_a_breaker_is_open_only_all_pods_tell():
    router, index = Router(prior=TALKATIVE), WatchedIndex()
    view, ask = _pod(0, 0, 0, 0.0, set()), _ask("one", [], "", None, 9)
    for _ in range(5):
        router.failed(router.sent(ask, router.decide(ask, (view,), 0.0), view, 0.0), 0.0)
    found = Shortlist(index, Capacity())
    found.put(view, router.ledger(view.name))
    assert found.names(ask, router.model("m").coefficients, 0.0) is None


def test_a_prompt_as_large_as_the_cache_is_weighed_on_all():
    found = Shortlist(WatchedIndex(), Capacity(kv_tokens=100))
    found.put(_pod(0, 0, 0, 0.0, set()), Router().ledger("pod-0"))
    assert found.names(_ask("one", [], "", None, 1000), TALKATIVE, 0.0) is None


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


@pytest.mark.parametrize(("taken", "named"), [(0.0, False), (20.0, False), (20.0, True)])
def test_a_run_is_the_same_whether_routing_is_shown_all_pods_or_the_few_that_could_be_chosen(taken, named):
    found = []
    for many in (2, 1000):
        model = _declared(Model, "m", source="hf://a/b", accelerators=[{"type": "nvidia-l4"}], replicas=6, **SPOT)
        adapters = [_declared(Adapter, name, modelRef={"name": "m"}, source="s3://x") for name in ("ada", "bob", "cyd")]
        market = Market((Zone("z", 10.0, (6, 6, 6, 6, 2, 6, 6)),), notice_s=taken)
        world = World([model, *adapters], Product(1, many=many), Setting(market=market, cold_start_s=10.0))
        result = world.run(_calls(400, named=named))
        assert result.bill.preemptions
        assert len(result.outcome.ttft) > 300
        found.append((list(result.outcome.ttft), list(result.outcome.tpot), list(result.outcome.cached)))
    assert found[0] == found[1]


def _declared(kind: Any, name: str, **spec: Any) -> Any:
    return kind.model_validate({"metadata": {"name": name, "uid": name, "generation": 1}, "spec": spec})


def _calls(count: int, *, named: bool = False) -> list[Call]:
    """Requests on their own, or turns of forty conversations whose callers name them."""
    draw, at, found = random.Random(3), 0.0, []
    said: dict[int, tuple[tuple[int, int], ...]] = {}
    for number in range(count):
        at += draw.expovariate(20.0)
        segments: tuple[tuple[int, int], ...] = ((draw.randrange(9), 256), (100 + number, draw.randrange(1, 1500)))
        session = number % 40 if named else number
        if session in said:
            segments = (*said[session], (100 + number, draw.randrange(1, 200)))
        said[session] = segments
        tokens, adapter = sum(length for _, length in segments), (None, "ada", "bob", "cyd")[session % 4]
        call = Call(at, "m", segments, tokens, draw.randrange(1, 80), adapter, f"t{session % 3}", session, named)
        found.append(call)
    return found


def _pod(place: int, running: int, waiting: int, usage: float, resident: Any, draining: bool = False) -> Pod:
    return Pod(
        name=f"pod-{place}",
        model="m",
        engine_url="http://engine",
        agent_url="http://agent",
        resident=dict.fromkeys(sorted(resident), ""),
        foreign_running=running,
        foreign_waiting=waiting,
        kv_usage=usage,
        draining=draining,
    )


def _ask(name: str, chain: list[int], salt: str, adapter: str | None, size: int) -> Ask:
    own = [hash((salt, adapter, block)) for block in chain]
    return Ask(request_id=name, model="m", adapter=adapter, chain=own, prompt_bytes=max(size, 256 * len(chain)))


def _happens(router: Router, view: Pod, ask: Ask, fate: str, now: float) -> None:
    """A request goes to a pod; its answer begins or not, it is over or not, and it failed or not."""
    ticket = router.sent(ask, router.decide(ask, (view,), now), view, now)
    if fate == "failed":
        for _ in range(3):
            router.failed(ticket, now)
    elif fate != "waits":
        router.answered(ticket, now + 1.0, streamed=True)
    if fate in {"over", "failed"}:
        router.finished(ticket)
