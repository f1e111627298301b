"""The KV block pool: reference counts, prefix reuse and LRU eviction.

Blocks have no number here. A block is free and empty, private to one sequence, or cached under its hash and held by any
number of sequences; a cached block that nobody holds waits in LRU order to be evicted. Empty blocks are used before
cached ones, and a sequence's last blocks are evicted before its first, as in vLLM (``vllm/v1/core/block_pool.py``). One
difference: vLLM keeps two copies of a block that two sequences computed at once, here the second copy is given up.

Source: Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention, SOSP 2023.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol


class Pool(Protocol):
    """What a scheduler needs of KV blocks; see :class:`BlockPool`."""

    removed: list[int]

    @property
    def num_blocks(self) -> int:
        """All blocks."""

    @property
    def empty(self) -> int:
        """Blocks that hold nothing."""

    @property
    def available(self) -> int:
        """Blocks that can be taken."""

    @property
    def idle(self) -> tuple[int, ...]:
        """Hashes of cached blocks that nobody holds, the next to be evicted first."""

    def holders(self, block_hash: int) -> int | None:
        """How many sequences hold a block."""

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """How many of the first blocks are cached."""

    def idle_among(self, hashes: Sequence[int], count: int) -> int:
        """How many of the first blocks nobody holds."""

    def hold_first(self, hashes: Sequence[int], count: int) -> None:
        """Hold the first blocks."""

    def take(self, count: int) -> None:
        """Make blocks private."""

    def store_between(self, hashes: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
        """Cache private blocks."""

    def release_first(self, hashes: Sequence[int], count: int, private: int) -> None:
        """Give blocks back."""

    def clear(self) -> bool:
        """Forget every cached block."""


class BlockPool:
    """Counts and hashes of `num_blocks` KV blocks."""

    __slots__ = ("_empty", "_holders", "_idle", "num_blocks", "removed")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.removed: list[int] = []
        self._empty = num_blocks
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def empty(self) -> int:
        """Blocks that hold nothing: they can be taken without an eviction."""
        return self._empty

    @property
    def available(self) -> int:
        """Blocks that can be taken, evicting where needed."""
        return self._empty + len(self._idle)

    @property
    def idle(self) -> tuple[int, ...]:
        """Hashes of cached blocks that nobody holds, the next to be evicted first."""
        return tuple(self._idle)

    def holders(self, block_hash: int) -> int | None:
        """How many sequences hold the block cached under `block_hash`; None when it is not cached."""
        return self._holders.get(block_hash)

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """How many of the first `limit` blocks are cached, contiguously from the start."""
        limit = min(limit, len(hashes))
        for index in range(limit):
            if hashes[index] not in self._holders:
                return index
        return limit

    def idle_among(self, hashes: Sequence[int], count: int) -> int:
        """How many of the first `count` blocks nobody holds: holding them makes as many unavailable."""
        return sum(1 for index in range(count) if hashes[index] in self._idle)

    def hold(self, block_hash: int) -> None:
        """Add a holder to a cached block."""
        holders = self._holders[block_hash]
        if holders == 0:
            del self._idle[block_hash]
        self._holders[block_hash] = holders + 1

    def hold_first(self, hashes: Sequence[int], count: int) -> None:
        """Add a holder to each of the first `count` blocks, which are cached."""
        for index in range(count):
            self.hold(hashes[index])

    def take(self, count: int) -> None:
        """Make `count` available blocks private, evicting the least recently used when no empty one is left."""
        evictions = count - self._empty
        if evictions <= 0:
            self._empty -= count
            return
        self._empty = 0
        for _ in range(evictions):
            block_hash, _ = self._idle.popitem(last=False)
            del self._holders[block_hash]
            self.removed.append(block_hash)

    def store(self, block_hash: int) -> bool:
        """Cache a private block under its hash, held once; where the hash is cached, hold that one instead (False)."""
        if block_hash in self._holders:
            self.hold(block_hash)
            self._empty += 1
            return False
        self._holders[block_hash] = 1
        return True

    def store_between(self, hashes: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
        """Cache the blocks from place `start` up to `stop` as `store` does.

        Returns:
            First and last place of each run of blocks that were not cached before.
        """
        return _runs([index for index in range(start, stop) if self.store(hashes[index])])

    def release_first(self, hashes: Sequence[int], count: int, private: int) -> None:
        """Give back the first `count` blocks, which are cached, and as many private ones."""
        self.release([hashes[index] for index in range(count)], private)

    def release(self, held: Sequence[int], private: int) -> None:
        """Give back a sequence's blocks: the cached ones it holds, in order, and its private ones."""
        self._empty += private
        for block_hash in reversed(held):
            holders = self._holders[block_hash] - 1
            self._holders[block_hash] = holders
            if holders == 0:
                self._idle[block_hash] = None

    def clear(self) -> bool:
        """Forget every cached block; refused (False) while any is held."""
        if len(self._idle) != len(self._holders):
            return False
        self._empty += len(self._idle)
        self._idle.clear()
        self._holders.clear()
        return True


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs
