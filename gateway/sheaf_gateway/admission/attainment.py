"""How a promise is kept: attained percentiles, goodput and error-budget burn of an SLO over sliding windows.

One hour in cells of 30 seconds, each with counts and a sketch for each latency: memory is bounded whatever happens,
an observation costs a few additions, and a window is summed up when somebody asks. Definitions:

- A request is *good* when it was answered and kept the longest bound promised for each of its latencies; *goodput*
  is good requests a second (as in DistServe, OSDI 2024).
- A promise such as `ttft.p95: 800ms` leaves a budget of 5 % of requests that may be later. *Burn* is the share that
  was later, divided by that budget: 1 uses up the budget exactly, the highest of all promises is reported (Beyer et
  al., The Site Reliability Workbook, chapter 5). A request that was refused for load or failed counts as later.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from sheaf_gateway.admission.sketch import Sketch, bucket, merged, quantiles

Latency = Literal["ttft", "tpot", "e2e"]
LATENCIES: tuple[Latency, ...] = ("ttft", "tpot", "e2e")
QUANTILES = (0.5, 0.9, 0.95, 0.99)
WINDOWS = {"5m": 300.0, "1h": 3600.0}

CELL_S = 30.0
_CELLS = int(max(WINDOWS.values()) / CELL_S) + 1


class Bound(msgspec.Struct, frozen=True):
    """That a share `quantile` of requests stays within `seconds`."""

    latency: Latency
    quantile: float
    seconds: float


class Outcome(msgspec.Struct, frozen=True):
    """One request that was answered; seconds, None where it was not measured."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None


class Figures(msgspec.Struct, frozen=True):
    """One window. `attained` is the share of good requests, percentiles are seconds in the order of QUANTILES; None
    where nothing was observed. `goodput` is in requests a second, `burn` the highest of all promises."""

    requests: int
    failed: int
    attained: float | None
    goodput: float
    burn: float
    ttft: tuple[float | None, ...]
    tpot: tuple[float | None, ...]
    e2e: tuple[float | None, ...]


class Tally(msgspec.Struct, frozen=True):
    """The counts of one window of `span` seconds, from which `Figures` are made; those of several gateways add up.
    `asked` and `late` are by bound."""

    span: float
    requests: int = 0
    failed: int = 0
    good: int = 0
    asked: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    sketches: dict[Latency, Sketch] = {}


class _Cell:
    __slots__ = ("asked", "failed", "good", "late", "number", "requests", "sketches")

    def __init__(self, number: int, bounds: int) -> None:
        self.number = number
        self.requests = self.failed = self.good = 0
        self.asked = [0] * bounds
        self.late = [0] * bounds
        self.sketches: dict[Latency, Sketch] = {latency: {} for latency in LATENCIES}


class Attainment:
    """The last hour of one SLO."""

    def __init__(self, bounds: Sequence[Bound], now: float) -> None:
        self.bounds = tuple(bounds)
        self._limits = {bound.latency: bound.seconds for bound in sorted(bounds, key=_seconds)}
        self._cells: list[_Cell | None] = [None] * _CELLS
        self._began = now

    def answered(self, outcome: Outcome, now: float) -> None:
        """Count a request that was answered."""
        cell = self._cell(now)
        values: dict[Latency, float | None] = {"ttft": outcome.ttft, "tpot": outcome.tpot, "e2e": outcome.e2e}
        for latency, seconds in values.items():
            if seconds is not None:
                key, sketch = bucket(seconds), cell.sketches[latency]
                sketch[key] = sketch.get(key, 0) + 1
        for place, bound in enumerate(self.bounds):
            seconds = values[bound.latency]
            cell.asked[place] += seconds is not None
            cell.late[place] += seconds is not None and seconds > bound.seconds
        cell.requests += 1
        cell.good += all((values[latency] or 0.0) <= limit for latency, limit in self._limits.items())

    def failed(self, now: float) -> None:
        """Count a request that was refused for load, or failed."""
        cell = self._cell(now)
        cell.requests += 1
        cell.failed += 1
        for place in range(len(self.bounds)):
            cell.asked[place] += 1
            cell.late[place] += 1

    def window(self, seconds: float, now: float) -> Figures:
        """The figures of the last `seconds`, to the precision of a cell."""
        return figures(self.tally(seconds, now), self.bounds)

    def tally(self, seconds: float, now: float) -> Tally:
        """The counts of the last `seconds`, to the precision of a cell."""
        first = int((now - seconds) // CELL_S) + 1
        cells = [cell for cell in self._cells if cell is not None and cell.number >= first]
        places = range(len(self.bounds))
        return Tally(
            max(1.0, min(seconds, now - self._began)),
            sum(cell.requests for cell in cells),
            sum(cell.failed for cell in cells),
            sum(cell.good for cell in cells),
            tuple(sum(cell.asked[place] for cell in cells) for place in places),
            tuple(sum(cell.late[place] for cell in cells) for place in places),
            {latency: merged(cell.sketches[latency] for cell in cells) for latency in LATENCIES},
        )

    def _cell(self, now: float) -> _Cell:
        number = int(now // CELL_S)
        place = number % _CELLS
        cell = self._cells[place]
        if cell is None or cell.number != number:
            cell = self._cells[place] = _Cell(number, len(self.bounds))
        return cell


def summed(tallies: Sequence[Tally]) -> Tally:
    """The counts of several gateways under the same bounds; one with other bounds does not count."""
    first = max(tallies, key=lambda tally: tally.requests)
    alike = [tally for tally in tallies if len(tally.asked) == len(first.asked)]
    return Tally(
        max(tally.span for tally in alike),
        sum(tally.requests for tally in alike),
        sum(tally.failed for tally in alike),
        sum(tally.good for tally in alike),
        tuple(map(sum, zip(*(tally.asked for tally in alike), strict=True))),
        tuple(map(sum, zip(*(tally.late for tally in alike), strict=True))),
        {latency: merged(tally.sketches.get(latency, {}) for tally in alike) for latency in LATENCIES},
    )


def figures(tally: Tally, bounds: Sequence[Bound]) -> Figures:
    """What a window's counts say of so many promises."""
    told = zip(tally.asked, tally.late, bounds, strict=False)
    return Figures(
        tally.requests,
        tally.failed,
        tally.good / tally.requests if tally.requests else None,
        tally.good / tally.span,
        max((late / asked / (1.0 - bound.quantile) for asked, late, bound in told if asked), default=0.0),
        *(tuple(quantiles(tally.sketches.get(latency, {}), QUANTILES)) for latency in LATENCIES),
    )


def _seconds(bound: Bound) -> float:
    return bound.seconds
