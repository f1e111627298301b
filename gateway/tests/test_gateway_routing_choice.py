"""The choice of a pod: cheapest of the best class, the same everywhere, and explained."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.routing.choose import PodFacts, choose, explain
from sheaf_gateway.routing.cost import Coefficients, CostModel, Work, compute, cost, pairs

amounts = st.floats(0, 1e6)
works = st.builds(
    Work,
    uncached_tokens=amounts,
    pending_tokens=amounts,
    running=st.integers(0, 500),
    foreign_waiting=st.integers(0, 500),
    kv_usage=st.floats(0, 1),
    residency=st.sampled_from(["Resident", "Loading", "Absent"]),
    pairs=amounts,
    pending_pairs=amounts,
    queued=st.integers(0, 500),
    slots_short=st.integers(0, 8),
    room_short=amounts,
    overdue_ms=amounts,
)
standings = st.sampled_from(["Healthy", "Open", "Draining", "NotReady", "Tried"])
QUICK = settings(max_examples=40, deadline=None)
PRICE = Coefficients(attention_ms_per_pair=1e-3)


@st.composite
def fleets(draw):
    found = draw(st.lists(st.tuples(standings, works), max_size=8))
    return [PodFacts(f"p{place}", standing, 0, work) for place, (standing, work) in enumerate(found)]


def facts(*standing: str) -> list[PodFacts]:
    idle = Work(0, 0, 0, 0, 0, "Resident")
    return [PodFacts(f"p{place}", name, 0, idle) for place, name in enumerate(standing)]


@QUICK
@given(works, works)
def test_cost_never_falls_when_the_work_grows(one, two):
    order = ["Resident", "Loading", "Absent"]
    fields = [(getattr(one, name), getattr(two, name)) for name in Work.__struct_fields__]
    larger = Work(*[max(pair, key=order.index) if isinstance(pair[0], str) else max(pair) for pair in fields])
    small, large = cost(one, PRICE), cost(larger, PRICE)
    assert all(
        getattr(small, term) <= getattr(large, term)
        for term in ("queue", "prefill", "adapter", "harm", "silence", "total")
    )


@QUICK
@given(fleets(), st.text(max_size=8))
def test_a_pod_that_cannot_answer_is_never_chosen_over_one_that_can(fleet, request_id):
    decision = choose(fleet, PRICE, request_id)
    standing = {fact.pod: fact.standing for fact in fleet}
    present = set(standing.values())
    chosen = standing.get(decision.pod)
    assert chosen not in {"NotReady", "Tried"}
    assert (chosen is None) == (not present & {"Healthy", "Open", "Draining"})
    if "Healthy" in present:
        assert chosen == "Healthy" or (chosen == "Open" and decision.mode == "Panic")
    if chosen == "Draining":
        assert not present & {"Healthy", "Open"}


@QUICK
@given(fleets(), st.text(max_size=8))
def test_the_lowest_cost_wins_and_the_same_facts_decide_alike(fleet, request_id):
    decision = choose(fleet, PRICE, request_id)
    assert decision == choose(fleet, PRICE, request_id)
    assert decision.pod == choose(list(reversed(fleet)), PRICE, request_id).pod
    if decision.mode == "Normal":
        healthy = [c.terms.total for c in decision.candidates if c.standing == "Healthy"]
        assert decision.chosen().terms.total == min(healthy)


def test_ties_are_spread_by_request_and_settled_alike():
    pods = [choose(facts("Healthy", "Healthy", "Healthy"), PRICE, f"r{n}").pod for n in range(300)]
    assert all(pods.count(name) > 60 for name in ("p0", "p1", "p2"))


def test_panic_uses_all_when_more_than_half_look_sick():
    assert choose(facts("Healthy", "Open"), PRICE, "r").mode == "Normal"
    modes = {choose(facts("Healthy", "Open", "Open"), PRICE, f"r{n}").pod for n in range(60)}
    assert modes == {"p0", "p1", "p2"}
    assert choose(facts("Open"), PRICE, "r").pod == "p0"


@QUICK
@given(fleets(), st.text(max_size=200))
def test_every_decision_can_be_explained_in_a_header(fleet, request_id):
    text = explain(choose(fleet, PRICE, request_id))
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 200


def test_a_decision_with_no_pod_says_so():
    decision = choose([], PRICE, "r")
    assert (decision.pod, decision.mode, decision.chosen()) == (None, "None", None)
    assert explain(decision) == "no pod of 0 can answer"


@QUICK
@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e15)), max_size=40))
def test_no_observation_drives_a_coefficient_out_of_its_bounds(observed):
    model = CostModel()
    for tokens, ms, attended in observed:
        model.observe_ttft(tokens, ms, attended)
        model.observe_load(ms)
    learned = model.coefficients
    assert 0.1 <= learned.base_ms <= 10_000
    assert 0.001 <= learned.prefill_ms_per_token <= 100
    assert 0.0 <= learned.attention_ms_per_pair <= 0.01
    assert 1 <= learned.adapter_load_ms <= 120_000


def test_the_model_learns_a_pool_from_its_times_to_first_token():
    model = CostModel()
    for turn in range(20_000):
        tokens = (turn * 37) % 2_000
        model.observe_ttft(tokens, 40.0 + 0.5 * tokens)
    assert abs(model.coefficients.base_ms + 1_000 * model.coefficients.prefill_ms_per_token - 540) < 60


def test_the_model_learns_that_long_prompts_cost_more_than_their_length():
    model = CostModel()
    for turn in range(20_000):
        tokens = 500 + (turn * 3_701) % 60_000
        model.observe_ttft(tokens, 20.0 + 0.04 * tokens + 2e-6 * tokens**2 / 2, tokens**2 / 2)
    price = model.coefficients
    for tokens in (5_000, 30_000, 60_000):
        expected = 20.0 + 0.04 * tokens + 2e-6 * tokens**2 / 2
        found = price.base_ms + compute(tokens, pairs(tokens, 0.0), price)
        assert abs(found - expected) < 0.15 * expected


def test_one_stalled_answer_moves_the_model_little():
    model = CostModel()
    for _ in range(200):
        model.observe_ttft(100, 30)
    before = model.coefficients
    model.observe_ttft(100, 600_000)
    after = model.coefficients
    shift = (after.base_ms - before.base_ms) + 100 * (after.prefill_ms_per_token - before.prefill_ms_per_token)
    assert shift < 30


def test_loads_are_learned():
    model = CostModel(Coefficients(adapter_load_ms=100))
    for _ in range(50):
        model.observe_load(1_000)
    assert 950 < model.coefficients.adapter_load_ms <= 1_000
    assert msgspec.structs.asdict(model.coefficients)["stream_ms"] == Coefficients().stream_ms
