"""What callers saw: one entry for each request that was answered, and counts of those that were not."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from sheaf.simulator.flights import Flight


@dataclass(slots=True)
class Outcome:
    """Entries in order of the ends. Times are seconds.

    Attributes:
        arrival: when it came.
        ttft: time to first token.
        tpot: time for each further token; 0 where there was none.
        prompt: prompt tokens.
        cached: prompt tokens found in the cache.
        output: tokens generated.
        refused: requests answered 429 or 503.
        limited: those of them that were beyond their caller's own limits, which breaks no promise.
        broken: requests that were let in and not answered whole, for want of pods.
        moved: continuations of requests whose pod was lost, or had to go.
    """

    arrival: array[float] = field(default_factory=lambda: array("d"))
    ttft: array[float] = field(default_factory=lambda: array("d"))
    tpot: array[float] = field(default_factory=lambda: array("d"))
    prompt: array[int] = field(default_factory=lambda: array("l"))
    cached: array[int] = field(default_factory=lambda: array("l"))
    output: array[int] = field(default_factory=lambda: array("l"))
    refused: int = 0
    limited: int = 0
    broken: int = 0
    moved: int = 0

    def note(self, flight: Flight, now: float) -> None:
        """A request is done."""
        call = flight.call
        further = call.output_tokens - 1
        self.arrival.append(call.arrival)
        self.ttft.append(flight.first_at - call.arrival)
        self.tpot.append((now - flight.first_at) / further if further else 0.0)
        self.prompt.append(call.input_tokens)
        self.cached.append(flight.cached)
        self.output.append(call.output_tokens)

    @property
    def asked(self) -> int:
        """Requests in all."""
        return len(self.ttft) + self.refused + self.broken

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were in the cache."""
        total = sum(self.prompt)
        return sum(self.cached) / total if total else 0.0

    def attainment(self, ttft: float, tpot: float) -> float:
        """Share of the requests within their callers' limits that were answered with both times within bounds."""
        kept = sum(first <= ttft and each <= tpot for first, each in zip(self.ttft, self.tpot, strict=True))
        counted = self.asked - self.limited
        return kept / counted if counted else 1.0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else 0.0
