"""How many replicas' worth of requests there was in each of the last minutes, for whoever weighs spares by it.

A load is the arrival rate by the highest rate that one of the replicas wanted serves within the SLO, as predicted.
"""

import math
from dataclasses import dataclass, replace

from sheaf_operator.planning.autoscaling.facts import Demand, Facts
from sheaf_operator.planning.autoscaling.queueing import keeper
from sheaf_operator.planning.market.values import ENOUGH_LOADS

MINUTE_S = 60.0
KEPT = 60
_HALVINGS = 12


@dataclass(frozen=True, slots=True)
class Loads:
    """The last minutes, oldest first; `at` is when the last one was noted, Unix seconds.

    `mute` counts the looks since then at which something was asked and the load could not be said, a minute apart.
    """

    values: tuple[float, ...] = ()
    at: float = float("-inf")
    mute: int = 0

    @property
    def known(self) -> tuple[float, ...] | None:
        """What there is to go by; None: the load cannot be said here."""
        return None if self.mute >= ENOUGH_LOADS else self.values

    def noted(self, facts: Facts, demand: Demand | None, replicas: int, now: float) -> "Loads":
        """With one more, where a minute is over and the load can be said."""
        if demand is None or now - self.at < MINUTE_S:
            return self
        load = load_of(facts, demand, replicas)
        if load is None:
            return replace(self, at=now, mute=min(self.mute + 1, ENOUGH_LOADS))
        return Loads((*self.values, load)[-KEPT:], now)


def load_of(facts: Facts, demand: Demand, replicas: int) -> float | None:
    """Replicas' worth of the arrivals of late; None where the speed of a replica or the lengths are not known.

    Args:
        facts: of the Model.
        demand: what is asked of it now.
        replicas: how many are wanted.
    """
    if facts.speed is None or not replicas:
        return None
    if demand.rate <= 0.0:
        return 0.0
    if demand.work is None:
        return None
    speed, work, promise, rate = facts.speed, demand.work, facts.promise, demand.rate
    low, high = 1.0 / KEPT, float(KEPT)
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        fits = keeper(speed, work, promise, rate * middle)(replicas)
        low, high = (middle, high) if fits else (low, middle)
    return round(replicas / low, 2)
