"""How many requests come and how many replicas are wanted for them, minute by minute.

The number of replicas is SkyServe's request-rate autoscaler's (sky/serve/autoscalers.py): requests a second over the
last minute by a target for each replica, followed upwards once it has been asked for 5 minutes, downwards after 20. All
policies that are compared get the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

BIN_S = 60.0
UP_BINS, DOWN_BINS = 5, 20


@dataclass(frozen=True, slots=True)
class Demand:
    """Minute by minute, from 0 on.

    Attributes:
        rates: requests a second.
        wanted: replicas.
        capacity: requests a second that one replica answers within the promised times.
    """

    rates: tuple[float, ...]
    wanted: tuple[int, ...]
    capacity: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.rates) * BIN_S

    def at(self, time: float) -> int:
        """Replicas wanted then."""
        return self.wanted[min(int(time / BIN_S), len(self.wanted) - 1)]

    def changes(self) -> list[tuple[float, int]]:
        """When another number is wanted, and which."""
        pairs = enumerate(zip(self.wanted, self.wanted[1:], strict=False), start=1)
        return [(index * BIN_S, after) for index, (before, after) in pairs if before != after]


def demand_of(arrivals: Sequence[float], seconds: float, replicas: float, utilisation: float) -> Demand:
    """The demand of a trace, repeated end to end until `seconds` are full.

    Args:
        arrivals: times of requests, rising, seconds from the first.
        seconds: how long the demand lasts.
        replicas: how many replicas the mean rate is to need.
        utilisation: share of a replica's capacity at which the autoscaler aims.
    """
    counts = [0] * max(1, int(arrivals[-1] / BIN_S))
    for arrival in arrivals:
        place = int(arrival / BIN_S)
        if place < len(counts):
            counts[place] += 1
    target = sum(counts) / len(counts) / BIN_S / replicas
    bins = ceil(seconds / BIN_S)
    rates = tuple(counts[index % len(counts)] / BIN_S for index in range(bins))
    return Demand(rates, followed([max(1, ceil(rate / target - 1e-9)) for rate in rates]), target / utilisation)


def followed(wishes: Sequence[int]) -> tuple[int, ...]:
    """The wishes as the autoscaler follows them."""
    current, up, down = wishes[0], 0, 0
    found = []
    for wish in wishes:
        up = up + 1 if wish > current else 0
        down = down + 1 if wish < current else 0
        if up >= UP_BINS or down >= DOWN_BINS:
            current, up, down = wish, 0, 0
        found.append(current)
    return tuple(found)
