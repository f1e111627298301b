"""Blocks counted by runs are the very blocks that are counted one by one."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.simulator.runs import INDEX_BITS, RunPool, Runs
from sheaf_engine.timing.blocks import BlockPool

BLOCKS = 40
SEGMENT = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 6))
PROMPTS = st.lists(SEGMENT, min_size=1, max_size=4).map(
    lambda rows: Runs(
        [((place << 5 | name) << INDEX_BITS | first, count) for place, (name, first, count) in enumerate(rows)]
    )
)
MOVES = st.lists(st.tuples(st.sampled_from(["come", "grow", "go"]), PROMPTS, st.integers(0, 30)), max_size=40)


class Both:
    """Sequences as a scheduler has them, in both pools at once: (hashes, blocks held, private)."""

    def __init__(self) -> None:
        self.plain, self.runs = BlockPool(BLOCKS), RunPool(BLOCKS)
        self.there: list[list[Any]] = []

    def come(self, hashes: Runs, some: int) -> None:
        hits = self.plain.match(list(hashes), some)
        assert self.runs.match(hashes, some) == hits
        idle = self.plain.idle_among(list(hashes), hits)
        assert self.runs.idle_among(hashes, hits) == idle
        if len(hashes) - hits + idle <= self.plain.available:
            self.plain.hold_first(list(hashes), hits)
            self.runs.hold_first(hashes, hits)
            for pool in (self.plain, self.runs):
                pool.take(len(hashes) - hits)
            self.there.append([hashes, hits, len(hashes) - hits])

    def grow(self, place: int) -> None:
        hashes, held, private = one = self.there[place]
        last = min(len(hashes), held + 1 + place % 5)
        assert self.runs.store_between(hashes, held, last) == self.plain.store_between(list(hashes), held, last)
        one[1:] = last, private - (last - held)

    def go(self, place: int) -> None:
        hashes, held, private = self.there.pop(place)
        self.plain.release_first(list(hashes), held, private)
        self.runs.release_first(hashes, held, private)

    def alike(self) -> None:
        assert (self.runs.empty, self.runs.available, self.runs.idle) == (
            self.plain.empty,
            self.plain.available,
            self.plain.idle,
        )
        for hashes, *_ in self.there:
            assert [self.runs.holders(one) for one in hashes] == [self.plain.holders(one) for one in hashes]


@settings(max_examples=60, deadline=None)
@given(MOVES)
def test_every_answer_is_that_of_blocks_counted_one_by_one(moves):
    both = Both()
    for move, hashes, some in moves:
        if move == "come":
            both.come(hashes, some)
        elif both.there:
            (both.grow if move == "grow" else both.go)(some % len(both.there))
        both.alike()
    assert both.runs.clear() == both.plain.clear()
    both.alike()


@given(PROMPTS, st.integers(0, 20), st.integers(0, 20))
def test_runs_are_the_numbers_that_they_stand_for(hashes, start, stop):
    numbers = list(hashes)
    assert len(hashes) == len(numbers)
    assert hashes == Runs.of(numbers) == numbers
    assert hash(hashes) == hash(Runs.of(numbers))
    assert hashes[start:stop] == numbers[start:stop]
    assert hashes[0] == numbers[0]
    told = [(low, first, last) for low, first, last in hashes.between(start, stop)]
    assert [number for _, first, last in told for number in range(first, last)] == numbers[start:stop]
    assert all(numbers[low] == first for low, first, _ in told)


def test_runs_do_not_cross_segments():
    edge = 1 << INDEX_BITS
    assert Runs.of([edge - 1, edge, edge + 1]).rows == [(edge - 1, 1), (edge, 2)]
