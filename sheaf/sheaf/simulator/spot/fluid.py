"""A pool of replicas over weeks: what is launched, when it serves, what the market takes, what it costs.

Requests are a fluid: in each minute those beyond what the replicas that serve can answer in time break their promise.
Everything between two events is constant, so weeks take a second or two.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sheaf.simulator.market import Zone
from sheaf.simulator.spot.demand import BIN_S, Demand


@dataclass(slots=True)
class Replica:
    """One replica. `granted`: when it got its capacity (None: it has none yet); `ready`: it serves."""

    number: int
    zone: str
    spot: bool
    created: float
    granted: float | None = None
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a policy is told of the world.

    Attributes:
        zones: names.
        on_demand: money an hour.
        spot: money an hour by zone.
        cold_start: seconds from capacity to service.
        patience: seconds after which a launch without capacity has failed.
        utilisation: share of its capacity at which a replica is meant to run.
        stream: seconds that a request runs, on average.
    """

    zones: tuple[str, ...]
    on_demand: float
    spot: Mapping[str, float]
    cold_start: float = 180.0
    patience: float = 60.0
    utilisation: float = 0.8
    stream: float = 8.0


class CapacityPolicy(Protocol):
    """Launches and ends replicas of a pool.

    Attributes:
        name: as in tables.
        keeps_streams: whether what runs on a replica that is taken goes on elsewhere; else it has failed.
    """

    name: str
    keeps_streams: bool

    def act(self, pool: Pool, wanted: int) -> float | None:
        """Do what is to be done now; returns when to be asked again at the latest, None where events suffice."""

    def taken(self, pool: Pool, replica: Replica) -> None:
        """The market took a replica, which is gone."""


@dataclass(slots=True)
class Summary:
    """What became of a run. Money; shares from 0 to 1; hours of replicas.

    `broken` requests came when there was no capacity for them, `cut` ones ran on a replica that was taken, and failed.
    """

    name: str
    money: float = 0.0
    requests: float = 0.0
    broken: float = 0.0
    cut: float = 0.0
    spot_hours: float = 0.0
    on_demand_hours: float = 0.0
    short_hours: float = 0.0
    preemptions: int = 0
    launches: int = 0
    zones: dict[str, float] = field(default_factory=dict)

    @property
    def attainment(self) -> float:
        """Share of the requests whose promise was kept."""
        return 1.0 - (self.broken + self.cut) / self.requests if self.requests else 1.0

    @property
    def answered(self) -> float:
        """Share of the requests for which there was capacity, whatever became of their streams."""
        return 1.0 - self.broken / self.requests if self.requests else 1.0


