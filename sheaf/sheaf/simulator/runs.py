"""KV blocks counted by runs instead of one by one: the same pool, at a cost that does not grow with prompts.

A prompt's block hashes are consecutive numbers within a segment (see `calls`), so what sequences hold, and what waits
to be evicted, are a few runs of numbers for each segment. A test compares every answer with that of
:class:`sheaf_engine.timing.blocks.BlockPool`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload

INDEX_BITS = 17


class Runs(Sequence[int]):
    """Numbers in a row of runs, each its first number and how many there are."""

    __slots__ = ("_length", "rows")

    def __init__(self, rows: Sequence[tuple[int, int]]) -> None:
        self.rows = rows
        self._length = sum([count for _, count in rows])

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Runs:
        """Any numbers as runs that do not cross a multiple of 2 to the power of `INDEX_BITS`."""
        rows: list[tuple[int, int]] = []
        for number in numbers:
            first, count = rows[-1] if rows else (number, 0)
            if rows and first + count == number and first >> INDEX_BITS == number >> INDEX_BITS:
                rows[-1] = (first, count + 1)
            else:
                rows.append((number, 1))
        return cls(rows)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable([range(first, first + count) for first, count in self.rows])

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def between(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The runs from place `start` up to `stop`: place, first number, number after the last."""
        if start >= stop:
            return []
        found, place = [], 0
        for first, count in self.rows:
            end = place + count
            if start < end:
                low, high = max(start, place), min(stop, end)
                found.append((low, first + low - place, first + high - place))
                if end >= stop:
                    break
            place = end
        return found


class Run:
    """Cached blocks from `low` up to `high` that `holders` sequences hold; where nobody does, a link of the queue in
    which they wait to be evicted, the last block first."""

    __slots__ = ("after", "before", "high", "holders", "low")

    def __init__(self, low: int, high: int, holders: int) -> None:
        self.low, self.high, self.holders = low, high, holders
        self.before = self.after = self


