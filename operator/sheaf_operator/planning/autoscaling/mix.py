"""The cheapest mix of accelerators for a workload, after Mélange (Griggs et al. 2024, arXiv:2404.14527).

Requests are sorted into buckets by lengths of prompt and answer. A pod of each kind serves so many requests a second of
a bucket within the SLO, on its own; so a request takes a share of a pod, and a mix suffices where each request finds
its share. As in the paper every bucket's rate is cut into slices, each of which goes to one kind, and the number of
pods of a kind is the sum of its shares, rounded up. Small dearer pods win short requests, large ones long requests.

The integer program is solved to the optimum by branch and bound over the counts of pods for few slices, which a
planning command has time for; beyond MOST_STEPS the best mix found so far is returned and `proven` is False. A lower
bound comes from the relaxation in which pods are bought by the fraction.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sheaf_operator.planning.autoscaling.facts import Promise, Speed, Work
from sheaf_operator.planning.autoscaling.queueing import attained

SLICES = 8
MOST_STEPS = 200_000
_PRECISION = 0.01
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Kind:
    """An accelerator: pods of it cost `price` an hour; `most` may be had (None: any number)."""

    name: str
    price: float
    speed: Speed
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of about these lengths, so many a second."""

    work: Work
    rate: float


@dataclass(frozen=True, slots=True)
class Mix:
    """Pods of each kind, what they cost an hour, and whether nothing cheaper is possible (`proven`).

    `shares` is what each kind serves: requests a second by bucket.
    """

    pods: Mapping[str, int]
    cost: float
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    proven: bool = True


def throughput(kind: Kind, work: Work, promise: Promise) -> float:
    """Requests a second of one sort that one pod serves within the promise; 0 where it cannot even serve one alone."""
    if attained(kind.speed, work, promise, _PRECISION * _PRECISION, 1) < 0.0:
        return 0.0
    low, high = _PRECISION * _PRECISION, 1.0
    while attained(kind.speed, work, promise, high, 1) >= 0.0:
        low, high = high, 2.0 * high
    while high - low > _PRECISION * low:
        middle = (low + high) / 2.0
        low, high = (middle, high) if attained(kind.speed, work, promise, middle, 1) >= 0.0 else (low, middle)
    return low


def profile_table(kinds: Sequence[Kind], buckets: Sequence[Bucket], promise: Promise) -> dict[str, tuple[float, ...]]:
    """For each kind the requests a second that one pod serves, bucket by bucket."""
    return {kind.name: tuple(throughput(kind, one.work, promise) for one in buckets) for kind in kinds}


def mix(kinds: Sequence[Kind], buckets: Sequence[Bucket], table: Mapping[str, Sequence[float]]) -> Mix | None:
    """The cheapest pods that serve every bucket.

    Args:
        kinds: what there is; names differ.
        buckets: what is asked.
        table: requests a second that a pod of each kind serves, bucket by bucket (`profile_table`); 0: none.

    Returns:
        None where some bucket is served by no kind, or bounds do not allow enough pods.
    """
    slices = _slices(kinds, buckets, table)
    if slices is None:
        return None
    return _Search(kinds, slices, len(buckets)).best()


@dataclass(frozen=True, slots=True)
class _Slice:
    """A part of a bucket's rate, and the share of a pod that it takes on each kind (infinite: not served)."""

    bucket: int
    rate: float
    loads: tuple[float, ...]


def _slices(
    kinds: Sequence[Kind], buckets: Sequence[Bucket], table: Mapping[str, Sequence[float]]
) -> list[_Slice] | None:
    found = []
    for place, bucket in enumerate(buckets):
        if bucket.rate <= 0.0:
            continue
        rate = bucket.rate / SLICES
        speeds = [table[kind.name][place] for kind in kinds]
        loads = tuple(rate / speed if speed > 0.0 else math.inf for speed in speeds)
        if min(loads) == math.inf:
            return None
        found += [_Slice(place, rate, loads)] * SLICES
    return found


