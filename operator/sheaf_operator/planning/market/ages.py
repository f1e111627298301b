"""How the danger of being taken falls with age.

Capacity that has just come back goes soonest: spells with capacity differ in how long they last, and one that has
lasted is likely to be a long one. With exponential spells of Gamma distributed rates the hazard at an age is a constant
by (YOUNG + age), Lomax' law. Rates are those at the age TYPICAL, and hours count by the hazard of their age.
"""

from math import log1p

YOUNG = 0.25
TYPICAL = 2.5
LOWEST_RATE, HIGHEST_RATE = 1 / 720.0, 12.0


def hazard(losses_per_hour: float, age_hours: float) -> float:
    """Losses an hour of a pod that has been there for so long, in a zone of such a mean rate; from 1/720 to 12."""
    rate = losses_per_hour * (YOUNG + TYPICAL) / (YOUNG + max(0.0, age_hours))
    return min(max(rate, LOWEST_RATE), HIGHEST_RATE)


def exposure(hours: float) -> float:
    """Hours at the typical age in which as many losses are to be expected as in the first so many hours of a pod."""
    return (YOUNG + TYPICAL) * log1p(max(0.0, hours) / YOUNG)
