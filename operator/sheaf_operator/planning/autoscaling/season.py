"""The same hour of yesterday and of last week: a floor under what is asked now, explained in one sentence.

For each hour of the week the busiest ten minutes' arrival rate is kept, blended half and half with what was there
before. The floor for a time ahead is the higher of the same hour of the day before and of the week before, times a
trend: what the last ten minutes were against what those hours said of now, between half and double.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

HOURS = 168
TEN_MINUTES = 600.0
DAY: Sequence[int] = (24,)
WEEK: Sequence[int] = (24, HOURS)
_HOUR_S = 3600.0
_LEAST, _MOST = 0.5, 2.0
UNSEEN = -1.0


@dataclass(frozen=True, slots=True)
class Season:
    """Arrival rates by hour of the week (Unix hours modulo HOURS), UNSEEN where there is none, and the hour under way.

    `hour` is the Unix hour under way and `peak` its highest ten-minute rate so far.
    """

    rates: tuple[float, ...] = ()
    hour: int = -1
    peak: float = 0.0

    def with_rate(self, rate: float, now: float) -> "Season":
        """The season after a ten-minute mean was seen."""
        hour = int(now // _HOUR_S)
        if hour == self.hour:
            return self if rate <= self.peak else replace(self, peak=rate)
        return Season(self._closed(), hour, rate)

    def at(self, time: float, backs: Iterable[int] = WEEK) -> float | None:
        """What the hour of that time was like so many hours before, the highest; None where none was seen."""
        hour = int(time // _HOUR_S)
        seen = [self._rate(hour - back) for back in backs]
        return max((rate for rate in seen if rate >= 0.0), default=None)

    def _rate(self, hour: int) -> float:
        return self.rates[hour % HOURS] if self.rates else UNSEEN

    def _closed(self) -> tuple[float, ...]:
        if self.hour < 0:
            return self.rates
        rates = list(self.rates or (UNSEEN,) * HOURS)
        place = self.hour % HOURS
        rates[place] = self.peak if rates[place] < 0.0 else (rates[place] + self.peak) / 2.0
        return tuple(round(rate, 3) for rate in rates)


def expected(
    season: Season, rate: float | None, now: float, ahead_s: float, backs: Sequence[int] = WEEK
) -> tuple[float, float] | None:
    """The arrival rate to be ready for until `ahead_s` from now, and the trend in it; None where nothing was seen."""
    coming = [found for found in (season.at(now, backs), season.at(now + ahead_s, backs)) if found is not None]
    if not coming:
        return None
    usual = season.at(now, backs)
    factor = min(_MOST, max(_LEAST, rate / usual)) if rate is not None and usual else 1.0
    return max(coming) * factor, factor