class RunPool:
    """As `BlockPool`, of hashes that are `Runs`; it does not say what it evicts."""

    __slots__ = ("_ends", "_idle", "_runs", "empty", "num_blocks", "removed")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = self.empty = num_blocks
        self.removed: list[int] = []
        self._idle = 0
        self._runs: dict[int, list[Run]] = {}
        self._ends = Run(0, 0, 0)

    @property
    def available(self) -> int:
        """Blocks that can be taken, evicting where needed."""
        return self.empty + self._idle

    @property
    def idle(self) -> tuple[int, ...]:
        """Hashes of cached blocks that nobody holds, the next to be evicted first."""
        found: list[int] = []
        run = self._ends.after
        while run is not self._ends:
            found += range(run.high - 1, run.low - 1, -1)
            run = run.after
        return tuple(found)

    def holders(self, block_hash: int) -> int | None:
        """How many sequences hold a block; None when it is not cached."""
        runs = self._runs.get(block_hash >> INDEX_BITS, ())
        return next((run.holders for run in runs if run.low <= block_hash < run.high), None)

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """How many of the first `limit` blocks are cached, contiguously from the start."""
        found = 0
        for place, low, high in _rows(hashes, 0, limit):
            end = self._covered(low, high)
            found = place + end - low
            if end < high:
                break
        return found

    def idle_among(self, hashes: Sequence[int], count: int) -> int:
        """How many of the first `count` blocks nobody holds."""
        total = 0
        for _, low, high in _rows(hashes, 0, count):
            for run in self._runs.get(low >> INDEX_BITS, ()):
                if not run.holders and run.low < high and run.high > low:
                    total += min(high, run.high) - max(low, run.low)
        return total

    def hold_first(self, hashes: Sequence[int], count: int) -> None:
        """Add a holder to each of the first `count` blocks, which are cached."""
        for _, low, high in _rows(hashes, 0, count):
            self._hold(self._runs[low >> INDEX_BITS], low, high)

    def take(self, count: int) -> None:
        """Make `count` available blocks private, evicting the least recently used when no empty one is left."""
        left = count - self.empty
        if left <= 0:
            self.empty -= count
            return
        self.empty = 0
        self._idle -= left
        while left:
            run = self._ends.after
            gone = min(left, run.high - run.low)
            run.high -= gone
            left -= gone
            if run.low == run.high:
                _unlink(run)
                self._forget(run)

    def store_between(self, hashes: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
        """Cache private blocks, held once; where one is cached, hold that one instead.

        Returns:
            First and last place of each run of blocks that were not cached before.
        """
        fresh: list[tuple[int, int]] = []
        for place, low, high in _rows(hashes, start, stop):
            for first, end in self._store(low, high):
                begin, last = place + first - low, place + end - low - 1
                if fresh and fresh[-1][1] == begin - 1:
                    fresh[-1] = (fresh[-1][0], last)
                else:
                    fresh.append((begin, last))
        return fresh

    def release_first(self, hashes: Sequence[int], count: int, private: int) -> None:
        """Give back a sequence's blocks: the cached ones it holds, which are its first, and its private ones."""
        self.empty += private
        for _, low, high in reversed(_rows(hashes, 0, count)):
            runs = self._runs[low >> INDEX_BITS]
            begin, end = _cut(runs, low), _cut(runs, high)
            for run in reversed(runs[begin:end]):
                run.holders -= 1
                if not run.holders:
                    _link(run, self._ends)
                    self._idle += run.high - run.low
            _join(runs, begin, end)

    def clear(self) -> bool:
        """Forget every cached block; refused (False) while any is held."""
        if any(run.holders for runs in self._runs.values() for run in runs):
            return False
        self.empty += self._idle
        self._idle = 0
        self._runs.clear()
        self._ends.before = self._ends.after = self._ends
        return True

    def _covered(self, low: int, high: int) -> int:
        """The end of what is cached from `low` on without a gap, at most `high`."""
        for run in self._runs.get(low >> INDEX_BITS, ()):
            if run.low > low:
                break
            low = max(low, run.high)
            if low >= high:
                return high
        return low

    def _hold(self, runs: list[Run], low: int, high: int) -> None:
        begin, end = _cut(runs, low), _cut(runs, high)
        for run in runs[begin:end]:
            if not run.holders:
                _unlink(run)
                self._idle -= run.high - run.low
            run.holders += 1
        _join(runs, begin, end)

    def _store(self, low: int, high: int) -> list[tuple[int, int]]:
        """Hold what is there of these blocks, and cache what is not: the latter from each first to before its end."""
        runs = self._runs.get(low >> INDEX_BITS)
        if runs is None:
            self._runs[low >> INDEX_BITS] = [Run(low, high, 1)]
            return [(low, high)]
        begin, end = _cut(runs, low), _cut(runs, high)
        there = [(run.low, run.high) for run in runs[begin:end]]
        edges = [low, *(edge for run in there for edge in run), high]
        gaps = [(left, right) for left, right in zip(edges[::2], edges[1::2], strict=True) if left < right]
        if there:
            self._hold(runs, low, high)
            self.empty += sum(right - left for left, right in there)
        for left, right in gaps:
            place = _cut(runs, left)
            runs.insert(place, Run(left, right, 1))
            _join(runs, place, place + 1)
        return gaps

    def _forget(self, run: Run) -> None:
        key = run.low >> INDEX_BITS
        runs = self._runs[key]
        if len(runs) == 1:
            del self._runs[key]
        else:
            runs.remove(run)


def _rows(hashes: Sequence[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    return (hashes if isinstance(hashes, Runs) else Runs.of(hashes)).between(start, stop)


def _cut(runs: list[Run], at: int) -> int:
    """The place of the first run that begins at `at` or later, after cutting the one in whose middle that is."""
    for place, run in enumerate(runs):
        if run.low >= at:
            return place
        if run.high > at:
            tail = Run(at, run.high, run.holders)
            run.high = at
            if not run.holders:
                _link(tail, run)
            runs.insert(place + 1, tail)
            return place + 1
    return len(runs)


def _join(runs: list[Run], begin: int, end: int) -> None:
    """Make one of neighbours from one before `begin` to `end` whose blocks differ in nothing."""
    for place in range(min(end, len(runs) - 1), max(begin - 1, 0), -1):
        left, right = runs[place - 1], runs[place]
        if left.high == right.low and left.holders == right.holders and (left.holders or right.after is left):
            left.high = right.high
            if not right.holders:
                _unlink(right)
            del runs[place]


def _link(run: Run, before: Run) -> None:
    """Put a run into the queue before another; before its ends: as the last."""
    run.before, run.after = before.before, before
    run.before.after = before.before = run


def _unlink(run: Run) -> None:
    run.before.after, run.after.before = run.after, run.before
    run.before = run.after = run
