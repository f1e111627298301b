"""Requests that wait for one Model, in the order in which they go: three lanes, tenants, deadlines.

Lanes, each before the next: Interactive requests that can still meet their promise; those that cannot any more,
which yield rather than make others miss too (relegation, after Niyama, arXiv 2503.22562); Batch. A lane that is
passed over `TURNS` times while somebody waits in it goes next whatever is before it: that ages whole lanes, so that
nobody starves, and a flood in a lower lane takes one turn in ten and no more. (Ageing by seconds would let the flood
through.)

Within a lane the tenant's books say whose turn it is (`fairness`), then the earliest deadline goes: the promised time
plus what the request's own prefill takes, which in a crowd lets the short ones pass (Niyama's hybrid of deadline and
shortest job). Under DLPM the longest match in a cache goes first, until half of a request's promised time is over.
"""

import heapq
import itertools
from collections.abc import Iterator

from sheaf_gateway.admission.fairness import Books, Tenant
from sheaf_gateway.admission.terms import Ask, Work

ON_TIME, LATE, BATCH = 0, 1, 2
TURNS = 9

_NEVER = float("inf")


class Waiter:
    """One request that waits. `late_at` is when its first token would be late, `key` its place by deadline."""

    __slots__ = ("arrived", "ask", "gone", "key", "lane", "late_at", "tenant", "urgent_at", "work")

    def __init__(self, ask: Ask, tenant: Tenant, work: Work, now: float) -> None:
        promised = ask.terms.ttft
        self.ask = ask
        self.tenant = tenant
        self.work = work
        self.arrived = now
        self.late_at = _NEVER if promised is None else now + promised
        self.urgent_at = now + (ask.max_wait if promised is None else promised) / 2.0
        self.key = now + (promised or 0.0) + work.prefill_s
        self.lane = BATCH if ask.batch else ON_TIME
        self.gone = False


_Ranked = tuple[float, int, Waiter]


class _Heap:
    """Waiters by rank; those that are gone or elsewhere are dropped when met, or when they are the most."""

    __slots__ = ("_entries", "_lane")

    def __init__(self, lane: int) -> None:
        self._entries: list[_Ranked] = []
        self._lane = lane

    def push(self, rank: float, order: int, waiter: Waiter, live: int) -> None:
        if len(self._entries) > 2 * live + 16:
            self._entries = [entry for entry in self._entries if self._holds(entry[2])]
            heapq.heapify(self._entries)
        heapq.heappush(self._entries, (rank, order, waiter))

    def first(self) -> Waiter:
        """The first waiter that is really here; there is one."""
        while not self._holds(self._entries[0][2]):
            heapq.heappop(self._entries)
        return self._entries[0][2]

    def _holds(self, waiter: Waiter) -> bool:
        return not waiter.gone and waiter.lane == self._lane


class _Group:
    """The waiters of one tenant in one lane."""

    __slots__ = ("by_deadline", "by_match", "live", "tenant")

    def __init__(self, tenant: Tenant, lane: int, *, local: bool) -> None:
        self.tenant = tenant
        self.live = 0
        self.by_deadline = _Heap(lane)
        self.by_match = _Heap(lane) if local else None

    def push(self, waiter: Waiter, order: int) -> None:
        self.by_deadline.push(waiter.key, order, waiter, self.live)
        if self.by_match is not None:
            self.by_match.push(-waiter.work.cached, order, waiter, self.live)
        self.live += 1

    def next(self, now: float) -> tuple[tuple[bool, float, float], Waiter]:
        """The tenant's next waiter and its rank among those of other tenants."""
        earliest = self.by_deadline.first()
        if self.by_match is None or now >= earliest.urgent_at:
            return (False, 0.0, earliest.key), earliest
        longest = self.by_match.first()
        return (True, -longest.work.cached, longest.key), longest


