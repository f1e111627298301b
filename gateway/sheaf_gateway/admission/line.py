"""Requests that wait for one Model, in the order in which they go: three lanes, tenants, deadlines.

Lanes, each before the next: Interactive requests that can still meet their promise; those that cannot any more,
which yield rather than make others miss too (relegation, after Niyama, arXiv 2503.22562); Batch. A lane that is
passed over `TURNS` times while somebody waits in it goes next whatever is before it: that ages whole lanes, so that
nobody starves, and a flood in a lower lane takes one turn in ten and no more. (Ageing by seconds would let the flood
through.)

Within a lane the tenant's books say whose turn it is (`fairness`), then the earliest deadline goes: the promised time
plus what the request's own prefill takes, which in a crowd lets the short ones pass (Niyama's hybrid of deadline and
shortest job). Under DLPM the longest match in a cache goes first, until half of a request's promised time is over: of
those the largest deficit goes, for a quantum is many short requests, and a promise may be broken by then.
What is cached changes while they wait: when one was served, the first `KIN` that begin alike are measured again.
"""

import heapq
import itertools
from collections.abc import Iterator

from sheaf_gateway.admission.fairness import Books, Tenant
from sheaf_gateway.admission.terms import Ask, Measure

ON_TIME, LATE, BATCH = 0, 1, 2
TURNS = 9
KIN = 8

_NEVER = float("inf")


class Waiter:
    """One request that waits. `late_at` is when its first token would be late, `key` its place by deadline."""

    __slots__ = ("arrived", "ask", "gone", "key", "kin", "lane", "late_at", "measure", "tenant", "urgent_at", "work")

    def __init__(self, ask: Ask, tenant: Tenant, measure: Measure, now: float) -> None:
        work = measure()
        promised = ask.terms.ttft
        self.ask = ask
        self.tenant = tenant
        self.measure = measure
        self.kin = work.kin
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
            best = {id(entry[2]): entry for entry in sorted(self._entries, reverse=True) if self._holds(entry[2])}
            self._entries = sorted(best.values())
        heapq.heappush(self._entries, (rank, order, waiter))

    def peek(self) -> Waiter | None:
        """The first waiter that is really here."""
        while self._entries and not self._holds(self._entries[0][2]):
            heapq.heappop(self._entries)
        return self._entries[0][2] if self._entries else None

    def first(self) -> Waiter:
        """The first waiter that is really here; there is one."""
        while not self._holds(self._entries[0][2]):
            heapq.heappop(self._entries)
        return self._entries[0][2]

    def _holds(self, waiter: Waiter) -> bool:
        return not waiter.gone and waiter.lane == self._lane


class _Group:
    """The waiters of one tenant in one lane; under the policy None, of all."""

    __slots__ = ("by_deadline", "by_match", "live", "tenant", "weight")

    def __init__(self, tenant: Tenant, lane: int, *, local: bool) -> None:
        self.tenant = tenant
        self.weight = tenant.weight
        self.live = 0
        self.by_deadline = _Heap(lane)
        self.by_match = _Heap(lane) if local else None

    def push(self, waiter: Waiter, order: int) -> None:
        self.by_deadline.push(waiter.key, order, waiter, self.live)
        self.improve(waiter, order)
        self.live += 1

    def improve(self, waiter: Waiter, order: int) -> None:
        """Rank a waiter by what is cached of its prompt now; a lower rank that it had is overtaken by this one."""
        if self.by_match is not None:
            self.by_match.push(-waiter.work.cached, order, waiter, self.live)

    def next(self, now: float) -> tuple[bool, float, float, Waiter]:
        """The tenant's next waiter, after its rank among those of other tenants."""
        earliest = self.by_deadline.first()
        if self.by_match is None or now >= earliest.urgent_at:
            return False, -self.tenant.level, earliest.key, earliest
        longest = self.by_match.first()
        return True, -longest.work.cached, longest.key, longest


class _Lane:
    """The groups of one lane, with their totals."""

    __slots__ = ("groups", "live", "weight")

    def __init__(self) -> None:
        self.groups: dict[str, _Group] = {}
        self.live = 0
        self.weight = 0.0


