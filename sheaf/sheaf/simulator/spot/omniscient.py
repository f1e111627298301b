"""The least that a fleet could cost by whoever knows the market and the demand in advance.

Cost is minimised over all schedules that keep as many replicas ready as are wanted at every moment, with every launch
paying its cold start. That is a minimum cost flow: units move through time, each either idle, or in a zone while it has
had capacity for a cold start already, or on demand; entering costs a cold start, staying costs the price. Where a
shortfall is allowed, it is one more way through time, at a penalty chosen so that no more is short than allowed.
Capacity during a cold start is not taken from others, so the result is a lower bound (exact for zones of one instance).
Successive shortest paths with potentials (Edmonds and Karp 1972).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush

from sheaf.simulator.market import Zone
from sheaf.simulator.spot.demand import Demand
from sheaf.simulator.spot.fluid import Outlook

ROUNDS = 8
INFINITE = float("inf")


def omniscient(
    zones: Sequence[Zone], demand: Demand, outlook: Outlook, short_hours: float = 0.0, begin: float = 0.0
) -> tuple[float, float]:
    """Money that the best schedule costs, and the replica hours that it is short (at most `short_hours`)."""
    network = Network(zones, demand, outlook, begin)
    if not short_hours:
        return network.solve(INFINITE)
    low, high = 0.0, 64.0 * outlook.on_demand
    best = network.solve(INFINITE)
    for _ in range(ROUNDS):
        penalty = (low + high) / 2
        found = network.solve(penalty)
        if found[1] > short_hours:
            low = penalty
        else:
            high, best = penalty, found
    return best


class Network:
    """The flow network: a hub at each moment when anything changes, and a chain of nodes for each way to run."""

    def __init__(self, zones: Sequence[Zone], demand: Demand, outlook: Outlook, begin: float) -> None:
        self._outlook = outlook
        ready = [_eroded(zone, outlook.cold_start) for zone in zones]
        times = {begin, demand.seconds, *(time for time, _ in demand.changes())}
        times |= {time for steps in ready for time, _ in steps}
        self._times = sorted(time for time in times if begin <= time <= demand.seconds)
        starts = self._times[:-1]
        self._wanted = [demand.at(time) for time in starts]
        self._units = max(self._wanted)
        self._prices = [*(outlook.spot[zone.name] for zone in zones), outlook.on_demand]
        self._caps = [*([_at(steps, time) for time in starts] for steps in ready), [self._units] * len(starts)]

    def solve(self, penalty: float) -> tuple[float, float]:
        """Least money, and hours short, where an hour short costs `penalty`."""
        graph, shorts = self._graph(penalty)
        graph.push(0, (len(self._times) - 1) * self._width, self._units)
        hours = sum(graph.flow(arc) * length for arc, length in shorts)
        money = graph.cost() - (hours * penalty if hours else 0.0)
        return money, hours

    @property
    def _width(self) -> int:
        return len(self._prices) + 1

    def _graph(self, penalty: float) -> tuple[Graph, list[tuple[int, float]]]:
        width, launch = self._width, self._outlook.cold_start / 3600.0
        graph = Graph(len(self._times) * width)
        shorts: list[tuple[int, float]] = []
        for step, (start, end) in enumerate(zip(self._times, self._times[1:], strict=False)):
            hours, hub = (end - start) / 3600.0, step * width
            graph.arc(hub, hub + width, self._units - self._wanted[step], 0.0)
            if penalty < INFINITE:
                shorts.append((graph.arc(hub, hub + width, self._wanted[step], penalty * hours), hours))
            for place, price in enumerate(self._prices, start=1):
                room = self._caps[place - 1][step]
                if room:
                    graph.arc(hub, hub + place, self._units, price * launch if step else 0.0)
                    graph.arc(hub + place, hub + place + width, min(room, self._units), price * hours)
                    graph.arc(hub + place + width, hub + width, self._units, 0.0)
        return graph, shorts


class Graph:
    """A directed graph with capacities and costs that are not negative; nodes in order of time."""

    def __init__(self, nodes: int) -> None:
        self._out: list[list[int]] = [[] for _ in range(nodes)]
        self._head: list[int] = []
        self._room: list[int] = []
        self._cost: list[float] = []

    def arc(self, tail: int, head: int, room: int, cost: float) -> int:
        """Add an arc; returns its index. The arc back is the next one."""
        index = len(self._head)
        for node, other, left, price in ((tail, head, room, cost), (head, tail, 0, -cost)):
            self._out[node].append(len(self._head))
            self._head.append(other)
            self._room.append(left)
            self._cost.append(price)
        return index

    def flow(self, arc: int) -> int:
        """Units that pass an arc."""
        return self._room[arc + 1]

    def cost(self) -> float:
        """What all units cost."""
        return sum(self._room[arc + 1] * self._cost[arc] for arc in range(0, len(self._head), 2))

    def push(self, source: int, sink: int, units: int) -> None:
        """Send units from source to sink at the least cost."""
        potentials = [0.0] * len(self._out)
        while units:
            distances, via = self._paths(source, potentials)
            reach = distances[sink]
            potentials = [old + min(new, reach) for old, new in zip(potentials, distances, strict=True)]
            path, node = [], sink
            while node != source:
                path.append(via[node])
                node = self._head[via[node] ^ 1]
            sent = min(units, *(self._room[arc] for arc in path))
            for arc in path:
                self._room[arc] -= sent
                self._room[arc ^ 1] += sent
            units -= sent

    def _paths(self, source: int, potentials: Sequence[float]) -> tuple[list[float], list[int]]:
        distances, via = [INFINITE] * len(self._out), [-1] * len(self._out)
        distances[source] = 0.0
        heap = [(0.0, source)]
        out, head, room, cost = self._out, self._head, self._room, self._cost
        while heap:
            distance, node = heappop(heap)
            if distance > distances[node]:
                continue
            base = distance + potentials[node]
            for arc in out[node]:
                other = head[arc]
                if room[arc]:
                    reached = base + cost[arc] - potentials[other]
                    reached = max(reached, distance)
                    if reached < distances[other] - 1e-12:
                        distances[other], via[other] = reached, arc
                        heappush(heap, (reached, other))
        return distances, via


def _eroded(zone: Zone, cold_start: float) -> list[tuple[float, int]]:
    """Instances that can be ready: those that were there during the whole last cold start, as (from when, how many)."""
    changes = [(0.0, zone.at(0.0)), *zone.changes()]
    moments = sorted({0.0} | {time for time, _ in changes} | {time + cold_start for time, _ in changes})
    times = [time for time, _ in changes]
    found: list[tuple[float, int]] = []
    for moment in moments:
        first = max(0, bisect_right(times, moment - cold_start) - 1)
        last = bisect_right(times, moment)
        count = min(value for _, value in changes[first:last]) if moment >= cold_start else 0
        if not found or found[-1][1] != count:
            found.append((moment, count))
    return found


def _at(steps: Sequence[tuple[float, int]], time: float) -> int:
    return steps[bisect_right(steps, (time, 1 << 62)) - 1][1]