@dataclass(order=True, slots=True)
class _Node:
    """Slices up to `depth` are given out; `bound` is the least that the whole can cost from here."""

    bound: float
    depth: int
    loads: tuple[float, ...] = field(compare=False)
    choices: tuple[int, ...] = field(compare=False)


class _Search:
    """Best first over the slices, the largest of them first; equal slices go to kinds in one order only."""

    def __init__(self, kinds: Sequence[Kind], slices: Sequence[_Slice], buckets: int) -> None:
        self._kinds, self._buckets = kinds, buckets
        self._slices = sorted(slices, key=lambda one: (-min(one.loads), one.bucket))
        self._rest = self._remaining()

    def best(self) -> Mix | None:
        """The cheapest mix."""
        nodes = [_Node(0.0, 0, (0.0,) * len(self._kinds), ())]
        found = self._greedy()
        for _ in range(MOST_STEPS):
            if not nodes or (found is not None and nodes[0].bound >= self._cost(found) - _EPSILON):
                return self._mix(found, proven=True)
            node = heapq.heappop(nodes)
            if node.depth == len(self._slices):
                found = node
                continue
            for child in self._children(node):
                if found is None or child.bound < self._cost(found) - _EPSILON:
                    heapq.heappush(nodes, child)
        return self._mix(found, proven=False)

    def _children(self, node: _Node) -> list[_Node]:
        one = self._slices[node.depth]
        same = node.depth > 0 and self._slices[node.depth - 1] == one
        first = node.choices[-1] if same else 0
        return [child for kind in range(first, len(self._kinds)) if (child := self._with(node, one, kind)) is not None]

    def _with(self, node: _Node, one: _Slice, kind: int) -> _Node | None:
        load = node.loads[kind] + one.loads[kind]
        most = self._kinds[kind].most
        if load == math.inf or (most is not None and load > most + _EPSILON):
            return None
        loads = (*node.loads[:kind], load, *node.loads[kind + 1 :])
        depth = node.depth + 1
        return _Node(self._bound(loads, depth), depth, loads, (*node.choices, kind))

    def _bound(self, loads: Sequence[float], depth: int) -> float:
        """What is given out costs whole pods; their free parts may take the rest, which costs fractions at least."""
        whole = self._price(loads)
        fractions = sum(load * kind.price for load, kind in zip(loads, self._kinds, strict=True))
        return max(whole, fractions + self._rest[depth])

    def _remaining(self) -> list[float]:
        """For each depth the cost of the slices from there on, each on its cheapest kind by the fraction."""
        rest = [0.0]
        for one in reversed(self._slices):
            loads = zip(one.loads, self._kinds, strict=True)
            rest.append(rest[-1] + min(load * kind.price for load, kind in loads if load < math.inf))
        return rest[::-1]

    def _greedy(self) -> _Node | None:
        """Each slice where it adds least to the cost now."""
        node = _Node(0.0, 0, (0.0,) * len(self._kinds), ())
        for one in self._slices:
            children = [child for kind in range(len(self._kinds)) if (child := self._with(node, one, kind)) is not None]
            if not children:
                return None
            node = min(children, key=lambda child: (self._price(child.loads), child.bound))
        return node

    def _price(self, loads: Sequence[float]) -> float:
        return sum(math.ceil(load - _EPSILON) * kind.price for load, kind in zip(loads, self._kinds, strict=True))

    def _cost(self, node: _Node) -> float:
        return self._price(node.loads)

    def _mix(self, node: _Node | None, *, proven: bool) -> Mix | None:
        if node is None:
            return None
        shares = {kind.name: [0.0] * self._buckets for kind in self._kinds}
        for one, choice in zip(self._slices, node.choices, strict=True):
            shares[self._kinds[choice].name][one.bucket] += one.rate
        pods = {kind.name: math.ceil(load - _EPSILON) for kind, load in zip(self._kinds, node.loads, strict=True)}
        return Mix(pods, self._cost(node), {name: tuple(rates) for name, rates in shares.items()}, proven)