class Line:
    """Everybody who waits for one Model; `size` counts them."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.size = 0
        self._grouped = books.policy != "None"
        self._lanes = (_Lane(), _Lane(), _Lane())
        self._passed = [0, 0, 0]
        self._order = itertools.count()
        self._soonest_late = _Heap(ON_TIME)
        self._waiters: dict[str, Waiter] = {}
        self._kin: dict[int, dict[str, Waiter]] = {}
        self._served_kin = 0

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def join(self, ask: Ask, measure: Measure, now: float) -> None:
        """Let a request wait; `measure` tells what it would take, now and later."""
        tenant = self.books.tenant(ask.tenant, ask.terms.weights.get(ask.tenant, 1))
        self.books.arrive(tenant)
        tenant.waiting += 1
        self.size += 1
        waiter = self._waiters[ask.request_id] = Waiter(ask, tenant, measure, now)
        if waiter.kin:
            self._kin.setdefault(waiter.kin, {})[ask.request_id] = waiter
        order = self._push(waiter)
        if waiter.lane == ON_TIME and waiter.late_at < _NEVER:
            self._soonest_late.push(waiter.late_at, order, waiter, self._lanes[ON_TIME].live)

    def leave(self, request_id: str) -> Waiter | None:
        """Take a request out; None where it does not wait."""
        waiter = self._waiters.pop(request_id, None)
        if waiter is not None:
            waiter.gone = True
            waiter.tenant.waiting -= 1
            self.size -= 1
            self._drop(waiter)
            self._orphan(waiter)
        return waiter

    def next(self, now: float, first_s: float) -> Waiter | None:
        """Take out whose turn it is; `first_s` is how long a first token takes from admission."""
        self._measure_kin()
        while (late := self._soonest_late.peek()) is not None and now + first_s > late.late_at:
            self._relegate(late)
        lane = self._turn()
        while lane is not None:
            waiter = self._best(self._lanes[lane].groups, now)
            if lane != ON_TIME or now + waiter.work.prefill_s <= waiter.late_at:
                self._served_kin = waiter.kin
                return self.leave(waiter.ask.request_id)
            self._relegate(waiter)
            lane = next((place for place, found in enumerate(self._lanes) if found.live), None)
        return None

    def places(self, tenant: str, weight: float) -> float:
        """About how many requests on time go until one that joins now has gone, itself included.

        All that wait, but under a fair policy not more than it takes for the tenant's own to go at its share.
        """
        lane = self._lanes[ON_TIME]
        everybody = lane.live + 1.0
        if not self._grouped:
            return everybody
        group = lane.groups.get(tenant)
        own, others = (0, lane.weight) if group is None else (group.live, lane.weight - group.weight)
        return min(everybody, (own + 1) * (weight + others) / weight)

    def victim(self, ask: Ask) -> Waiter | None:
        """Who makes room for a request in a full queue, if anybody should: the latest of Batch for Interactive, else
        under a fair policy the latest of the tenant that has most for its weight, if that is more than the asker has.
        """
        if not ask.batch and self._lanes[BATCH].live:
            return next(waiter for waiter in reversed(self._waiters.values()) if waiter.lane == BATCH)
        if not self._grouped or not self.size:
            return None
        own = self.books.tenants.get(ask.tenant)
        mine = ((own.waiting if own else 0) + 1) / ask.terms.weights.get(ask.tenant, 1)
        most = max((group.tenant for lane in self._lanes for group in lane.groups.values()), key=_crowd)
        if _crowd(most)[0] <= mine:
            return None
        return next(waiter for waiter in reversed(self._waiters.values()) if waiter.tenant is most)

    def count(self, lane: int) -> int:
        """Requests in a lane."""
        return self._lanes[lane].live

    def _measure_kin(self) -> None:
        """Measure again those that begin like the one that was served last: its prefix is on its way into a cache."""
        kin, self._served_kin = self._kin.get(self._served_kin), 0
        if kin is None or self.books.policy != "DLPM":
            return
        for waiter in list(itertools.islice(kin.values(), KIN)):
            work = waiter.measure()
            if work.cached > waiter.work.cached:
                waiter.work = work
                self._lanes[waiter.lane].groups[waiter.tenant.name].improve(waiter, next(self._order))

    def _orphan(self, waiter: Waiter) -> None:
        kin = self._kin.get(waiter.kin)
        if kin is not None:
            del kin[waiter.ask.request_id]
            if not kin:
                del self._kin[waiter.kin]

    def _best(self, groups: dict[str, _Group], now: float) -> Waiter:
        if len(groups) == 1:
            (only,) = groups.values()
            if self._grouped:
                self.books.eligible([only.tenant])
            return only.next(now)[3]
        able = self.books.eligible([group.tenant for group in groups.values()])
        if len(able) == 1:
            return groups[able[0].name].next(now)[3]
        return min([groups[tenant.name].next(now) for tenant in able], key=_rank)[3]

    def _push(self, waiter: Waiter) -> int:
        lane, name = self._lanes[waiter.lane], waiter.tenant.name if self._grouped else ""
        group = lane.groups.get(name)
        if group is None:
            group = lane.groups[name] = _Group(waiter.tenant, waiter.lane, local=self.books.policy == "DLPM")
            lane.weight += group.weight
        order = next(self._order)
        group.push(waiter, order)
        lane.live += 1
        return order

    def _drop(self, waiter: Waiter) -> None:
        lane, name = self._lanes[waiter.lane], waiter.tenant.name if self._grouped else ""
        group = lane.groups[name]
        group.live -= 1
        lane.live -= 1
        if not group.live:
            del lane.groups[name]
            lane.weight -= group.weight

    def _relegate(self, waiter: Waiter) -> None:
        """Move one that will be late whatever happens; nobody is moved twice."""
        self._drop(waiter)
        waiter.lane = LATE
        self._push(waiter)

    def _turn(self) -> int | None:
        """The lane whose turn it is."""
        present = [place for place, lane in enumerate(self._lanes) if lane.live]
        if not present:
            return None
        aged = [place for place in present if self._passed[place] >= TURNS]
        chosen = aged[0] if aged else present[0]
        for place in (ON_TIME, LATE, BATCH):
            self._passed[place] = self._passed[place] + 1 if place in present and place != chosen else 0
        return chosen


def _crowd(tenant: Tenant) -> tuple[float, str]:
    return tenant.waiting / tenant.weight, tenant.name


def _rank(candidate: tuple[bool, float, float, Waiter]) -> tuple[bool, float, float]:
    return candidate[:3]
