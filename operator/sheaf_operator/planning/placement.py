"""Which adapters are kept loaded on which pods of a Model.

Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018): pods stand at many points of a ring,
and an adapter takes the first ones with room, clockwise from its own hash. The result is a function of the adapters,
the pods and their capacity only, not of the way there: a restarted operator, or one that cannot reach an agent, places
as before, and a pod that comes or goes moves little more than its own share. Higher priority chooses first; within a
priority every adapter gets its first replica before any gets its second. Full pods are skipped in a chain of jumps that
gets shorter with use, so the work is near the number of placements, whatever the number of pods.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

POINTS = 64
_SLACK = 8
_MASK = (1 << 64) - 1
_STRIDE = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Want:
    """An adapter, the replicas that should hold it, and its priority (higher goes first)."""

    adapter: str
    replicas: int
    priority: int = 0


def place(wants: Iterable[Want], capacity: Mapping[str, int]) -> dict[str, frozenset[str]]:
    """The adapters that each pod keeps loaded.

    Args:
        wants: adapters of one Model, each name once.
        capacity: adapters that each pod may hold, by pod name.

    Returns:
        For every pod the names placed on it, never more than its capacity. An adapter short of replicas means that
        every other pod is full of adapters of its priority or higher.
    """
    shelves = Shelves(capacity)
    shelves.fill(wants)
    return shelves.held()


class Shelves:
    """Pods being filled with adapters, the important ones first; what is placed stays."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        self._pods = sorted(capacity)
        self._capacity = [capacity[pod] for pod in self._pods]
        self._held: list[set[str]] = [set() for _ in self._pods]
        self._holders: dict[str, list[int]] = {}
        self._circle = _Circle.of(self._pods)

    def held(self) -> dict[str, frozenset[str]]:
        """What each pod holds."""
        return {pod: frozenset(held) for pod, held in zip(self._pods, self._held, strict=True)}

    def holders(self, adapter: str) -> list[str]:
        """The pods that hold the adapter, in the order in which it chose them."""
        return [self._pods[at] for at in self._holders.get(adapter, ())]

    def fill(self, wants: Iterable[Want], *, spare: int = 0) -> None:
        """Place so many more replicas of each adapter, and leave so many slots of each pod free."""
        limits = [max(0, size - spare) for size in self._capacity]
        rounds = _rounds(wants, len(self._pods))
        bounds = self._bounds(limits, len(rounds))
        below, any_room = self._ring(bounds), self._ring(limits)
        for adapter in rounds:
            holders = self._holders.setdefault(adapter, [])
            at = below.choose(adapter, holders)
            at = any_room.choose(adapter, holders) if at is None else at
            if at is not None:
                self._held[at].add(adapter)
                holders.append(at)
                below.close_if_full(at)
                any_room.close_if_full(at)

    def _ring(self, limits: Sequence[int]) -> "_Ring":
        return _Ring(self._circle, self._held, limits)

    def _bounds(self, limits: Sequence[int], more: int) -> list[int]:
        """For each pod how many adapters it takes before others do.

        An even share, and an eighth (from four on at least one) more, to keep movement small.
        The share is the level to which all pods fill up where small ones overflow into the others.
        """
        total, level, left = more + sum(map(len, self._held)), 0, len(limits)
        for limit in sorted(limits):
            if (limit - level) * left >= total:
                break
            total, level, left = total - (limit - level) * left, limit, left - 1
        share = level + (total / left if left else 0)
        bound = math.ceil(share) + max(int(share) // _SLACK, int(share >= _SLACK // 2))
        return [min(limit, bound) for limit in limits]


@dataclass(frozen=True, slots=True)
class _Circle:
    """The points of all pods by hash, the pod of each, and the hash of each pod."""

    hashes: Sequence[int]
    owners: Sequence[int]
    ranks: Sequence[int]

    @classmethod
    def of(cls, pods: Sequence[str]) -> "_Circle":
        """Each pod stands at POINTS points."""
        ranks = [_hash(pod) for pod in pods]
        points = sorted((_mix(rank + turn * _STRIDE), at) for at, rank in enumerate(ranks) for turn in range(POINTS))
        return cls([point for point, _ in points], [at for _, at in points], ranks)

    def start(self, adapter: str) -> int:
        """The first point clockwise from the adapter's own hash."""
        return bisect_left(self.hashes, _hash(adapter)) % len(self.owners)


class _Ring:
    """The points of the pods that have room; those of full pods are jumped over."""

    def __init__(self, circle: _Circle, held: Sequence[set[str]], limits: Sequence[int]) -> None:
        self._circle, self._owners, self._held, self._limits = circle, circle.owners, held, limits
        self._next = [*range(1, len(self._owners)), 0]
        self._open = {at for at, limit in enumerate(limits) if len(held[at]) < limit}
        self._here: dict[str, int] = {}

    def choose(self, adapter: str, holders: Sequence[int]) -> int | None:
        """The first pod clockwise that has room and is not among the holders; among few, the one that ranks highest."""
        if 2 * len(holders) >= len(self._open):
            return self._choose_of(self._open.difference(holders), adapter)
        point = self._here.get(adapter)
        point = self._circle.start(adapter) if point is None else point
        while True:
            point = self._skip_full(point)
            at = self._owners[point]
            if at not in holders:
                self._here[adapter] = point
                return at
            point = self._next[point]

    def _choose_of(self, few: AbstractSet[int], adapter: str) -> int | None:
        own = _hash(adapter)
        return max(few, key=lambda at: (_mix(own ^ self._circle.ranks[at]), at), default=None)

    def close_if_full(self, at: int) -> None:
        """Take note that the pod may be full now."""
        if len(self._held[at]) >= self._limits[at]:
            self._open.discard(at)

    def _skip_full(self, point: int) -> int:
        """The first point from here on whose pod has room; remembers the way for the next one."""
        walked = []
        while self._owners[point] not in self._open:
            walked.append(point)
            point = self._next[point]
        for passed in walked:
            self._next[passed] = point
        return point


def _rounds(wants: Iterable[Want], pods: int) -> Sequence[str]:
    """Adapters in the order in which they choose, once for each replica."""
    turns = ((-want.priority, turn, want.adapter) for want in wants for turn in range(min(want.replicas, pods)))
    return [adapter for _, _, adapter in sorted(turns)]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _mix(value: int) -> int:
    """The finaliser of splitmix64, of the lower 64 bits: every input bit reaches every output bit."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
