"""Placement: capacity is kept, priority decides, pods share evenly, little moves, and history does not matter."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_operator.planning.placement import Want, place

names = st.text("abcdefgh0123456789-", min_size=1, max_size=8)
wants = st.lists(
    st.builds(Want, names, st.integers(0, 5), st.integers(-2, 2)), max_size=30, unique_by=lambda want: want.adapter
)
pods = st.dictionaries(names, st.integers(0, 12), max_size=8)


@settings(deadline=None, max_examples=40)
@given(wants, pods)
def test_no_pod_holds_more_than_it_can_and_no_adapter_is_placed_more_often_than_wanted(wants, pods):
    placed = place(wants, pods)
    assert placed.keys() == pods.keys()
    assert all(len(placed[pod]) <= pods[pod] for pod in pods)
    for want in wants:
        assert sum(want.adapter in held for held in placed.values()) <= want.replicas


@settings(deadline=None, max_examples=40)
@given(wants, pods)
def test_an_adapter_is_short_only_where_all_other_pods_are_full_of_as_important_ones(wants, pods):
    placed = place(wants, pods)
    priority = {want.adapter: want.priority for want in wants}
    for want in wants:
        without = [pod for pod, held in placed.items() if want.adapter not in held]
        if len(pods) - len(without) < min(want.replicas, len(pods)):
            for pod in without:
                assert len(placed[pod]) == pods[pod]
                assert all(priority[other] >= want.priority for other in placed[pod])


@settings(deadline=None, max_examples=40)
@given(wants, pods, st.randoms())
def test_the_order_in_which_things_are_listed_does_not_matter(wants, pods, random):
    shuffled, shelves = list(wants), list(pods.items())
    random.shuffle(shuffled)
    random.shuffle(shelves)
    assert place(wants, pods) == place(shuffled, dict(shelves))


@given(st.integers(1, 40), st.integers(1, 8))
def test_pods_of_equal_size_share_evenly(adapters, count):
    placed = place([Want(f"a{i}", 1) for i in range(adapters)], {f"p{i}": 100 for i in range(count)})
    sizes = sorted(len(held) for held in placed.values())
    assert sum(sizes) == adapters
    average = adapters / count
    assert sizes[-1] <= math.ceil(average) + max(average // 8, average >= 4)


def test_a_pod_that_comes_moves_little_more_than_its_own_share():
    wants = [Want(f"adapter-{i}", 1) for i in range(200)]
    before = place(wants, {f"p{i}": 100 for i in range(10)})
    after = place(wants, {f"p{i}": 100 for i in range(11)})
    stayed = sum(len(before[pod] & after[pod]) for pod in before)
    assert len(after["p10"]) >= 10
    assert stayed >= 200 * 0.75


def test_an_adapter_that_comes_moves_few_others():
    pods = {f"p{i}": 100 for i in range(20)}
    placed = [place([Want(f"adapter-{i}", 1) for i in range(count)], pods) for count in range(190, 211)]
    moved = [
        count - sum(len(before[pod] & after[pod]) for pod in pods)
        for count, (before, after) in enumerate(itertools.pairwise(placed), 190)
    ]
    assert sum(moved) / len(moved) <= 2
    assert max(moved) <= 20


def test_every_adapter_gets_its_first_replica_before_any_gets_its_second():
    placed = place([Want("a", 2), Want("b", 2), Want("c", 2)], {"p": 2, "q": 1})
    assert set(itertools.chain(*placed.values())) == {"a", "b", "c"}


def test_the_higher_priority_stays_when_room_is_short():
    assert place([Want("low", 1), Want("high", 1, priority=1)], {"p": 1}) == {"p": frozenset({"high"})}


@pytest.mark.parametrize(("replicas", "capacity"), [(1, 400), (1, 100), (2, 500)])
def test_ten_thousand_adapters_find_their_places_on_fifty_pods_at_once(replicas, capacity):
    wants = [Want(f"a{i}", replicas, i % 3) for i in range(10_000)]
    placed = place(wants, {f"p{i}": capacity for i in range(50)})
    assert sum(map(len, placed.values())) == min(10_000 * replicas, 50 * capacity)


def test_adapters_that_every_pod_should_hold_are_on_every_pod():
    placed = place([Want(f"a{i}", 9) for i in range(20)], {f"p{i}": 20 for i in range(6)})
    assert all(len(held) == 20 for held in placed.values())