class Line:
    """Everybody who waits for one Model."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self._lanes: tuple[dict[str, _Group], ...] = ({}, {}, {})
        self._passed = [0, 0, 0]
        self._order = itertools.count()
        self._waiters: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def join(self, ask: Ask, work: Work, now: float) -> None:
        """Let a request wait."""
        tenant = self.books.tenant(ask.tenant, ask.terms.weights.get(ask.tenant, 1))
        self.books.arrive(tenant)
        tenant.waiting += 1
        waiter = self._waiters[ask.request_id] = Waiter(ask, tenant, work, now)
        self._push(waiter)

    def leave(self, request_id: str) -> Waiter | None:
        """Take a request out; None where it does not wait."""
        waiter = self._waiters.pop(request_id, None)
        if waiter is not None:
            waiter.gone = True
            waiter.tenant.waiting -= 1
            self._drop(waiter)
        return waiter

    def next(self, now: float, first_s: float) -> Waiter | None:
        """Take out whose turn it is; `first_s` is how long a first token takes from admission."""
        self._relegate(now, first_s)
        lane = self._turn()
        if lane is None:
            return None
        groups = self._lanes[lane]
        able = self.books.eligible([group.tenant for group in groups.values()])
        _, waiter = min((groups[tenant.name].next(now) for tenant in able), key=_rank)
        self.leave(waiter.ask.request_id)
        return waiter

    def places(self, tenant: str, weight: float) -> float:
        """About how many requests on time go until one that joins now has gone, itself included.

        All that wait, but under a fair policy not more than it takes for the tenant's own to go at its share.
        """
        lane = self._lanes[ON_TIME]
        everybody = sum(group.live for group in lane.values()) + 1
        if self.books.policy == "None":
            return float(everybody)
        own = lane[tenant].live if tenant in lane else 0
        others = sum(group.tenant.weight for name, group in lane.items() if name != tenant)
        return min(float(everybody), (own + 1) * (weight + others) / weight)

    def victim(self, ask: Ask) -> Waiter | None:
        """Who makes room for a request in a full queue, if anybody should: the latest of Batch for Interactive, else
        under a fair policy the latest of the tenant that has most for its weight, if that is more than the asker has.
        """
        if not ask.batch and self._lanes[BATCH]:
            return next(waiter for waiter in reversed(self._waiters.values()) if waiter.lane == BATCH)
        if self.books.policy == "None" or not self._waiters:
            return None
        own = self.books.tenants.get(ask.tenant)
        mine = ((own.waiting if own else 0) + 1) / ask.terms.weights.get(ask.tenant, 1)
        most = max((group.tenant for lane in self._lanes for group in lane.values()), key=_crowd)
        if _crowd(most)[0] <= mine:
            return None
        return next(waiter for waiter in reversed(self._waiters.values()) if waiter.tenant is most)

    def count(self, lane: int) -> int:
        """Requests in a lane."""
        return sum(group.live for group in self._lanes[lane].values())

    def _push(self, waiter: Waiter) -> None:
        groups, name = self._lanes[waiter.lane], waiter.tenant.name
        group = groups.get(name)
        if group is None:
            group = groups[name] = _Group(waiter.tenant, waiter.lane, local=self.books.policy == "DLPM")
        group.push(waiter, next(self._order))

    def _drop(self, waiter: Waiter) -> None:
        groups, name = self._lanes[waiter.lane], waiter.tenant.name
        groups[name].live -= 1
        if not groups[name].live:
            del groups[name]

    def _relegate(self, now: float, first_s: float) -> None:
        """Move those that will be late whatever happens, each once."""
        for group in list(self._lanes[ON_TIME].values()):
            while group.live:
                waiter = group.by_deadline.first()
                if now + max(first_s, waiter.work.prefill_s) <= waiter.late_at:
                    break
                self._drop(waiter)
                waiter.lane = LATE
                self._push(waiter)

    def _turn(self) -> int | None:
        """The lane whose turn it is."""
        present = [lane for lane, groups in enumerate(self._lanes) if groups]
        if not present:
            return None
        aged = [lane for lane in present if self._passed[lane] >= TURNS]
        chosen = aged[0] if aged else present[0]
        for lane in (ON_TIME, LATE, BATCH):
            self._passed[lane] = self._passed[lane] + 1 if lane in present and lane != chosen else 0
        return chosen


def _crowd(tenant: Tenant) -> tuple[float, str]:
    return tenant.waiting / tenant.weight, tenant.name


def _rank(candidate: tuple[tuple[bool, float, float], Waiter]) -> tuple[bool, float, float]:
    return candidate[0]
