"""What a replacement is warmed with: what several requests shared, the dearest first, never beyond a budget."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.routing.cost import Coefficients
from sheaf_gateway.warming.choice import LEAST_MS, WORTH, Budget, choose
from sheaf_gateway.warming.recent import Recent, Seen
from sheaf_gateway.warming.request import one_token

PRICE = Coefficients(base_ms=1.0, prefill_ms_per_token=0.1)
WIDE = Budget(100, 10**9, 1e9)


def seen(chain, at=0.0, pod="a", size=100, salt="") -> Seen:
    return Seen(at, pod, "/v1/completions", "base", "", list(chain), b"x" * size, salt)


def chains(words: list[list[int]]) -> list[Seen]:
    """Requests whose chains share a block only where they share all before it, as hashes do."""
    return [
        seen([hash(tuple(word[: place + 1])) for place in range(len(word))], at=float(number))
        for number, word in enumerate(words)
    ]


requests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=24).map(chains)
prices = st.builds(
    Coefficients,
    base_ms=st.floats(0.1, 100),
    prefill_ms_per_token=st.floats(0.001, 10),
    attention_ms_per_pair=st.floats(0, 0.01),
)
budgets = st.builds(Budget, st.integers(0, 20), st.integers(0, 2000), st.floats(0, 10_000))


@given(requests, prices, budgets)
@settings(max_examples=200)
def test_no_budget_is_passed_and_nothing_is_chosen_twice(found, price, budget):
    choice = choose(found, price, budget)
    assert len(choice.warm) <= budget.requests
    assert choice.tokens <= budget.tokens
    assert sum(warm.costs for warm in choice.warm) <= budget.ms + 1e-6
    places = [id(warm.seen) for warm in choice.warm]
    assert len(set(places)) == len(places)
    assert bool(choice.warm) != bool(choice.reason)


@given(requests, prices)
@settings(max_examples=200)
def test_each_is_worth_its_prefill_and_covers_a_shared_block_that_none_before_did(found, price):
    shared = {block for block, count in Counter(b for one in found for b in one.chain).items() if count > 1}
    covered: set[int] = set()
    for warm in choose(found, price, WIDE).warm:
        assert warm.saves >= max(LEAST_MS, WORTH * warm.costs)
        assert shared & set(warm.seen.chain) - covered
        covered |= set(warm.seen.chain)


def weighed(one: Seen, covered: set[int], shared: Counter[int], price: Coefficients) -> tuple[float, float]:
    took = {
        block: 64 * price.prefill_ms_per_token + 64 * (64 * depth + 32) * price.attention_ms_per_pair
        for depth, block in enumerate(one.chain)
        if block not in covered
    }
    saves = sum(ms * (1 - 1 / shared[block]) for block, ms in took.items())
    return saves, price.base_ms + sum(took.values())


@given(requests, prices)
@settings(max_examples=200)
def test_the_lazy_search_saves_in_each_step_what_weighing_all_would(found, price):
    shared, covered = Counter(block for one in found for block in one.chain), set()
    for warm in choose(found, price, WIDE).warm:
        offers = [weighed(one, covered, shared, price) for one in found]
        best = max((saves for saves, costs in offers if saves >= max(LEAST_MS, WORTH * costs)), default=0.0)
        assert warm.saves == pytest.approx(best)
        covered |= set(warm.seen.chain)


@given(requests, prices, budgets)
def test_the_same_requests_are_chosen_alike(found, price, budget):
    assert choose(found, price, budget) == choose(list(found), price, budget)


def test_a_prompt_that_many_began_with_is_computed_once_by_the_request_that_costs_least():
    system = list(range(8))
    found = [seen([*system, 100, 101]), seen([*system, 200]), seen([*system, 300, 301, 302]), seen([70, 71])]
    choice = choose(found, PRICE, WIDE)
    assert [warm.seen for warm in choice.warm] == [found[1]]
    assert choice.saves == pytest.approx(8 * 6.4 * 2 / 3)


def test_of_two_alike_the_newer_is_taken():
    found = [seen([1, 2, 3], at=1.0), seen([1, 2, 3], at=2.0)]
    assert choose(found, PRICE, WIDE).warm[0].seen is found[1]


def test_what_only_one_request_had_is_not_worth_computing():
    choice = choose([seen(range(50))], PRICE, WIDE)
    assert (choice.warm, choice.reason) == ((), "nothing that several requests shared")
    assert choose([], PRICE, WIDE).reason == "nothing that several requests shared"


def test_what_takes_no_time_is_not_worth_computing():
    quick = Coefficients(base_ms=0.1, prefill_ms_per_token=0.001)
    assert "no time" in choose([seen(range(5)), seen(range(5))], quick, WIDE).reason


@pytest.mark.parametrize("budget", [Budget(0, 10**9, 1e9), Budget(9, 3, 1e9), Budget(9, 10**9, 1.0)])
def test_a_budget_that_allows_none_is_told(budget):
    assert choose([seen(range(50)), seen(range(50))], PRICE, budget).reason == "the budget allows none"


def test_what_does_not_fit_gives_way_to_what_does():
    large, small = [seen(range(20), size=4000)] * 2, [seen(range(100, 105), size=400)] * 2
    choice = choose([*large, *small], PRICE, Budget(5, 200, 1e9))
    assert [warm.seen for warm in choice.warm] == [small[0]]


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc"), st.floats(0, 100)), max_size=60))
def test_the_newest_requests_are_remembered_within_the_bytes(given_):
    recent = Recent(most=64 * 100, seconds=1000.0)
    for size, pod, at in given_:
        recent.add(seen([1, 2], at=at, pod=pod, size=size))
    kept = recent.of("abc")
    assert recent.size == sum(len(one.body) for each in kept.values() for one in each) <= 64 * 100
    assert len(recent) == sum(map(len, kept.values()))
    fits = [entry for entry in given_ if entry[0] <= 100]
    newest = [len(one.body) for each in kept.values() for one in each]
    assert sorted(newest) == sorted(size for size, _, _ in fits[len(fits) - len(newest) :])


def test_only_the_pods_that_are_asked_for_are_told_and_nothing_that_is_old():
    recent = Recent(most=10_000, seconds=2.0)
    for at, pod in ((1.0, "a"), (2.0, "b"), (3.0, "a"), (3.5, "a")):
        recent.add(seen([1, 2], at=at, pod=pod))
    told = {pod: [one.at for one in found] for pod, found in recent.of(["a", "c"]).items()}
    assert told == {"a": [3.0, 3.5], "c": []}
    assert recent.size == 300
    recent.forget(9.0)
    assert (len(recent), recent.size) == (0, 0)


def test_the_number_that_is_remembered_is_bounded():
    recent = Recent(most=2**30, seconds=1e9)
    for number in range(9000):
        recent.add(seen([1, 2], at=float(number), size=1))
    assert len(recent) == recent.size == 8192
    assert recent.of("a")["a"][0].at == 9000 - 8192


def test_a_request_for_its_prompt_alone_has_one_token_and_the_salt_of_its_tenant():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}],
            "tools": [{"type": "function"}], "chat_template_kwargs": {"thinking": False}, "cache_salt": "mine",
            "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 900, "seed": 4,
            "n": 2, "min_tokens": 7, "logprobs": True, "top_logprobs": 3, "response_format": {"type": "json_object"}}  # fmt: skip
    sent = json.loads(one_token(json.dumps(body).encode(), "tenant"))
    kept = {name: body[name] for name in ("model", "messages", "tools", "chat_template_kwargs")}
    assert sent == {**kept, "max_tokens": 1, "stream": False, "temperature": 0, "cache_salt": "tenant"}
    assert json.loads(one_token(json.dumps(body).encode(), ""))["cache_salt"] == "mine"


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model": "m", "prompt": "text"}', True),
        (b'{"model": "m", "prompt": ["one", "two"]}', False),
        (b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]}', True),
        (b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}', False),
        (b'{"model": "m", "messages": ["text"]}', False),
        (b'{"model": "m", "messages": {"role": "user"}}', False),
        (b'{"model": "m"}', False),
        (b"[]", False),
        (b"not json", False),
        (b"\xff", False),
        (b'{"a":' * 5000, False),
    ],
)
def test_only_texts_are_sent_again(body, sent):
    assert (one_token(body, "") is not None) == sent
