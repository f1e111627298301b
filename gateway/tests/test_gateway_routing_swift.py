"""The swift choice is the router's own, whatever the pods, the ledgers and the caches are like."""

from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.router import Ask, Capacity, Router
from sheaf_gateway.routing.swift import pick

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


@given(st.lists(views, min_size=1, max_size=4), steps, st.sampled_from([(0, 0), (1, 300), (2, 10_000)]))
def test_the_pod_and_what_it_is_credited_with_are_the_same(found, history, capacity):
    pods = [
        Pod(**{name: getattr(pod, name) for name in pod.__struct_fields__ if name != "name"}, name=NAMES[place])
        for place, pod in enumerate(found)
    ]
    router, keys = Router(), [(pod.name, pod.epoch) for pod in pods]
    if capacity[0]:
        router.capacities["m"] = Capacity(slots=capacity[0], kv_tokens=capacity[1])
    for number, ((chain, blocks, adapter), outcome) in enumerate(history):
        now = number * 0.05
        ask = Ask(request_id=str(number), model="m", adapter=adapter, chain=chain, prompt_bytes=blocks * 97)
        whole, swift = router.decide(ask, pods, now), pick(router, ask, pods, keys, now)
        assert swift.pod == whole.pod
        assert swift.mode == whole.mode
        if whole.pod is None:
            continue
        assert swift.chosen().cached_bytes == whole.chosen().cached_bytes
        ticket = router.sent(ask, swift, pods[NAMES.index(swift.pod)], now)
        if outcome == "fail":
            router.failed(ticket, now)
        if outcome != "none":
            router.answered(ticket, now + 0.02, streamed=True)
        if outcome in ("finish", "fail"):
            router.finished(ticket)


def test_a_pod_that_is_not_plainly_healthy_leaves_the_choice_to_the_router():
    pods = [Pod(name=name, model="m", engine_url="http://e", draining=name == "p0") for name in NAMES]
    router, keys = Router(), [(pod.name, 0) for pod in pods]
    ask = Ask(request_id="1", model="m", prompt_bytes=100)
    assert len(pick(router, ask, pods, keys, 0.0).candidates) == 4
    well = [Pod(name=name, model="m", engine_url="http://e") for name in NAMES]
    assert len(pick(router, ask, well, keys, 0.0).candidates) == 1
    for number in range(20):
        decision = router.decide(ask, well[:1], float(number))
        router.failed(router.sent(ask, decision, well[0], float(number)), float(number))
    assert len(pick(router, ask, well, keys, 20.0).candidates) == 4
