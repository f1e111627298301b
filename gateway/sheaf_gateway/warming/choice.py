"""Which requests of a pod that goes its replacement is warmed with: those whose prefills save most, within a budget.

A block of a prompt that k requests shared of late is taken to be asked for again with the chance 1 - 1/k; one that a
single request had is worth nothing. What a request is worth is the predicted prefill time of its blocks times that
chance, less what was chosen before covers. As chances fall along a prompt, a request is worth less and less the more of
it is covered; so the best one is found again without weighing all of them (lazy greedy, Minoux 1978).
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sheaf_gateway.routing.cost import Coefficients, compute, pairs, tokens
from sheaf_gateway.routing.prefix import BLOCK, leading
from sheaf_gateway.warming.recent import Seen

WORTH = 0.25
LEAST_MS = 5.0
MOST_WEIGHED = 1024
_NONE = "nothing that several requests shared"
_CHEAP = "computing it again takes no time worth saving"
_BUDGET = "the budget allows none"


class Budget(msgspec.Struct, frozen=True):
    """The most that a replacement is warmed with: requests, tokens, milliseconds of prefill."""

    requests: int
    tokens: int
    ms: float


class Warm(NamedTuple):
    """One request to send, what it saves and what it costs in milliseconds of prefill, and its tokens by its size."""

    seen: Seen
    saves: float
    costs: float
    tokens: int


class Choice(msgspec.Struct, frozen=True):
    """What to send, in this order; `reason` says why nothing, or why no more."""

    warm: tuple[Warm, ...] = ()
    reason: str = ""

    @property
    def saves(self) -> float:
        """Milliseconds of prefill that the next requests are expected not to wait for."""
        return sum(warm.saves for warm in self.warm)

    @property
    def tokens(self) -> int:
        """Tokens to compute, at most."""
        return sum(warm.tokens for warm in self.warm)


class _Offer(NamedTuple):
    """A request as it was last weighed, with so many blocks covered; the best one sorts first."""

    lost: float
    costs: float
    age: float
    place: int
    covered: int


def choose(seen: Sequence[Seen], price: Coefficients, budget: Budget) -> Choice:
    """The requests that save most, within the budget; of more than `MOST_WEIGHED` the last ones are weighed."""
    seen = seen[-MOST_WEIGHED:]
    shared = Counter(itertools.chain.from_iterable(one.chain for one in seen))
    took = [_block_ms(depth, price) for depth in range(max((len(one.chain) for one in seen), default=0))]
    until = list(itertools.accumulate(took, initial=0.0))
    heap = [_offer(one, place, 0, shared, took, until, price) for place, one in enumerate(seen)]
    heapq.heapify(heap)
    covered: set[int] = set()
    found: list[Warm] = []
    reason = _NONE if not any(count > 1 for count in shared.values()) else _CHEAP
    left, time = budget.tokens, budget.ms
    while heap and len(found) < budget.requests:
        best = heapq.heappop(heap)
        one = seen[best.place]
        depth = leading(covered, one.chain)
        if depth > best.covered:
            heapq.heappush(heap, _offer(one, best.place, depth, shared, took, until, price))
            continue
        size = int(tokens(len(one.body)))
        if not _worth(-best.lost, best.costs):
            continue
        if size > left or best.costs > time:
            reason = _BUDGET
            continue
        found.append(Warm(one, -best.lost, best.costs, size))
        covered.update(one.chain)
        left, time = left - size, time - best.costs
    return Choice(tuple(found), "" if found else reason if budget.requests else _BUDGET)


def _worth(saves: float, costs: float) -> bool:
    return saves >= LEAST_MS and saves >= WORTH * costs


def _offer(
    one: Seen,
    place: int,
    covered: int,
    shared: Counter[int],
    took: Sequence[float],
    until: Sequence[float],
    price: Coefficients,
) -> _Offer:
    """`took` has the milliseconds of each block by its place, `until` those of all before it."""
    saves = 0.0
    for depth in range(covered, len(one.chain)):
        count = shared[one.chain[depth]]
        if count < 2:
            break
        saves += took[depth] * (1.0 - 1.0 / count)
    return _Offer(-saves, price.base_ms + until[len(one.chain)] - until[covered], -one.at, place, covered)


def _block_ms(depth: int, price: Coefficients) -> float:
    """Milliseconds of prefill for one block after so many."""
    own = tokens(BLOCK)
    return compute(own, pairs(own, own * depth), price)
