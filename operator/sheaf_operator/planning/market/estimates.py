"""What is to be expected of a zone: how often pods are taken there, and whether there is capacity now.

Both are Bayesian: a Gamma prior on the rate of losses (conjugate to Poisson losses over the hours held) and a Beta
prior on finding capacity, so one bad hour in a new zone does not condemn it and one good hour does not commend it.
After capacity was missed somewhere, its return is an exponential wait.
"""

from dataclasses import dataclass
from math import exp

from sheaf_operator.planning.market.ages import HIGHEST_RATE, LOWEST_RATE
from sheaf_operator.planning.market.memory import ZoneRecord

PRIOR_LOSSES = 1.0
PRIOR_HOURS = 6.0
PRIOR_PLACED = 2.0
PRIOR_REFUSED = 1.0
RECOVERY = 1800.0
LEAST_CHANCE = 0.02


@dataclass(frozen=True, slots=True)
class Estimate:
    """Losses an hour of a pod of typical age, from 1/720 to 12, and the chance of capacity now, from 0.02 to 1."""

    losses_per_hour: float
    chance: float


def estimate(record: ZoneRecord, live_hours: float, live: int, now: float) -> Estimate:
    """What is to be expected of a zone.

    Args:
        record: what is remembered of it.
        live_hours: exposure of the pods held there now.
        live: how many those are.
        now: Unix seconds.
    """
    seen = record.faded(now)
    rate = (PRIOR_LOSSES + seen.losses) / (PRIOR_HOURS + seen.hours + live_hours)
    placed = PRIOR_PLACED + seen.placed + live
    chance = placed / (placed + PRIOR_REFUSED + seen.refused)
    if record.empty_at:
        chance *= 1.0 - exp(-max(0.0, now - record.empty_at) / RECOVERY)
    return Estimate(min(max(rate, LOWEST_RATE), HIGHEST_RATE), min(max(chance, LEAST_CHANCE), 1.0))