class Pool:
    """Replicas of one Model in a market, run by a policy.

    Attributes:
        now: seconds since the beginning.
        replicas: by number.
    """

    def __init__(
        self, zones: Sequence[Zone], demand: Demand, outlook: Outlook, policy: CapacityPolicy, begin: float = 0.0
    ) -> None:
        self.now = 0.0
        self.replicas: dict[int, Replica] = {}
        self.outlook = outlook
        self.summary = Summary(policy.name)
        self._policy, self._demand, self._begin = policy, demand, begin
        self._capacity = {zone.name: zone.at(0.0) for zone in zones}
        self._numbers = self._events = 0
        self._heap: list[tuple[float, int, Callable[[int], None], int]] = []
        self._asked_at = -1.0
        self._names = [zone.name for zone in zones]
        for index, zone in enumerate(zones):
            for time, count in zone.changes():
                self._at(time, self._market, index << 20 | count)
        for time, _ in demand.changes():
            self._at(time, self._ask, 0)
        self._at(0.0, self._ask, 0)

    def run(self) -> Summary:
        """All of it."""
        end = self._demand.seconds
        while self._heap and self._heap[0][0] < end:
            time, _, action, item = heapq.heappop(self._heap)
            self._pass(time)
            action(item)
            self._act()
        self._pass(end)
        return self.summary

    @property
    def wanted(self) -> int:
        """Replicas wanted now."""
        return self._demand.at(self.now)

    def loads(self, seconds: float) -> tuple[float, ...]:
        """Replicas that requests kept busy in each of the last minutes that are over, within so many seconds."""
        last = int(self.now / BIN_S)
        rates = self._demand.rates[max(0, last - int(seconds / BIN_S)) : last] or self._demand.rates[:1]
        return tuple(rate / self._demand.capacity for rate in rates)

    def launch(self, zone: str | None) -> Replica:
        """Ask for a replica: on spot in a zone, on demand where that is None, which never fails."""
        self._numbers += 1
        replica = Replica(self._numbers, zone or "", zone is not None, self.now)
        self.replicas[replica.number] = replica
        if zone is None or self.free(zone) > 0:
            self._grant(replica)
        return replica

    def end(self, replica: Replica) -> None:
        """Let a replica go; another that waits for its zone gets its place."""
        del self.replicas[replica.number]
        if replica.spot and replica.granted is not None:
            self._fill(replica.zone)

    def free(self, zone: str) -> int:
        """Capacity left in a zone, which no policy may ask."""
        return self._capacity[zone] - sum(
            one.spot and one.zone == zone and one.granted is not None for one in self.replicas.values()
        )

    def _at(self, time: float, action: Callable[[int], None], item: int) -> None:
        self._events += 1
        heapq.heappush(self._heap, (time, self._events, action, item))

    def _ask(self, _: int) -> None:
        """Nothing happens, and the policy is asked."""

    def _act(self) -> None:
        again = self._policy.act(self, self.wanted)
        if again is not None and again > self.now and again != self._asked_at:
            self._asked_at = again
            self._at(again, self._ask, 0)

    def _grant(self, replica: Replica) -> None:
        replica.granted = self.now
        self.summary.launches += 1
        self._at(self.now + self.outlook.cold_start, self._serve, replica.number)

    def _serve(self, number: int) -> None:
        replica = self.replicas.get(number)
        if replica is not None:
            replica.ready = True

    def _market(self, change: int) -> None:
        zone, count = self._names[change >> 20], change & 0xFFFFF
        self._capacity[zone] = count
        there = [one for one in self.replicas.values() if one.spot and one.zone == zone and one.granted is not None]
        for replica in sorted(there, key=lambda one: -one.number)[: max(0, len(there) - count)]:
            del self.replicas[replica.number]
            self._lose(replica)
            self._policy.taken(self, replica)
        self._fill(zone)

    def _lose(self, replica: Replica) -> None:
        if self.now < self._begin:
            return
        self.summary.preemptions += 1
        if replica.ready and not self._policy.keeps_streams:
            ready = 1 + sum(one.ready for one in self.replicas.values())
            index = min(int(self.now / BIN_S), len(self._demand.rates) - 1)
            rate = min(self._demand.rates[index], ready * self._demand.capacity)
            self.summary.cut += rate / ready * self.outlook.stream

    def _fill(self, zone: str) -> None:
        waiting = [one for one in self.replicas.values() if one.spot and one.zone == zone and one.granted is None]
        for replica in waiting[: max(0, self.free(zone))]:
            self._grant(replica)

    def _pass(self, until: float) -> None:
        """Time passes, with everything as it is."""
        start, self.now = max(self.now, self._begin), until
        if until <= start:
            return
        hours = (until - start) / 3600.0
        found, outlook = self.summary, self.outlook
        for replica in self.replicas.values():
            if replica.granted is not None:
                price = outlook.spot[replica.zone] if replica.spot else outlook.on_demand
                found.money += hours * price
                found.spot_hours += hours if replica.spot else 0.0
                found.on_demand_hours += 0.0 if replica.spot else hours
                name = replica.zone or "on-demand"
                found.zones[name] = found.zones.get(name, 0.0) + hours
        self._serve_requests(start, until)

    def _serve_requests(self, start: float, until: float) -> None:
        demand, found = self._demand, self.summary
        ready = sum(one.ready for one in self.replicas.values())
        capacity = ready * demand.capacity
        while start < until:
            index = min(int(start / BIN_S + 1e-9), len(demand.rates) - 1)
            stop = min(until, (index + 1) * BIN_S) if index + 1 < len(demand.rates) else until
            seconds, rate = stop - start, demand.rates[index]
            found.requests += rate * seconds
            found.broken += max(0.0, rate - capacity) * seconds
            found.short_hours += max(0, demand.wanted[index] - ready) * seconds / 3600.0
            start = stop
