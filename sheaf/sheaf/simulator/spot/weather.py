"""Made-up spot markets, to choose constants on, so that recorded traces are left for judging.

A zone has capacity or not, in spells whose lengths are drawn lognormal (sigma 1.5: most are short, a few are long), and
two moods, calm and stormy, of which the second shortens the spells with capacity to a tenth.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sheaf.simulator.market import Zone

SIGMA = 1.5
MOOD_S = 48 * 3600.0
STORM = 0.1


@dataclass(frozen=True, slots=True)
class Weather:
    """A zone's climate: mean hours with capacity in calm times, mean hours without, share of the time that storms."""

    up_hours: float
    down_hours: float
    storms: float = 0.2


def weather(climates: Sequence[Weather], hours: float, seed: int, gap_s: float = 120.0) -> tuple[Zone, ...]:
    """Zones of one instance each, for so many hours."""
    ticks = int(hours * 3600.0 / gap_s)
    return tuple(
        Zone(f"zone-{index}", gap_s, tuple(_counts(climate, ticks, gap_s, random.Random(seed * 1009 + index))))  # noqa: S311 - a simulation's draw
        for index, climate in enumerate(climates)
    )


def _counts(climate: Weather, ticks: int, gap_s: float, draw: random.Random) -> list[int]:
    counts: list[int] = []
    up = draw.random() < climate.up_hours / (climate.up_hours + climate.down_hours)
    mood_left, stormy = 0.0, False
    while len(counts) < ticks:
        if mood_left <= 0:
            mood_left, stormy = draw.expovariate(1 / MOOD_S), draw.random() < climate.storms
        mean = climate.up_hours * (STORM if stormy else 1.0) if up else climate.down_hours
        seconds = mean * 3600.0 * draw.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        spell = max(1, round(seconds / gap_s))
        counts += [int(up)] * min(spell, ticks - len(counts))
        mood_left -= spell * gap_s
        up = not up
    return counts
