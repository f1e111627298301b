"""What was asked lately: means over cells of CELL_S seconds, as many as are of use, and the season over a week."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sheaf_operator.planning.autoscaling.facts import Demand

CELL_S = 10.0
CELLS = 60
BEGUN = 0.25


@dataclass(frozen=True, slots=True)
class Cell:
    """Sums over `count` observations from `start` (a multiple of CELL_S) on."""

    start: float
    count: int
    rate: float
    present: float


@dataclass(frozen=True, slots=True)
class History:
    """The last CELLS cells, oldest first."""

    cells: tuple[Cell, ...] = ()

    def with_demand(self, demand: Demand, now: float) -> "History":
        """The history with one more observation."""
        start = now // CELL_S * CELL_S
        cells = self.cells
        if cells and cells[-1].start >= start:
            last = cells[-1]
            newer = Cell(last.start, last.count + 1, last.rate + demand.rate, last.present + demand.present)
            return replace(self, cells=(*cells[:-1], newer))
        kept = tuple(cell for cell in cells if cell.start > start - CELLS * CELL_S)
        return replace(self, cells=(*kept, Cell(start, 1, demand.rate, float(demand.present))))

    def rate(self, begin: float, end: float) -> float | None:
        """Mean arrivals a second between two times; None where nothing was seen."""
        return _mean((cell.rate, cell.count) for cell in self._between(begin, end))

    def least(self, begin: float, end: float) -> float:
        """The lowest mean rate of a cell between two times; 0 where nothing was seen."""
        return min((cell.rate / cell.count for cell in self._between(begin, end)), default=0.0)

    def present(self, begin: float, end: float) -> float | None:
        """Mean requests that were anywhere between two times; None where nothing was seen."""
        return _mean((cell.present, cell.count) for cell in self._between(begin, end))

    def covers(self, seconds: float, now: float) -> bool:
        """Whether it reaches so far back."""
        return bool(self.cells) and self.cells[0].start <= now - seconds

    def _between(self, begin: float, end: float) -> list[Cell]:
        return [cell for cell in self.cells if begin <= cell.start + CELL_S / 2.0 <= end]


def trend(history: History, now: float, window_s: float) -> float:
    """Growth of the arrival rate, each second, by as much as it exceeds chance.

    The mean of the last `window_s` against that of the `window_s` before, less one standard deviation of the difference
    of two counts of random arrivals. Where hardly any arrived for a moment of the earlier window, something began (the
    load, a gateway), and that is no growth.
    """
    if not history.covers(2.0 * window_s, now):
        return 0.0
    late = history.rate(now - window_s, now)
    early = history.rate(now - 2.0 * window_s, now - window_s)
    if late is None or early is None or history.least(now - 2.0 * window_s, now - window_s) < BEGUN * late:
        return 0.0
    noise = math.sqrt((late + early) / window_s)
    return max(0.0, late - early - noise) / window_s


def _mean(sums: Iterable[tuple[float, int]]) -> float | None:
    total, count = 0.0, 0
    for value, number in sums:
        total += value
        count += number
    return total / count if count else None
