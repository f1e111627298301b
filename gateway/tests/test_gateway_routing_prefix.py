"""Prefix identity and the index over it: equal prefixes match, nothing else does, and memory is bounded."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.prefix import BLOCK, RUN, Chains, chain, render, seed

words = st.lists(st.integers(0, 3), max_size=4)
texts = st.builds(
    lambda found, tail: b"".join(bytes([word]) * BLOCK for word in found) + tail, words, st.binary(max_size=9)
)
identities = st.tuples(
    st.sampled_from(["m", "n", ""]),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from(["", "d1", "d2"]),
    st.sampled_from(["", "gold", "free"]),
)
QUICK = settings(max_examples=25, deadline=None)
PODS = [("p0", 1), ("p1", 1), ("p2", 1)]


@QUICK
@given(texts, texts, identities)
def test_chains_agree_exactly_as_far_as_whole_blocks_agree(one, two, identity):
    start = seed(*identity)
    first, second = chain(start, one), chain(start, two)
    for place, (left, right) in enumerate(zip(first, second, strict=False)):
        end = (place + 1) * BLOCK
        assert (left == right) == (one[:end] == two[:end])
    assert len(first) == len(one) // BLOCK


@QUICK
@given(texts.filter(lambda text: len(text) >= BLOCK), identities, identities)
def test_the_same_text_under_another_model_adapter_digest_or_tenant_never_matches(text, one, two):
    index = PrefixIndex()
    index.record(chain(seed(*one), text), PODS[0])
    matched = index.match(chain(seed(*two), text), PODS)
    same = tuple(part or "" for part in one) == tuple(part or "" for part in two)
    assert bool(matched.get(PODS[0])) == same


def test_parts_cannot_be_shifted_between_fields_of_an_identity():
    assert seed("ab", None, "", "") != seed("a", "b", "", "")
    assert seed("a", "b", "", "c") != seed("a", "b", "c", "")
    assert render([b"a", b"b"]) != render([b"ab"])


def some_history(number: int) -> tuple[list[tuple[tuple[str, int], list[int]]], list[int]]:
    """What pods were sent, and what is asked then, in words of one block; drawn from few words, so that prefixes meet."""
    draw = random.Random(number)
    prompts = [[draw.randrange(3) for _ in range(draw.randrange(7))] for _ in range(12)]
    return [(draw.choice(PODS), prompt) for prompt in prompts[:-1]], prompts[-1]


def as_chain(words: list[int]) -> list[int]:
    return chain(1, b"".join(bytes([word]) * BLOCK for word in words))


@QUICK
@given(st.integers(0, 2**32))
def test_a_match_is_the_longest_prefix_that_the_pod_was_sent(number):
    history, asked = some_history(number)
    index = PrefixIndex()
    for pod, words in history:
        index.record(as_chain(words), pod)
    matched = index.match(as_chain(asked), PODS)
    for pod in PODS:
        sent = [words for name, words in history if name == pod]
        longest = max((_common(words, asked) for words in sent), default=0)
        assert matched.get(pod, 0) == longest


def _common(one: list[int], two: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_memory_is_bounded_and_what_is_forgotten_only_shortens_matches(number, size):
    history, _ = some_history(number)
    small, large = PrefixIndex(size), PrefixIndex()
    for pod, words in history:
        for index in (small, large):
            index.record(as_chain(words), pod)
        assert len(small) <= size
        few, many = small.match(as_chain(words), PODS), large.match(as_chain(words), PODS)
        assert all(few.get(name, 0) <= many.get(name, 0) for name in PODS)


def test_the_beginning_of_a_prompt_outlives_its_end():
    index = PrefixIndex(4)
    index.record(as_chain([1, 2, 3, 4]), PODS[0])
    index.record(as_chain([7, 8]), PODS[0])
    assert index.match(as_chain([1, 2, 3, 4]), PODS)[PODS[0]] == 2


def test_a_restarted_engine_matches_nothing_of_before():
    index = PrefixIndex()
    index.record(as_chain([1, 2]), ("p0", 1))
    index.keep([("p0", 2)])
    assert not index.match(as_chain([1, 2]), [("p0", 2)])
    assert not index.match(as_chain([1, 2]), [("p0", 1)])
    index.record(as_chain([1]), ("p0", 2))
    assert index.match(as_chain([1, 2]), [("p0", 2)]) == {("p0", 2): 1}


def test_many_restarts_leave_nothing_behind():
    index = PrefixIndex()
    index.record(as_chain([5]), ("stays", 0))
    for epoch in range(600):
        index.record(as_chain([epoch % 250, 1]), ("p0", epoch))
        index.keep([("p0", epoch), ("stays", 0)])
    index.keep([("stays", 0)])
    assert index.match(as_chain([5]), [("stays", 0)]) == {("stays", 0): 1}
    assert len(index) == 1


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_pod_is_credited_with_no_more_than_its_cache_holds(number, room):
    history, asked = some_history(number)
    index, unbounded = PrefixIndex(), PrefixIndex()
    for pod, words in history:
        index.record(as_chain(words), pod, room)
        unbounded.record(as_chain(words), pod)
    matched, most = (found.match(as_chain(asked), PODS) for found in (index, unbounded))
    assert all(depth <= min(room, most[pod]) for pod, depth in matched.items())
    assert len(index) <= room * len(PODS)


def test_what_was_used_again_outlives_what_was_not():
    index = PrefixIndex()
    for words in ([1, 2], [3, 4], [1, 2], [5, 6]):
        index.record(as_chain(words), PODS[0], room=4)
    assert index.match(as_chain([1, 2]), PODS) == {PODS[0]: 2}
    assert index.match(as_chain([3, 4]), PODS) == {}


def test_the_pod_that_takes_most_makes_room_for_all():
    index = PrefixIndex(6)
    index.record(as_chain([1, 2, 3, 4, 5]), PODS[0])
    index.record(as_chain([6, 7, 8]), PODS[1])
    assert index.match(as_chain([1, 2, 3, 4, 5]), PODS) == {PODS[0]: 3}
    assert index.match(as_chain([6, 7, 8]), PODS) == {PODS[1]: 3}


def test_an_empty_prompt_or_an_unknown_pod_matches_nothing():
    index = PrefixIndex()
    index.record(as_chain([1]), PODS[0])
    assert not any(index.match([], PODS).values())
    assert not index.match(as_chain([1]), [("new", 1)])


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=4), st.integers(0, 300))),
    st.integers(1, 4),
)
def test_a_remembered_chain_is_the_chain(asked, most):
    chains = Chains(most)
    for start, runs, rest in asked:
        text = b"".join(bytes([run]) * (RUN * BLOCK) for run in runs) + b"z" * rest
        assert chains.chain(start, text) == chain(start, text)


def test_no_more_runs_are_remembered_than_allowed():
    chains = Chains(3)
    for run in range(9):
        chains.chain(run, b"x" * (RUN * BLOCK * 2))
        assert len(chains) <= 3
