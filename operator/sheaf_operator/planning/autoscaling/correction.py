"""What measurements say about the timing model: how much slower replicas are, and how careful to be.

Both learn in calm weather only: while the number of replicas has not changed for a while and all of them serve, since
a backlog that is worked off tells nothing of speed, and a window in which the number changed nothing of that number.
`slowness` brings the predicted time of a request (from admission to the end) to the measured one, a little with every
observation, while replicas are not full. `caution` is added to the load: it grows while the SLO's error budget of the
last five minutes is overspent, and goes back, and below nothing, while it is hardly used.
"""

import math
from dataclasses import dataclass

from sheaf_operator.planning.autoscaling.facts import Demand, Facts
from sheaf_operator.planning.autoscaling.queueing import forecast

GAIN = 0.03
SLOWEST, FASTEST = 10.0, 0.1
TELLING = 0.7
CALM_S = 120.0
EVERY_S = 300.0
RISE, FALL = 0.05, 0.02
MOST_CAUTION, LEAST_CAUTION = 1.0, -0.05
OVERSPENT, UNSPENT = 1.0, 0.4
_LARGEST_RATIO = 3.0


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors that start at (1, 0); `at` is when caution moved last."""

    slowness: float = 1.0
    caution: float = 0.0
    at: float = 0.0


def corrected(
    before: Correction, facts: Facts, demand: Demand, rate: float, calm_since: float, now: float
) -> Correction:
    """The factors after one more observation.

    Args:
        before: the factors so far.
        facts: of the Model.
        demand: what is asked now.
        rate: mean arrivals a second of late.
        calm_since: since when as many replicas as wanted serve, Unix seconds.
        now: Unix seconds.
    """
    after = _measured(before, facts, demand, rate) if now - calm_since >= CALM_S else before
    return _careful(after, demand, max(calm_since, before.at), now)


def _measured(before: Correction, facts: Facts, demand: Demand, rate: float) -> Correction:
    if facts.speed is None or demand.work is None or not (demand.service_s and facts.ready and rate):
        return before
    predicted = forecast(facts.speed.slower(before.slowness), demand.work, rate, facts.ready)
    if predicted.busy > TELLING:
        return before
    ratio = demand.service_s / predicted.service_s(demand.work.output)
    factor = min(_LARGEST_RATIO, max(1.0 / _LARGEST_RATIO, ratio)) ** GAIN
    slowness = min(SLOWEST, max(FASTEST, before.slowness * factor))
    return Correction(slowness, before.caution, before.at)


def _careful(before: Correction, demand: Demand, since: float, now: float) -> Correction:
    if demand.burn is None or now - since < EVERY_S:
        return before
    rise = RISE * (1.0 + math.log2(demand.burn)) if demand.burn > OVERSPENT else 0.0
    moved = before.caution + (rise or (-FALL if demand.burn < UNSPENT else 0.0))
    return Correction(before.slowness, round(min(MOST_CAUTION, max(LEAST_CAUTION, moved)), 3), now)
